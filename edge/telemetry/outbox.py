"""The outbox: what was not yet acknowledged, in memory for a while and on disk, bounded in bytes and age.

Events are on the disk (fsync) when `append_event` returns. Metrics may wait in memory for `spill_s`, or until the next event is
written: flash wears, and most are acknowledged by then. What is on disk is always a beginning of a boot's sequence, so after a
crash one number says what is missing.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import Clock
from edge.telemetry.held import Held
from edge.telemetry.ledger import Ledger
from edge.telemetry.offsets import Offsets
from edge.telemetry.otherversions import Waiting, bring_back, remember_commands, waiting
from edge.telemetry.outboxdisk import OutboxDisk
from edge.telemetry.outboxfile import OutboxFile
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import Record, Sample, event_body
from edge.telemetry.repair import Saved, put_back, salvage
from edge.telemetry.room import Room
from edge.telemetry.stamp import Stamp

_TIDY_S, _AGE_S = 5.0, 600.0
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Bounds. `cap_bytes` is of the disk, the log beside the file included."""

    cap_bytes: int
    age_s: float
    spill_s: float


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How full it is. `dropped` counts since this process began, by kind; `merged` the metrics that were put into others."""

    bytes: int
    cap_bytes: int
    records: dict[str, int]
    in_memory: int
    oldest_age_s: float
    dropped: dict[str, int]
    merged: int
    on_disk: bool


class Outbox:
    """One process at a time has it open; any of its threads may call. What it is made of is guarded by its lock."""

    def __init__(self, directory: Path, limits: OutboxLimits, clock: Clock, alarms: Alarms) -> None:
        self.generation = 0
        """Changes when records' ids do: who walks through them has to begin again."""
        self._limits, self._clock, self._alarms = limits, clock, alarms
        self._lock = threading.RLock()
        self._held = Held(clock, limits.cap_bytes)
        self._ledger = Ledger(self._held)
        self._disk = OutboxDisk(directory, limits.cap_bytes, alarms, self._take_up, self._bound_memory)
        self._room = Room(limits.cap_bytes, alarms, self._ledger.is_kept, self._held.gap, self._dropping)
        self._offsets = Offsets(alarms)
        self._tidied_s = self._aged_s = -math.inf  # monotonic time is small while the machine has not run for long

    # --- begin and end ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the directory. Raises ConfigurationError if another process has it; a disk that does not work is an alarm, and the
        records stay in memory."""
        with self._lock:
            self._disk.open()

    def close(self) -> None:
        """Put what is in memory on disk, note that nothing is missing, and let the directory go."""
        with self._lock:
            if self._disk.file is not None:
                self._write(durable=True)
            if (file := self._disk.file) is not None:
                with contextlib.suppress(sqlite3.Error), file.transaction(durable=True):
                    file.put_boot(self._held.as_boot(self._held.last_seq, closed=not self._held))
            self._disk.close()

    def _take_up(self, file: OutboxFile, newer: Waiting | None) -> None:
        """What a newly opened file means: this boot gets its number, what waited for this version comes back, damage and crashes
        become gaps."""
        held, lost = self._held, None
        saved = salvage(self._disk.aside, file.path) if self._disk.aside is not None else None
        with file.transaction(durable=True):
            if saved is not None:
                lost = put_back(file, saved, self._ledger.settled, held.as_on_disk())
            if newer is not None:
                remember_commands(file, newer)
            held.boot = file.boot_number(held.boot_id)
        for one in waiting(file.path):
            bring_back(file, one, self._room.make)
        with file.transaction(durable=True):
            crashed = [boot for boot in file.boots() if not boot.closed and boot.boot_id != held.boot_id]
            for boot in crashed:
                file.put_boot(replace(boot, closed=True))
            file.forget_boots(held.boot)
            self._ledger.take_up(file)
            self._offsets.take_up(file)
        self.generation += 1
        self._ledger.forget_ids()
        if saved is not None and lost is not None:
            self._tell_damage(saved, lost)
        for boot in crashed:
            held.gap(boot.boot_id, Ranges([(boot.last_seq + 1, boot.last_seq + 1)]), "crash", open_ended=True)
        self._write(durable=True)

    def _tell_damage(self, saved: Saved, lost: dict[str, Ranges]) -> None:
        aside, self._disk.aside = self._disk.aside, None
        for boot_id, missing in lost.items():
            self._held.gap(boot_id, missing, "damage")
        fields = {"saved": len(saved.records), "missing": sum(len(m) for m in lost.values()), "file": str(aside)}
        self._held.hold("event", event_body("outbox_corrupt", fields))
        self._alarms.set(
            "outbox_corrupt",
            f"the outbox file was damaged: {len(saved.records)} records were saved, the rest is reported as gaps",
            f"look at the disk's health; the damaged file is {aside}; the alarm ends with the next start",
        )

    # --- records in ---------------------------------------------------------------------------------------------------

    @property
    def boot_id(self) -> str:
        """Of this life of the process."""
        return self._held.boot_id

    def append_event(self, name: str, fields: dict[str, Any]) -> Record:
        """On the disk when this returns, if the disk works."""
        with self._lock:
            record = self._held.hold("event", event_body(name, fields))
            self._write(durable=True)
            return record

    def append_metrics(self, sample: Sample, span_ns: int, stamp: Stamp | None = None) -> Record:
        """On the disk after `spill_s` at the latest, unless it is acknowledged sooner."""
        with self._lock:
            record = self._held.hold("metrics", sample.packed(), span_ns, stamp)
            self._bound_memory()
            return record

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Call it about once a second: spill, delete what was acknowledged, keep the bounds, try a failed disk again."""
        with self._lock:
            now_s = time.monotonic()
            self._offsets.learn(self._clock.now(), self._disk.file)
            self._disk.put_in_place()
            if not self._disk.writable:
                self._write(durable=True)
                return
            spill = self._held.since_s is not None and now_s - self._held.since_s >= self._limits.spill_s
            tidy = (self._ledger.untidy and now_s - self._tidied_s >= _TIDY_S) or self._ledger.crowded
            if spill or tidy:
                self._write(durable=False)
            if now_s - self._aged_s >= _AGE_S:
                self._aged_s = now_s
                self._drop_old()

    def spill(self) -> None:
        """Put all that is in memory on disk now."""
        with self._lock:
            self._write(durable=True)

    def _write(self, *, durable: bool) -> None:
        """Put what is held on disk and delete what was acknowledged."""
        if self._disk.resting:
            self._bound_memory()
            return
        held, file = self._held, self._disk.file
        if file is None:
            self._disk.reopen()
            return
        try:
            while True:
                self._ledger.tidy(file)
                some, size_bytes = held.slice()
                self._room.make(file, size_bytes)
                some = [record for record in some if record in held]  # the rest went in with a gap
                with file.transaction(durable=durable and bool(some)):
                    file.put(held.boot, some)
                    last_seq = some[-1].seq if len(some) < len(held) else held.last_seq
                    file.put_boot(held.as_boot(last_seq))
                held.written(some)
                self._room.make(file)
                if not held:
                    break
        except sqlite3.Error as error:
            self._disk.trouble(error)
            return
        held.since_s = None
        self._tidied_s = time.monotonic()
        self._disk.works()

    # --- bounds -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _dropping(self, file: OutboxFile) -> Iterator[None]:
        """The transaction in which records go, and the gaps that speak of them come: both, or neither. Gaps go in only with all
        that is in memory, if it is little: what is on disk is a beginning of the sequence."""
        held, put = self._held, False
        last_seq = held.last_seq
        try:
            with file.transaction(durable=True):
                yield
                put = len(held.slice()[0]) == len(held)
                if put:
                    file.put(held.boot, held)
                    file.put_boot(held.as_boot(held.last_seq))
        except BaseException:
            held.take_back(last_seq)
            raise
        if put:
            held.written(held)

    def _drop_old(self) -> None:
        now, file = self._clock.now(), self._disk.file
        if not now.synced or file is None:
            return
        try:
            self._ledger.tidy(file)
            self._room.drop_before(file, now.wall_ns - int(self._limits.age_s * _NS))
        except sqlite3.Error as error:
            self._disk.trouble(error)

    def _bound_memory(self) -> None:
        """Without a disk the same rules hold for memory."""
        if not self._disk.writable:
            self._held.shrink(self._room)

    # --- records out --------------------------------------------------------------------------------------------------

    def take(self, row_id: int, limit: int) -> list[tuple[int, Record]]:
        """As `after`, for sending: others give way before them, until they are acknowledged or let go."""
        with self._lock:
            found = self.after(row_id, limit)
            self._ledger.keep(i for i, _ in found)
            return found

    def let_go(self, row_id: int | None = None) -> None:
        """The session does not wait for that record any more; None: for none."""
        with self._lock:
            self._ledger.let_go(row_id)

    def after(self, row_id: int, limit: int) -> list[tuple[int, Record]]:
        """The next records that are not acknowledged, in the order in which they are told: (id, record)."""
        with self._lock:
            found: list[tuple[int, Record]] = []
            while self._disk.file is not None and len(found) < limit:
                try:
                    rows = self._disk.file.after(row_id, limit)
                except sqlite3.Error as error:
                    self._disk.trouble(error)
                    break
                if not rows:
                    break
                found += [(i, record) for i, record in rows if not self._ledger.is_settled(i, record)]
                row_id = rows[-1][0]
            for record in self._held:
                if len(found) >= limit:
                    break
                if (held_id := self._held.row_id(record.seq)) > row_id:
                    found.append((held_id, record))
            return self._offsets.right(found[:limit])

    @property
    def newest(self) -> int:
        """The id of the last record."""
        with self._lock:
            return self._held.row_id(self._held.last_seq)

    def floor(self, boot_id: str) -> int:
        """Nothing of that boot below this is still to come."""
        with self._lock:
            return self._ledger.floor(boot_id)

    def acknowledged(self, boot_id: str, seq: int) -> bool:
        """A sink has all of that boot up to `seq`. False if that cannot be: no such boot, or numbers that were not given yet."""
        with self._lock:
            return self._ledger.settle(boot_id, seq)

    def delivered(self, row_id: int, record: Record) -> bool:
        """The broker has that record, and that is all that is asked for (`mqtt.ack` puback). False: it became part of another one
        meanwhile, which is kept until it is delivered itself."""
        with self._lock:
            self._ledger.let_go(row_id)
            held, file = self._held.get(row_id), self._disk.file
            try:
                covers = held.covers if held is not None else file and file.covers(row_id)
            except sqlite3.Error as error:
                self._disk.trouble(error)
                return False
            if covers != record.covers:
                self.generation += 1
                return False
            if held is not None:
                self._held.acknowledged(held)
            else:
                self._ledger.done(row_id)
            return True

    def discard(self, row_id: int, record: Record, reason: str) -> None:
        """A record that can never be sent goes, as a gap."""
        with self._lock:
            if not self.delivered(row_id, record):
                return
            lost = record.covers | Ranges([(record.seq, record.seq)])
            self._room.dropped["metrics" if record.kind == "metrics" else "event"] += 1
            self._held.gap(record.boot_id, lost, reason)
            self._write(durable=True)

    # --- commands and account -----------------------------------------------------------------------------------------

    def command(self, command_id: str) -> tuple[bool, str | None]:
        """(whether that command was seen before, its answer if there is one)."""
        with self._lock:
            return self._disk.file.command(command_id) if self._disk.file is not None else (False, None)

    def remember_command(self, command_id: str, expires_s: float, answer: str | None, now_s: float) -> bool:
        """On disk when this returns True. False: it cannot be remembered, so it must not be carried out."""
        with self._lock:
            if (file := self._disk.file) is None:
                return False
            try:
                with file.transaction(durable=True):
                    file.put_command(command_id, expires_s, answer, now_s)
            except sqlite3.Error as error:
                self._disk.trouble(error)
                return False
            return True

    def pending(self) -> int:
        """How many records are not acknowledged."""
        with self._lock:
            return self._ledger.pending(self._disk.file)

    def stats(self) -> OutboxStats:
        """How full it is now."""
        with self._lock:
            now, counts, used_bytes, oldest = self._clock.now(), {}, 0, None
            if (file := self._disk.file) is not None:
                with contextlib.suppress(sqlite3.Error):
                    counts, used_bytes = file.counts(), file.used_bytes
                    oldest = file.oldest()
            for record in self._held:
                counts[record.kind] = counts.get(record.kind, 0) + 1
                oldest = oldest or record.stamp
            return OutboxStats(
                bytes=used_bytes + sum(r.size_bytes for r in self._held),
                cap_bytes=self._limits.cap_bytes,
                records=counts,
                in_memory=len(self._held),
                oldest_age_s=_age_s(oldest, now),
                dropped=dict(self._room.dropped),
                merged=self._room.merged,
                on_disk=self._disk.writable,
            )


def _age_s(stamp: Stamp | None, now: Stamp) -> float:
    if stamp is None:
        return 0.0
    same = stamp.kernel_boot == now.kernel_boot
    return max(0.0, (now.mono_ns - stamp.mono_ns if same else now.wall_ns - stamp.wall_ns) / _NS)
