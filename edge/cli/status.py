"""`edge status`: how a running node is, and what it decided lately."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edge.cli import words
from edge.cli.flags import node_url
from edge.errors import InvalidApiKey, NodeUnreachable, PermissionDenied

_TIMEOUT_S = 5.0


@click.command()
@click.option("--url", envvar="EDGE_URL", help="Address of the node [default: where `edge serve` would listen].")
@click.option(
    "--key", envvar="EDGE_API_KEY", default="", help="API key with the scope `metrics` [default: $EDGE_API_KEY]."
)
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the CA that signed the node's certificate.")
@click.option(
    "--decisions",
    "limit",
    type=click.IntRange(0, 1024),
    default=5,
    show_default=True,
    help="How many of the last requests to show.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def command(url: str | None, key: str, ca: Path | None, limit: int, as_json: bool) -> int:
    """Say how a running node is: ready or why not, how full, what the fleet does, where the last requests went.

    Ends with 1 if the node is not ready.
    """
    base = node_url(url)
    load = _get(base, "/edge/v1/load", key, ca)
    found = _get(base, f"/edge/v1/decisions?limit={limit}", key, ca)["decisions"] if limit else []
    if as_json:
        click.echo(json.dumps({**load, "last": found}, indent=1))
    else:
        out = Console(soft_wrap=True, highlight=False)
        for label, text in _lines(base, load):
            out.print(f"{label:9} {text}", markup=False)
        if found:
            out.print()
            out.print(_table(found, several=len(load["models"]) > 1))
    return 0 if load["ready"] else 1


def _get(base: str, path: str, key: str, ca: Path | None) -> dict[str, Any]:
    import httpx

    try:
        verify = ssl.create_default_context(cafile=ca) if ca else True
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = httpx.get(base + path, headers=headers, timeout=_TIMEOUT_S, verify=verify, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        said = f"nothing answers at {base}; start a node with `edge serve`, or name one with --url"
        raise NodeUnreachable(said) from None
    except OSError as error:
        raise NodeUnreachable(f"{ca} cannot be read: {error.strerror or error}") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise InvalidApiKey(f"the node at {base} wants an API key: give --key, or set EDGE_API_KEY")
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise PermissionDenied("this key may not look at the node; make one: edge keys create NAME --scope metrics")
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.status_code != httpx.codes.OK or not isinstance(found, dict):
        raise NodeUnreachable(f"what answers at {base} is no edge node of this version")
    return found


def _lines(base: str, load: dict[str, Any]) -> list[tuple[str, str]]:
    state = "ready" if load["ready"] else f"not ready, {load['reason']}"
    restarts = f"; engine restarts: {load['restarts']}" if load["restarts"] else ""
    lines = [("node", f"{load['model']} at {base}: {state}{restarts}")]
    if reductions := load.get("reductions"):
        lines.append(
            (
                "memory",
                f"it ran out {words.count(reductions, 'time')}; the layout is smaller than planned until a restart",
            )
        )
    if "load" in load:
        full = f"{load['running']} of {load['slots']} answers run, {load['waiting']} wait ({load['load']:.0%})"
        lines += [("load", full), ("promise", _promise(load))]
    if len(load["models"]) > 1:
        memory = load["memory"]
        lines.append(("memory", f"{words.size(memory['planned_bytes'])} of {words.size(memory['room_bytes'])} planned"))
        lines += [("models" if n == 0 else "", _model(model)) for n, model in enumerate(load["models"])]
    if fleet := load.get("fleet"):
        lines.append(("fleet", "may be asked" if fleet["available"] else f"is not asked: {fleet['reason']}"))
        lines += [("", _upstream(upstream)) for upstream in fleet["upstreams"]]
    if outbox := load.get("outbox"):
        lines.append(("uplink", _uplink(outbox)))
    if identity := load.get("identity"):
        lines.append(("identity", _identity(identity)))
    lines += [("alarm", f"{alarm['text']}; {alarm['cure']}") for alarm in load.get("alarms", ())]
    counts = [f"{c['count']} {c['decision']}" + (f" ({c['reason']})" if c["reason"] else "") for c in load["decisions"]]
    return [*lines, ("requests", ", ".join(counts) or "none yet")]


def _model(model: dict[str, Any]) -> str:
    state = _STATES.get(model["state"], model["state"])
    if model["state"] == "loading" and not model["replacing"]:
        state += f", {model['reason']} ({model['progress']:.0%})"
    elif model["state"] in ("failed", "restarting"):
        state += f": {model['reason']}"
    parts = [f"{model['name']}: {state}", "a new version is being loaded" if model["replacing"] else ""]
    if model["bytes_planned"] is not None:
        parts.append(words.size(model["bytes_planned"]))
    if model["in_flight"] or model["waiting"]:
        parts.append(f"{words.count(model['in_flight'], 'answer')} under way, {model['waiting']} waiting for it")
    elif model["idle_s"] is not None and model["state"] == "ready" and not model["main"]:
        parts.append(f"idle for {model['idle_s']:,.0f} s")
    if model["pinned"]:
        parts.append("the node's own" if model["main"] else "pinned")
    if model["aliases"]:
        parts.append(f"also called {', '.join(model['aliases'])}")
    return ", ".join(filter(None, parts))


_STATES = {
    "waiting": "waits for room",
    "draining": "leaves when its last answers have ended",
    "unloaded": "not loaded",
    "failed": "cannot be used",
    "restarting": "being started again",
    "loading": "being loaded",
}


def _identity(identity: dict[str, Any]) -> str:
    fleet = f" of {identity['fleet']}" if identity["fleet"] else ""
    days = identity["certificate_left_s"] / 86_400
    ends = f"certificate ends in {days:,.1f} days" if days > 0 else f"certificate ended {-days:,.1f} days ago"
    due = time.strftime("%Y-%m-%d", time.gmtime(identity["renewal_due"]))
    failed = f"; the last renewal failed: {identity['renewal_failure']}" if identity["renewal_failure"] else ""
    return f"{identity['node']}{fleet}; {ends}, renewed from {due} on{failed}"


def _uplink(outbox: dict[str, Any]) -> str:
    why = f" ({outbox['reason']})" if outbox["reason"] else ""
    state = "connected to" if outbox["connected"] else f"not connected{why} to"
    kept = sum(outbox.get("records", {}).values())
    age = f", the oldest {outbox['oldest_age_s']:,.0f} s old" if kept else ""
    used = f" in {outbox['bytes'] / 2**20:.1f} of {outbox['cap_bytes'] / 2**20:.0f} MiB" if "bytes" in outbox else ""
    return f"{state} {outbox['broker']}; {kept:,} records not acknowledged{age}{used}"


def _promise(load: dict[str, Any]) -> str:
    if load["mode"] == "off":
        return "none: admission.mode is off"
    promise, late_ms = load["promise"], load["late_ttft_ms"]
    now = "would be admitted now" if load["admits"] else f"would be late now, by about {late_ms:,.0f} ms"
    bounds = f"first token within {promise['ttft_ms']:g} ms, the next ones within {promise['itl_ms']:g} ms"
    return f"{bounds}; a short prompt {now}"


def _upstream(upstream: dict[str, Any]) -> str:
    why = f" ({upstream['reason']})" if upstream["reason"] else ""
    state = {"closed": "well", "open": "left alone", "half-open": "on trial"}[upstream["state"]]
    return f"{upstream['name']}: {state}{why}, first token expected in {upstream['ttft_s'] * 1000:,.0f} ms"


def _table(found: list[dict[str, Any]], *, several: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    model = ["model"] if several else []
    for title in ("when", *model, "where", "why", "prompt", "foreseen, ms", "first token, ms", "outcome"):
        table.add_column(title, justify="left" if title in ("when", "model", "where", "why", "outcome") else "right")
    for entry in found:
        unrouted = "nowhere" if entry["outcome"] else "under way"
        where = f"fleet: {entry['upstream']}" if entry["upstream"] else _ROUTES.get(entry["route"], unrouted)
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(entry["at"])),
            *([entry["model"]] if several else []),
            where + (f", then {entry['continued']}" if entry["continued"] else ""),
            entry["reason"] + (f" (fleet: {entry['fleet_reason']})" if entry["fleet_reason"] else ""),
            "" if entry["prompt_tokens"] is None else f"{entry['prompt_tokens']:,}",
            _ms(entry["predicted_ttft_s"]),
            _ms(entry["ttft_s"]),
            entry["outcome"],
        )
    return table


_ROUTES = {"local": "here", "late": "here, late", "refuse": "refused", "fleet": "fleet"}


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.1f}"
