"""`edge fleet nodes|approve|revoke|audit`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import orjson

from edge.cli.fleet.place import actor, ago, fleet_option, json_option, moment, opened, table
from edge.control.audit import entries
from edge.control.authority import load_authority
from edge.control.enforcement import enforce
from edge.control.nodes import STATES, NodeRow, node_rows
from edge.control.nodes import approve as approve_node
from edge.control.nodes import revoke as revoke_node
from edge.control.settings import FleetHome
from edge.errors import NodeUnreachable, RecordConflict

_PAGE = 500


@click.command()
@fleet_option
@click.option("--state", type=click.Choice(STATES), help="Only those.")
@click.option("--group", help="Only those of a group.")
@json_option
def nodes(home: FleetHome, state: str | None, group: str | None, as_json: bool) -> None:
    """List the nodes: state, health as they told it, figures of the last hour, end of the certificate."""
    rows: list[NodeRow] = []
    with opened(home) as (_, database), database.read() as session:
        while page := node_rows(session, after=rows[-1].id if rows else None, limit=_PAGE, state=state, group=group):
            rows += page
    if as_json:
        click.echo(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2))
        return
    if not rows:
        click.echo("there are no such nodes; `edge fleet token create` makes a token to enroll one", err=True)
        return
    now_s = time.time()
    table(
        ("node", "group", "state", "health", "version", "models", "in SLO", "to fleet", "last seen", "certificate ends"),
        [
            (
                r.id, r.group, r.state, r.health if r.state == "active" else "-", r.version or "-",
                ",".join(r.models) or "-", _share(r.slo_attainment), _share(r.fallback_rate), ago(r.last_seen_s, now_s),
                moment(r.certificate_ends_s),
            )
            for r in rows
        ],
    )  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@fleet_option
@json_option
def approve(names: tuple[str, ...], home: FleetHome, as_json: bool) -> None:
    """Let pending NODEs in. They ask again by themselves."""
    _change(home, names, approve_node, "approved", as_json)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@fleet_option
@json_option
def revoke(names: tuple[str, ...], home: FleetHome, as_json: bool) -> None:
    """Shut NODEs out, for good: no certificate, no topic at the broker, no way through a gateway."""
    _change(home, names, revoke_node, "revoked", as_json)


def _change(
    home: FleetHome,
    names: tuple[str, ...],
    change: Callable[[Any, str, float, str], str | None],
    word: str,
    as_json: bool,
) -> None:
    """All or none."""
    with opened(home) as (settings, database):
        with database.write() as session:
            for name in names:
                if (problem := change(session, name, time.time(), actor())) is not None:
                    raise RecordConflict(problem)
        done = enforce(home, settings, load_authority(home), database, set())
        if as_json:
            click.echo(
                orjson.dumps({"nodes": names, "state": word, "problems": [p for p in (done.broker, done.gateway) if p]})
            )
        else:
            click.echo(f"{word} {', '.join(names)}")
        for who, problem in (("broker", done.broker), ("gateway", done.gateway)):
            if problem:
                raise NodeUnreachable(
                    f"the {who} could not be told ({problem}); a running `edge fleet serve` tries again"
                )


@click.command()
@fleet_option
@click.option("--about", metavar="NAME", help="Only what was done to that node or token.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many lines, the newest first.")  # fmt: skip  # noqa: E501
@json_option
def audit(home: FleetHome, about: str | None, limit: int, as_json: bool) -> None:
    """Show who did what."""
    with opened(home) as (_, database), database.read() as session:
        found = entries(session, before=None, subject=about, limit=limit)
    if as_json:
        click.echo(orjson.dumps([asdict(entry) for entry in found], option=orjson.OPT_INDENT_2))
        return
    table(("when", "who", "did", "to", ""), [(moment(e.at_s), e.actor, e.action, e.subject, e.detail) for e in found])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
