"""`edge keys`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from edge.api.auth import SCOPES, KeyStore, Scope
from edge.cli.flags import current
from edge.cli.listing import Commands
from edge.errors import ConfigurationError

_LONGEST_NAME = 64


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Create, list and revoke API keys. A running node notices at once."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    metavar="SCOPE",
    multiple=True,
    default=("inference",),
    show_default=True,
    help=f"What the key may be used for: {', '.join(SCOPES[:-1])} or {SCOPES[-1]}. May be repeated.",
)
@click.option(
    "--requests-per-minute", type=click.IntRange(min=1), metavar="N", help="Most requests a minute [default: no limit]."
)
def create(name: str, scopes: tuple[Scope, ...], requests_per_minute: int | None) -> None:
    """Make a key for NAME and print it. It is kept as a hash and cannot be shown again."""
    if not name.isprintable() or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise click.UsageError(f"NAME must be 1 to {_LONGEST_NAME} printable characters")
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    secret = _store().create(
        name.strip(), scopes=tuple(dict.fromkeys(scopes)), requests_per_minute=requests_per_minute, created=now
    )
    click.echo(secret)
    click.echo("Keep it now: it is not shown again. Send it as `Authorization: Bearer KEY`.", err=True)


@command.command("list")
def list_keys() -> None:
    """Show the keys that there are."""
    keys = _store().all()
    if not keys:
        click.echo("there are no keys; `edge keys create NAME` makes one", err=True)
        return
    width = max(len(key.name) for key in keys)
    for key in keys:
        rate = "no limit" if key.requests_per_minute is None else f"{key.requests_per_minute}/min"
        click.echo(f"{key.name:{width}}  {key.hint}...  {key.created}  {','.join(key.scopes)}  {rate}")


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Drop the key of NAME. Requests with it are refused from now on."""
    _store().revoke(name)
    click.echo(f"revoked {name}")


def _store() -> KeyStore:
    effective = current()
    try:
        effective.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{effective.home} cannot be made ({error.strerror}); choose another directory with EDGE_HOME or --home"
        ) from None
    return KeyStore(effective.keys_file)
