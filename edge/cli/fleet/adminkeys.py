"""`edge fleet admin-key`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click

from edge.api.auth import KeyStore
from edge.cli.fleet.place import actor, fleet_option, opened
from edge.cli.listing import Commands
from edge.control.audit import note
from edge.control.settings import FleetHome

_LONGEST_NAME = 64


@click.group("admin-key", cls=Commands, invoke_without_command=True)
@click.pass_context
def admin_key(context: click.Context) -> None:
    """Create, list and revoke keys of those who may administer. A running server notices at once."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@admin_key.command()
@click.argument("name")
@fleet_option
def create(name: str, home: FleetHome) -> None:
    """Make a key for NAME and print it. It is kept as a hash and cannot be shown again."""
    if not name.isprintable() or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise click.UsageError(f"NAME must be 1 to {_LONGEST_NAME} printable characters")
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with opened(home) as (_, database):
        secret = KeyStore(home.admin_keys).create(
            name.strip(), scopes=("admin",), requests_per_minute=None, created=now
        )
        with database.write() as session:
            note(session, time.time(), actor(), "admin_key_created", name.strip())
    click.echo(secret)
    click.echo("Keep it now: it is not shown again.", err=True)


@admin_key.command("list")
@fleet_option
def list_keys(home: FleetHome) -> None:
    """Show the keys that there are."""
    with opened(home):
        keys = KeyStore(home.admin_keys).all()
    for key in keys:
        click.echo(f"{key.name}  {key.hint}...  {key.created}")
    if not keys:
        click.echo("there are no admin keys; `edge fleet admin-key create NAME` makes one", err=True)


@admin_key.command()
@click.argument("name")
@fleet_option
def revoke(name: str, home: FleetHome) -> None:
    """Drop the key of NAME, and the sessions that it opened."""
    with opened(home) as (_, database):
        KeyStore(home.admin_keys).revoke(name)
        with database.write() as session:
            note(session, time.time(), actor(), "admin_key_revoked", name)
    click.echo(f"revoked {name}")
