"""A damaged outbox: what can be read of it, and what is missing then."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge.telemetry.outboxfile import COLUMNS, PAGE_BYTES, SHIFT, Boot, OutboxFile, Row, record_of
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import Record

_MOST_PROBES = 20_000


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, as against a disk that is full or not to be written."""
    text = str(error)
    return any(sign in text for sign in ("malformed", "not a database", "no such table", "unsupported file format"))


def set_aside(path: Path) -> Path:
    """Move a damaged file and its log out of the way; only the newest is kept. Returns where it lies. Raises OSError."""
    for old in path.parent.glob(f"{path.name}.damaged-*"):
        old.unlink()
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


@dataclass(frozen=True, slots=True)
class Saved:
    """What could be read of a damaged file."""

    records: dict[int, Record]
    """By id."""
    boots: list[Boot]
    commands: list[tuple[str, float, str | None]]


def salvage(aside: Path, fresh: Path) -> Saved:
    """Read what can be read. Where the first page is gone, that of `fresh`, an empty file of the same making, is put in its
    place in a
    copy: it says only where the tables begin."""
    saved = read_all(aside)
    if saved.records or saved.boots:
        return saved
    copy = aside.with_name(f"{aside.name}.copy")
    try:
        data = bytearray(aside.read_bytes())
        page = bytearray(fresh.read_bytes()[:PAGE_BYTES])
        if len(page) == PAGE_BYTES and len(data) > PAGE_BYTES:
            page[24:28], page[92:96] = b"\0\0\0\1", b"\0\0\0\0"  # the size in the header does not count
            page[32:40] = bytes(8)  # nor do free pages
            data[:PAGE_BYTES] = page
            copy.write_bytes(data)
            saved = read_all(copy)
    except OSError:
        pass
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
    return saved


def read_all(path: Path) -> Saved:
    """All that can be read of a file, damaged or not."""
    saved = Saved({}, [], [])
    try:
        db = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return saved
    with contextlib.closing(db):
        _read_records(db, saved.records)
        with contextlib.suppress(sqlite3.Error):
            for number, boot_id, last, closed in db.execute("SELECT boot, boot_id, last_seq, closed FROM boots"):
                saved.boots.append(Boot(number, boot_id, last, bool(closed)))
        with contextlib.suppress(sqlite3.Error):
            saved.commands.extend(db.execute("SELECT id, expires_s, answer FROM commands"))
    return saved


def _read_records(db: sqlite3.Connection, found: dict[int, Record]) -> None:
    """From both ends up to the damage, and then what lies between, one by one."""
    ends = []
    for order in ("ASC", "DESC"):
        last = None
        try:
            for row in db.execute(f"SELECT {COLUMNS} FROM records ORDER BY id {order}"):
                last = _keep(row, found) or last
            return  # no damage here
        except sqlite3.Error:
            ends.append(last)
    if ends[0] is None or ends[1] is None or ends[0] >> SHIFT != ends[1] >> SHIFT:
        return
    for row_id in range(ends[0] + 1, min(ends[1], ends[0] + _MOST_PROBES)):
        with contextlib.suppress(sqlite3.Error):
            row = db.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (row_id,)).fetchone()
            if row is not None:
                _keep(row, found)


def _keep(row: Row, found: dict[int, Record]) -> int:
    """Put the row there if its content is whole. Returns its id, 0 if it is not."""
    try:
        found[row[0]] = record_of(row)
    except (ValueError, TypeError, AttributeError):
        return 0
    return row[0]


def put_back(file: OutboxFile, saved: Saved, settled: Mapping[str, int], own: Boot | None) -> dict[str, Ranges]:
    """Into a new file, in a transaction. `settled` says by boot up to where all was acknowledged, `own` what is known of the
    boot that
    runs. Returns by boot what is missing, or was acknowledged: a damaged file cannot tell."""
    boots = {boot.boot_id: boot for boot in saved.boots}
    there: dict[str, Ranges] = {}
    for row_id, record in saved.records.items():
        known = boots.get(record.boot_id, Boot(row_id >> SHIFT, record.boot_id, 0, closed=False))
        boots[record.boot_id] = replace(known, last_seq=max(known.last_seq, record.seq))
        found = there.get(record.boot_id, Ranges()) | record.covers
        found.add(record.seq)
        there[record.boot_id] = found
        file.put(row_id >> SHIFT, [record])
    if own is not None:
        boots[own.boot_id] = own
    for command_id, expires_s, answer in saved.commands:
        file.put_command(command_id, expires_s, answer, 0.0)
    lost = {}
    for boot in boots.values():
        file.put_boot(boot)
        low = settled.get(boot.boot_id, 0) + 1
        if missing := _missing(there.get(boot.boot_id, Ranges()), low, boot.last_seq):
            lost[boot.boot_id] = missing
    return lost


def _missing(there: Ranges, low: int, last: int) -> Ranges:
    """What of `low` to `last` is not there."""
    found = Ranges()
    for first, end in there:
        found.add(low, min(first - 1, last))
        low = max(low, end + 1)
    found.add(low, last)
    return found
