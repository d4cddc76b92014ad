"""`edge outbox`."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from datetime import UTC, datetime

import click

from edge import quantities
from edge.cli.flags import current
from edge.cli.listing import Commands
from edge.errors import ConfigurationError, NodeUnreachable
from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import SystemClock
from edge.telemetry.node import NodePresence, Place, place_of
from edge.telemetry.outbox import Outbox
from edge.telemetry.outboxdisk import FILE
from edge.telemetry.outboxfile import OutboxReader
from edge.telemetry.records import Record

_LOOK_S = 0.1


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Look at what was not yet acknowledged by the fleet, or send it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def stats(as_json: bool) -> None:
    """Say how full the outbox is. Works beside a running node: what that has in memory (mqtt.spill_s) is not counted."""
    with _reader() as reader:
        counts, oldest, size_bytes = reader.counts(), reader.oldest(), reader.size_bytes
    age_s = 0.0 if oldest is None else max(0.0, time.time() - oldest.wall_ns / 1e9)
    if as_json:
        click.echo(json.dumps({"records": counts, "bytes": size_bytes, "oldest_age_s": round(age_s, 1)}))
        return
    kinds = ", ".join(
        quantities.count(n, {"event": "event", "gap": "gap"}.get(k, "metrics record")) for k, n in counts.items()
    )
    click.echo(f"kept      {kinds or 'nothing'}")
    click.echo(f"on disk   {quantities.size(size_bytes)} of {quantities.mib(_place().limits.cap_bytes)}")
    if counts:
        click.echo(f"oldest    {age_s:,.0f} s old")


@command.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many records.")
@click.option("--json", "as_json", is_flag=True, help="Each record as a JSON object on a line, whole.")
def peek(limit: int, as_json: bool) -> None:
    """Show the records that are sent next, the oldest first. Nothing is changed."""
    with _reader() as reader:
        found = reader.first(limit)
    for record in found:
        click.echo(_whole(record) if as_json else _line(record))
    if not found:
        click.echo("the outbox is empty", err=True)


@command.command()
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), default=60.0, show_default=True, metavar="SECONDS", help="How long to try.")  # fmt: skip  # noqa: E501
def drain(timeout_s: float) -> None:
    """Send what a stopped node has left, and wait until all is acknowledged. A running node does that by itself."""
    from edge.enrolled import standing_of
    from edge.identity.identity import IdentityDamaged
    from edge.telemetry.uplink import Uplink

    standing = standing_of(current(), os.environ)
    if standing.keeps:
        raise IdentityDamaged(standing.damage)
    place = place_of(standing.effective.settings.mqtt, standing.effective.home)
    if not place.config.address.url:
        raise ConfigurationError("mqtt.url is not set, so there is nowhere to send to")
    _require(place)
    clock, alarms = SystemClock(trusted=standing.effective.settings.mqtt.trust_clock), Alarms()
    outbox = Outbox(place.directory, place.limits, clock, alarms)
    outbox.open()
    uplink = Uplink(outbox, alarms, place.config, NodePresence(place.config.node, outbox.boot_id))
    uplink.start()
    try:
        before, deadline_s = outbox.pending(), time.monotonic() + timeout_s
        while (left := outbox.pending()) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
        reason = uplink.last_failure or next((alarm["text"] for alarm in alarms.active()), "nothing acknowledges them")
    finally:
        uplink.stop(3.0)
        outbox.close()
    if left:
        raise NodeUnreachable(f"{left} of {before} records are still here after {timeout_s:g} s: {reason}")
    click.echo(f"sent {quantities.count(before, 'record')}, all acknowledged")


def _place() -> Place:
    effective = current()
    return place_of(effective.settings.mqtt, effective.home)


def _require(place: Place) -> None:
    if not (place.directory / FILE).exists():
        raise ConfigurationError(
            f"there is no outbox in {place.directory}: no node with mqtt.url has run on this EDGE_HOME"
        )


def _reader() -> OutboxReader:
    place = _place()
    _require(place)
    try:
        return OutboxReader(place.directory / FILE)
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"{place.directory / FILE} cannot be read ({error}); the next start of the node saves what can be saved"
        ) from None


def _when(record: Record) -> str:
    mark = "" if record.stamp.synced else " (clock not set)"
    return datetime.fromtimestamp(record.stamp.wall_ns / 1e9, UTC).isoformat(timespec="seconds")[:19] + "Z" + mark


def _line(record: Record) -> str:
    head = f"{_when(record)}  {record.boot_id[:8]}/{record.seq}"
    if record.kind == "metrics":
        shapes = Counter(
            {"counters": len(record.body["c"]), "gauges": len(record.body["g"]), "histograms": len(record.body["h"])}
        )
        merged = f", {len(record.covers) + 1} intervals in one" if record.covers else ""
        return f"{head}  metrics over {record.span_ns / 1e9:,.0f} s: {', '.join(f'{n} {k}' for k, n in shapes.items())}{merged}"
    if record.kind == "gap":
        return f"{head}  gap: {record.body['lost']} of {record.body['of'][:8]}, {record.body['reason']}"
    fields = " ".join(f"{key}={value}" for key, value in record.body["fields"].items())
    return f"{head}  {record.body['event']} {fields}".rstrip()


def _whole(record: Record) -> str:
    about = {"boot_id": record.boot_id, "seq": record.seq, "kind": record.kind, "time": record.stamp.wall_ns / 1e9}
    return json.dumps({**about, "span_s": record.span_ns / 1e9, "covers": str(record.covers), "body": record.body})
