"""Outbox files of other versions: one that this program cannot read waits beside its own until the right one runs again."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.telemetry.outboxfile import FORM, OutboxFile
from edge.telemetry.records import Record
from edge.telemetry.repair import read_all

log = logging.getLogger(__name__)

_SLICE_RECORDS = 100


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that was put aside."""

    path: Path
    form: int


def put_aside(path: Path, form: int) -> Waiting:
    """Move the file and its log out of the way. One of that form that waits already is not written over: it keeps its name, and
    this one gets a number behind it. Raises OSError."""
    number, aside = 1, path.with_name(f"{path.name}.form-{form}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.form-{form}.{number}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    log.warning(
        "the outbox is of a newer version; it waits for that one beside a new one",
        extra={"event": "outbox_newer", "form": form, "file": str(aside)},
    )
    return Waiting(aside, form)


def waiting(path: Path) -> list[Waiting]:
    """The files beside `path` that this program can read, the oldest form first."""
    found = []
    for aside in sorted(path.parent.glob(f"{path.name}.form-*")):
        digits = aside.name.removeprefix(f"{path.name}.form-").partition(".")[0]
        if digits.isdigit() and int(digits) <= FORM:
            found.append(Waiting(aside, int(digits)))
    return sorted(found, key=lambda one: one.form)


def remember_commands(file: OutboxFile, of: Waiting) -> None:
    """What was carried out under the other version is not carried out again, as far as its file can be read. In a transaction."""
    for command_id, expires_s, answer in read_all(of.path).commands:
        file.put_command(command_id, expires_s, answer, 0.0)


def bring_back(file: OutboxFile, of: Waiting, make_room: Callable[[OutboxFile], None]) -> int:
    """Take the records of a file that waited into the one that is open, and remove it then. Returns how many came.

    They keep boot and number, which is how the fleet knows them, so that nothing is told twice; a boot that has no place here yet
    gets one behind those that have. Killed in the middle, it is done again. Raises sqlite3.Error, OSError.
    """
    saved = read_all(of.path)
    if not saved.boots:  # whoever wants to look can
        log.error(
            "nothing can be read of an outbox that waited", extra={"event": "outbox_damaged", "file": str(of.path)}
        )
        return 0
    by_boot: dict[str, list[Record]] = defaultdict(list)
    for row_id in sorted(saved.records):
        by_boot[saved.records[row_id].boot_id].append(saved.records[row_id])
    known = {boot.boot_id for boot in file.boots()}
    for boot in saved.boots:
        with file.transaction():
            number = file.boot_number(boot.boot_id)
            if boot.boot_id not in known:
                file.put_boot(type(boot)(number, boot.boot_id, boot.last_seq, boot.closed))
        records = by_boot[boot.boot_id]
        for start in range(0, len(records), _SLICE_RECORDS):
            with file.transaction():
                file.put(number, records[start : start + _SLICE_RECORDS])
            make_room(file)
    with file.transaction(durable=True):
        for command_id, expires_s, answer in saved.commands:
            file.put_command(command_id, expires_s, answer, 0.0)
    for suffix in ("-wal", "-shm", ""):
        Path(f"{of.path}{suffix}").unlink(missing_ok=True)
    log.info(
        "the outbox that waited for this version is taken back",
        extra={"event": "outbox_taken_back", "records": len(saved.records), "file": str(of.path)},
    )
    return len(saved.records)
