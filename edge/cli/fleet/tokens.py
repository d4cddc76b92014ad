"""`edge fleet token`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click
import orjson

from edge.cli.fleet.place import Duration, actor, fleet_option, json_option, moment, opened, table
from edge.cli.listing import Commands
from edge.control.authority import load_authority
from edge.control.settings import FleetHome
from edge.control.tokens import TokenRow, TokenWish, create_token, revoke_token, token_rows
from edge.errors import NoSuchRecord

_PAGE = 500


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def token(context: click.Context) -> None:
    """Create, list and revoke enrollment tokens."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@token.command()
@fleet_option
@click.option("--ttl", "life_s", type=Duration(), default="24h", show_default=True, help="How long a first use is possible: 30m, 24h, 7d.")  # fmt: skip  # noqa: E501
@click.option("--uses", type=int, default=1, show_default=True, help="How many boxes may come in with it.")
@click.option("--group", default="default", show_default=True, help="Group of those nodes; part of their topics.")
@click.option("--label", default="", help="What the node is called [default: as it calls itself].")
@click.option("--approval", is_flag=True, help="Nodes wait until somebody approves them.")
@json_option
def create(home: FleetHome, life_s: float, uses: int, group: str, label: str, approval: bool, as_json: bool) -> None:
    """Make a token and print it. It is kept as a hash and cannot be shown again."""
    with opened(home) as (settings, database):
        pin = load_authority(home).pin
        with database.write() as session:
            made = create_token(session, TokenWish(group, label, uses, life_s, approval), pin, time.time(), actor())
    url = settings.nodes_url
    if as_json:
        click.echo(orjson.dumps({"id": made.id, "token": str(made), "url": url}))
        return
    click.echo(str(made))
    if sys.stdout.isatty():  # else it goes into a command or a file
        click.echo(f"On the box: edge enroll --fleet {url} --token TOKEN", err=True)


@token.command("list")
@fleet_option
@json_option
def list_tokens(home: FleetHome, as_json: bool) -> None:
    """Show the tokens that there are, without their secrets."""
    rows: list[TokenRow] = []
    with opened(home) as (_, database), database.read() as session:
        while page := token_rows(session, time.time(), after=rows[-1].id if rows else None, limit=_PAGE):
            rows += page
    if as_json:
        click.echo(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2))
        return
    if not rows:
        click.echo("there are no tokens; `edge fleet token create` makes one", err=True)
        return
    table(
        ("id", "state", "used", "group", "label", "approval", "ends"),
        [
            (
                r.id,
                r.state,
                f"{r.used}/{r.uses}",
                r.group,
                r.label or "-",
                "asked" if r.approval else "-",
                moment(r.expires_s),
            )
            for r in rows
        ],
    )


@token.command()
@click.argument("token_id")
@fleet_option
def revoke(token_id: str, home: FleetHome) -> None:
    """Let no further box in with TOKEN_ID. Nodes that came with it stay."""
    with opened(home) as (_, database), database.write() as session:
        if not revoke_token(session, token_id, time.time(), actor()):
            raise NoSuchRecord(f"there is no token {token_id!r}; `edge fleet token list` shows them")
    click.echo(f"revoked {token_id}")
