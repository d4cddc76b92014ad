"""`edge identity`."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from edge.cli.enroll import CODES
from edge.cli.flags import current
from edge.cli.listing import Commands
from edge.effective import default_home
from edge.errors import EnrollmentFailed

if TYPE_CHECKING:
    from edge.identity.identity import Identity
    from edge.identity.store import Store
    from edge.telemetry.clock import SystemClock

_DAY_S = 86_400


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Who this node is to its fleet: key, certificate, and what the fleet told it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def show(as_json: bool) -> int:
    """Say who this node is, until when, and when that is renewed. Ends with 1 if it is not enrolled. Shows no secret."""
    store, clock = _store(), _clock()
    identity = store.current()
    if identity is None:
        request = store.request("enrolling")
        begun = f"; an enrollment at {request.fleet_url} was begun: the same command goes on with it" if request else ""
        if as_json:
            click.echo(json.dumps({"enrolled": False, "begun_at": request.fleet_url if request else None}))
        else:
            click.echo(f"not enrolled{begun}; see `edge enroll --help`")
        return 1
    about = _about(identity, store, clock)
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return 0
    for label, text in _lines(identity, about):
        click.echo(f"{label:12}  {text}")
    return 0


def _about(identity: Identity, store: Store, clock: SystemClock) -> dict[str, Any]:
    from edge.identity.certificates import sha256
    from edge.identity.moment import believed_s, best_guess_s

    now, known, life = clock.now(), store.known(), identity.life
    last = store.last_try()
    return {
        "enrolled": True,
        "node": identity.node,
        "fleet": identity.bootstrap.fleet if identity.bootstrap else None,
        "group": identity.bootstrap.group if identity.bootstrap else None,
        "url": identity.fleet_url,
        "generation": identity.generation,
        "directory": str(identity.directory),
        "certificate": {
            "serial": f"{identity.certificate.serial_number:x}",
            "sha256": sha256(identity.certificate),
            "issuer": identity.certificate.issuer.rfc4514_string(),
            "not_before": _when(life.begins_s),
            "not_after": _when(life.ends_s),
            "left_s": round(life.ends_s - best_guess_s(now, known)),
            "standing": life.standing(best_guess_s(now, known)),
        },
        "renewal": {
            "due": _when(life.due_s),
            "grace_s": identity.renewal.grace_s,
            "in_the_making": store.request("renewing") is not None,
            "failure": last.reason if last is not None and last.reason else None,
        },
        "roots_sha256": list(identity.anchors.pins),
        "clock_believed": believed_s(now, known) is not None,
    }


def _lines(identity: Identity, about: dict[str, Any]) -> list[tuple[str, str]]:
    certificate, renewal = about["certificate"], about["renewal"]
    left_s = certificate["left_s"]
    ends = f"{abs(left_s) / _DAY_S:.1f} days" + (" left" if left_s > 0 else " ago")
    fleet = f" of {about['fleet']}, group {about['group']}," if about["fleet"] else ""
    lines = [
        ("node", f"{about['node']}{fleet} at {about['url']}"),
        ("certificate", f"until {certificate['not_after']} ({ends}): {certificate['standing']}"),
        ("", f"serial {certificate['serial']}, from {certificate['issuer']}, generation {about['generation']}"),
        ("renewal", f"due {renewal['due']}, and until {renewal['grace_s'] / _DAY_S:g} days after the end"),
        *([("", f"the last try failed: {renewal['failure']}")] if renewal["failure"] else []),
        *(("trusts", f"root {pin}") for pin in about["roots_sha256"]),
        ("files", about["directory"]),
    ]
    if not about["clock_believed"]:
        lines.append(("clock", "not set, or not to be believed: certificates are checked without their dates"))
    return lines


@command.command()
def renew() -> int:
    """Get a new certificate, with a new key, now. Works beside a running node, which takes it up within seconds.

    Ends as `edge enroll` does: 0 done, 2 another fleet, 3 refused, 5 not reached, 1 anything else.
    """
    from edge.identity.moment import believed_s
    from edge.identity.renew import renew as get
    from edge.identity.trial import try_broker

    effective, store, clock = current(), _store(), _clock()
    mqtt = effective.settings.mqtt

    def dates_count() -> bool:
        return believed_s(clock.now(), store.known()) is not None

    try:
        identity = asyncio.run(get(store, clock, lambda place: try_broker(mqtt, effective.home, place, dates_count)))
    except EnrollmentFailed as failed:
        click.echo(f"edge: {failed.message}", err=True)
        return next((code for kind, code in CODES.items() if isinstance(failed, kind)), 1)
    click.echo(
        f"renewed   {identity.node}: certificate until {_when(identity.life.ends_s)}, generation {identity.generation}"
    )
    return 0


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> int:
    """Forget who this node is: its key, its certificate, and what the fleet told it. A running node starts anew without them."""
    store = _store()
    if not store.directory.exists():
        click.echo("not enrolled: there is nothing to forget")
        return 0
    if not yes:
        who = f"this node's identity in {store.directory}"
        click.confirm(f"Forget {who}? It cannot be brought back; a new token will be needed", abort=True)
    with store.locked():
        store.reset()
    click.echo(f"forgotten  key, certificate and settings of the enrollment in {store.directory}")
    click.echo("remains    edge.toml, API keys, models, the outbox with what was not acknowledged yet")
    click.echo("           the fleet still knows the node: whoever runs it should revoke it (edge fleet revoke)")
    return 0


def _store() -> Store:
    from edge.identity.owner import become, other_owner
    from edge.identity.store import Store

    home = default_home(os.environ)
    if (owner := other_owner(home)) is not None:
        become(owner, home)
    return Store(home)


def _clock() -> SystemClock:
    from edge.telemetry.clock import SystemClock

    return SystemClock(trusted=current().settings.mqtt.trust_clock)


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
