"""`edge status`: how a running node is, and what it decided lately."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edge import quantities
from edge.cli.asking import RunningNode, node_options


@click.command()
@node_options("metrics")
@click.option(
    "--decisions",
    "limit",
    type=click.IntRange(0, 1024),
    default=5,
    show_default=True,
    help="How many of the last requests to show.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def command(node: RunningNode, limit: int, as_json: bool) -> int:
    """Say how a running node is: ready or why not, how full, what the fleet does, where the last requests went.

    Ends with 1 if the node is not ready.
    """
    load = node.get("/edge/v1/load")
    found = node.get(f"/edge/v1/decisions?limit={limit}")["decisions"] if limit else []
    if as_json:
        click.echo(json.dumps({**load, "last": found}, indent=1))
    else:
        out = Console(soft_wrap=True, highlight=False)
        for label, text in _lines(node.url, load):
            out.print(f"{label:9} {text}", markup=False)
        if found:
            out.print()
            out.print(_table(found, several=len(load["models"]) > 1))
    return 0 if load["ready"] else 1


def _lines(base: str, load: dict[str, Any]) -> list[tuple[str, str]]:
    state = "ready" if load["ready"] else f"not ready, {load['reason']}"
    restarts = f"; engine restarts: {load['restarts']}" if load["restarts"] else ""
    lines = [("node", f"{load['model']} at {base}: {state}{restarts}")]
    if reductions := load.get("reductions"):
        lines.append(
            (
                "memory",
                f"it ran out {quantities.count(reductions, 'time')}; the layout is smaller than planned until a restart",
            )
        )
    if "load" in load:
        full = f"{load['running']} of {load['slots']} answers run, {load['waiting']} wait ({load['load']:.0%})"
        lines += [("load", full), ("promise", _promise(load))]
    if len(load["models"]) > 1:
        memory = load["memory"]
        lines.append(
            ("memory", f"{quantities.size(memory['planned_bytes'])} of {quantities.size(memory['room_bytes'])} planned")
        )
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
        parts.append(quantities.size(model["bytes_planned"]))
    if model["in_flight"] or model["waiting"]:
        parts.append(f"{quantities.count(model['in_flight'], 'answer')} under way, {model['waiting']} waiting for it")
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
    if identity["standing"] == "damaged":
        return "damaged; the node serves without its fleet"
    fleet = f" of {identity['fleet']}" if identity["fleet"] else ""
    days = identity["certificate_left_s"] / 86_400
    ends = f"certificate ends in {days:,.1f} days" if days > 0 else f"certificate ended {-days:,.1f} days ago"
    due = time.strftime("%Y-%m-%d", time.gmtime(identity["renewal_due"]))
    failed = f"; the last renewal failed: {identity['renewal_failure']}" if identity["renewal_failure"] else ""
    return f"{identity['node']}{fleet}; {ends}, renewed from {due} on{failed}"


def _uplink(outbox: dict[str, Any]) -> str:
    connected = outbox["connected"]
    state = f"{'connected' if connected else 'not connected'} to {outbox['broker'] or 'any broker'}"
    why = f" ({outbox['reason']})" if outbox["reason"] and not connected else ""
    kept = sum(outbox.get("records", {}).values())
    age = f", the oldest {outbox['oldest_age_s']:,.0f} s old" if kept else ""
    used = f" in {outbox['bytes'] / 2**20:.1f} of {outbox['cap_bytes'] / 2**20:.0f} MiB" if "bytes" in outbox else ""
    return f"{state}{why}; {kept:,} {'record' if kept == 1 else 'records'} not acknowledged{age}{used}"


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
