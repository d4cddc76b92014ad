"""`edge fleet ca`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import orjson

from edge.cli.fleet.place import actor, fleet_option, json_option, opened
from edge.cli.listing import Commands
from edge.control.audit import note
from edge.control.authority import Authority, add_issuing, add_root, load_authority, retire_old
from edge.control.database import Database
from edge.control.enrollment import issuer_id
from edge.control.nodes import holders
from edge.control.settings import FleetHome
from edge.control.x509 import now_utc
from edge.durable import locked
from edge.errors import RecordConflict

_FEW = 10
_root_key = click.option("--root-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The root's key, where it lies now [default: in the directory].")  # fmt: skip  # noqa: E501


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def ca(context: click.Context) -> None:
    """Look at the certificate authority, and let a new one take over: new-root, wait, new-issuing, wait, retire."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@ca.command()
@fleet_option
@json_option
def show(home: FleetHome, as_json: bool) -> None:
    """Which roots and issuing authorities count, until when, and how many nodes hold certificates of each."""
    with opened(home) as (_, database):
        authority = load_authority(home)
        rows = _rows(authority, database)
    if as_json:
        click.echo(orjson.dumps({"pin": authority.pin, "authorities": rows}, option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        count = "" if row["nodes"] is None else f", {row['nodes']} active nodes"
        click.echo(f"{row['name']:12} until {row['ends']}{count}{'  <- signs' if row['signs'] else ''}")
    click.echo(f"tokens pin   {authority.pin}")


@ca.command("new-root")
@fleet_option
@_root_key
def new_root(home: FleetHome, root_key: Path | None) -> None:
    """Make a second root. Nodes learn of it when they renew; nothing else changes until `new-issuing`."""
    with opened(home) as (settings, database), locked(home.lock, "the authority"):
        number = add_root(home, settings.name, now_utc(), root_key)
        _note(database, "root_added", f"root {number}")
    key = home.ca / f"root-{number}.key"
    click.echo(f"made root {number}. Its key {key} is needed for `edge fleet ca new-issuing`; keep it safe.")
    click.echo("A running server notices; have gateways read gateway/ca.pem again.")


@ca.command("new-issuing")
@fleet_option
@_root_key
def new_issuing(home: FleetHome, root_key: Path | None) -> None:
    """Make an issuing authority under the newest root. It signs from now on; certificates of the one before stay good."""
    with opened(home) as (settings, database), locked(home.lock, "the authority"):
        number = add_issuing(home, settings.name, now_utc(), root_key)
        _note(database, "issuing_added", f"issuing {number}")
    click.echo(f"made issuing authority {number}; it signs from now on. A running server notices.")
    click.echo("When all nodes have renewed (`edge fleet ca show`): `edge fleet ca retire`.")


@ca.command()
@fleet_option
@click.option(
    "--force", is_flag=True, help="Also if nodes still hold certificates of what is retired; they must enroll anew."
)
def retire(home: FleetHome, force: bool) -> None:
    """Trust the old root and issuing authority no longer."""
    with opened(home) as (_, database), locked(home.lock, "the authority"):
        authority = load_authority(home)
        left = [node for old in authority.issuing[:-1] for node in _holders(database, old)]
        if left and not force:
            names = ", ".join(left[:_FEW]) + (" and others" if len(left) > _FEW else "")
            raise RecordConflict(
                f"{len(left)} active nodes hold certificates that would count no longer ({names}); wait until they have "
                "renewed, revoke them, or use --force"
            )
        gone = retire_old(home)
        _note(database, "authority_retired", ", ".join(gone))
    click.echo(f"retired {', '.join(gone)}. Restart the broker, and have gateways read gateway/ca.pem again.")


def _rows(authority: Authority, database: Database) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, root in zip(authority.state.roots, authority.roots, strict=True):
        ends = f"{root.not_valid_after_utc:%Y-%m-%d}"
        found.append({"name": f"root {number}", "ends": ends, "nodes": None, "signs": False})
    for number, issuing in zip(authority.state.issuing, authority.issuing, strict=True):
        signs = number == authority.state.issuing[-1]
        ends = f"{issuing.not_valid_after_utc:%Y-%m-%d}"
        found.append(
            {"name": f"issuing {number}", "ends": ends, "nodes": len(_holders(database, issuing)), "signs": signs}
        )
    return found


def _holders(database: Database, issuing: Any) -> list[str]:
    with database.read() as session:
        return holders(session, issuer_id(issuing), time.time())


def _note(database: Database, action: str, what: str) -> None:
    with database.write() as session:
        note(session, time.time(), actor(), action, what)
