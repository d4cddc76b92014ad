"""The outbox: what was not yet acknowledged, in memory for a while and on disk, bounded in bytes and age.

Events are on the disk (fsync) when `append_event` returns. Metrics may wait in memory for `spill_s`, or until the next event is
written: flash wears, and most are acknowledged by then. What is on disk is always a beginning of a boot's sequence, so after a
crash one number says what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import ConfigurationError
from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import Clock, new_boot_id
from edge.telemetry.otherversions import Waiting, bring_back, put_aside, remember_commands, waiting
from edge.telemetry.outboxfile import SHIFT, Boot, NewerOutbox, OutboxFile
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import Kind, Record, Sample, event_body, gap_body, set_right
from edge.telemetry.repair import Saved, is_damage, put_back, salvage, set_aside
from edge.telemetry.room import Room
from edge.telemetry.stamp import Stamp

log = logging.getLogger(__name__)

FILE, LOCK = "outbox.db", "outbox.lock"
_NOWHERE = 1 << 22
"""The boot's number while there is no file to take one from: after all that a file may hold."""
_SLICE_RECORDS, _SLICES = 100, 32
"""What is written at once: so many records, and no more than that part of the bound, or it would not be kept."""
_RETRY_S, _TIDY_S, _AGE_S = 10.0, 5.0, 600.0
_TIDY_KEYS = 500
_DAMAGE_S = 60.0
"""A file that is damaged again so soon is not repaired once more: the disk itself is bad."""
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
    """Owner of EDGE_HOME/outbox. One process at a time has it open; any of its threads may call."""

    def __init__(self, directory: Path, limits: OutboxLimits, clock: Clock, alarms: Alarms) -> None:
        self.boot_id = new_boot_id()
        self.generation = 0
        """Changes when records' ids do: who walks through them has to begin again."""
        self._directory, self._limits, self._clock, self._alarms = directory, limits, clock, alarms
        self._lock = threading.RLock()
        self._lock_file: int | None = None
        self._file: OutboxFile | None = None
        self._writable = True
        """False after the disk failed, until it is tried again."""
        self._aside: Path | None = None
        self._boot = _NOWHERE
        self._numbers: dict[str, int] = {}
        """Boot ids of the file, and this one, with their numbers."""
        self._last_seqs: dict[str, int] = {}
        """Of earlier boots: the last number that is known of each."""
        self._last_seq = 0
        self._held: dict[int, Record] = {}
        """Records of this boot that are not on disk, by seq."""
        self._held_since_s: float | None = None
        self._settled: dict[str, int] = {}
        """By boot, up to where all is acknowledged."""
        self._floors: dict[str, int] = {}
        self._done: set[int] = set()
        """Ids acknowledged one by one whose rows are still there."""
        self._kept: set[int] = set()
        """Ids that a session has in its hands now. Others are merged first; a merged record is sent again."""
        self._untidy = False
        self._tidied_s = self._aged_s = self._retry_s = 0.0
        self._damaged_s = -_DAMAGE_S
        self._offsets_ns: dict[str, int] = {}
        self._room = Room(limits.cap_bytes, alarms, lambda row_id: row_id in self._kept, self._gap, self._dropping)

    # --- begin and end ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the directory. Raises ConfigurationError if another process has it; a disk that does not work is an alarm, and the
        records stay in memory."""
        with self._lock:
            try:
                self._take_directory()
            except OSError as error:
                self._trouble(error)
            self._reopen()

    def _take_directory(self) -> None:
        """Make it and lock it. Raises ConfigurationError if another process has it, and OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._let_directory_go()
        self._lock_file = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._let_directory_go()
            raise ConfigurationError(
                f"the outbox in {self._directory} is in use: a node runs on this EDGE_HOME and sends by itself; stop "
                "it first, or give this one another EDGE_HOME"
            ) from None
        except OSError as error:  # file systems without locks
            log.warning(
                "the outbox cannot be locked; see that only one node uses this EDGE_HOME",
                extra={"event": "outbox_unlocked", "reason": str(error), "directory": str(self._directory)},
            )

    def _let_directory_go(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def close(self) -> None:
        """Put what is in memory on disk, note that nothing is missing, and let the directory go."""
        with self._lock:
            if self._file is not None:
                self._write(durable=True)
            if self._file is not None:
                with contextlib.suppress(sqlite3.Error), self._file.transaction(durable=True):
                    self._file.put_boot(Boot(self._boot, self.boot_id, self._last_seq, closed=not self._held))
                self._file.close()
                self._file = None
            self._let_directory_go()

    def _reopen(self) -> None:
        """Open the file, or set it aside and make a new one. On failure records stay in memory until the next try."""
        path = self._directory / FILE
        try:
            newer = None
            try:
                self._file = OutboxFile(path, self._limits.cap_bytes)
            except NewerOutbox as error:
                newer = put_aside(path, error.form)
                self._file = OutboxFile(path, self._limits.cap_bytes)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                log.error("the outbox is damaged", extra={"event": "outbox_damaged", "reason": str(error)})
                self._aside = set_aside(path)
                self._file = OutboxFile(path, self._limits.cap_bytes)
            self._take_up(newer)
        except (sqlite3.Error, OSError) as error:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._trouble(error)

    def _take_up(self, newer: Waiting | None) -> None:
        """What a newly opened file means: this boot gets its number, what waited for this version comes back, damage and crashes
        become gaps."""
        assert self._file is not None
        file, lost = self._file, None
        saved = salvage(self._aside, file.path) if self._aside is not None else None
        with file.transaction(durable=True):
            if saved is not None:
                lost = put_back(file, saved, self._settled, self._own())
            if newer is not None:
                remember_commands(file, newer)
            self._boot = file.boot_number(self.boot_id)
        for one in waiting(file.path):
            bring_back(file, one, self._room.make)
        with file.transaction(durable=True):
            crashed = [boot for boot in file.boots() if not boot.closed and boot.boot_id != self.boot_id]
            for boot in crashed:
                file.put_boot(replace(boot, closed=True))
            file.forget_boots(self._boot)
            self._numbers = {boot.boot_id: boot.number for boot in file.boots()}
            for boot in file.boots():
                self._last_seqs[boot.boot_id] = boot.last_seq
                self._floors[boot.boot_id] = file.floor(boot.number) or boot.last_seq + 1
            self._offsets_ns = {k: int(v) for k, v in file.meta("offset:").items()}
        self.generation += 1
        self._kept.clear()
        self._done.clear()
        if saved is not None and lost is not None:
            self._tell_damage(saved, lost)
        for boot in crashed:
            self._gap(boot.boot_id, Ranges([(boot.last_seq + 1, boot.last_seq + 1)]), "crash", open_ended=True)
        self._write(durable=True)

    # --- records in ---------------------------------------------------------------------------------------------------

    def append_event(self, name: str, fields: dict[str, Any]) -> Record:
        """On the disk when this returns, if the disk works."""
        with self._lock:
            record = self._hold("event", event_body(name, fields), 0, self._clock.now())
            self._write(durable=True)
            return record

    def append_metrics(self, sample: Sample, span_ns: int, stamp: Stamp | None = None) -> Record:
        """On the disk after `spill_s` at the latest, unless it is acknowledged sooner."""
        with self._lock:
            record = self._hold("metrics", sample.packed(), span_ns, stamp or self._clock.now())
            self._bound_memory()
            return record

    def _hold(self, kind: Kind, body: dict[str, Any], span_ns: int, stamp: Stamp) -> Record:
        self._last_seq += 1
        record = Record(self.boot_id, self._last_seq, kind, stamp, body, span_ns)
        self._held[record.seq] = record
        if self._held_since_s is None:
            self._held_since_s = time.monotonic()
        return record

    def _gap(self, boot_id: str, lost: Ranges, reason: str, *, open_ended: bool = False) -> None:
        for part in lost.split(MOST_SPANS):
            self._hold("gap", gap_body(boot_id, part, reason, open_ended=open_ended), 0, self._clock.now())
        fields = {"event": "telemetry_gap", "of": boot_id, "lost": str(lost)[:200], "reason": reason}
        log.warning("telemetry has a gap", extra=fields)

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Call it about once a second: spill, delete what was acknowledged, keep the bounds, try a failed disk again."""
        with self._lock:
            now_s = time.monotonic()
            self._learn_time()
            if self._file is not None and not self._file.in_place:
                self._put_in_place(self._file)
            if not self._writable:
                self._write(durable=True)
                return
            spill = self._held_since_s is not None and now_s - self._held_since_s >= self._limits.spill_s
            tidy = (self._untidy and now_s - self._tidied_s >= _TIDY_S) or len(self._done) >= _TIDY_KEYS
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
        if not self._writable and time.monotonic() < self._retry_s:
            self._bound_memory()
            return
        if self._file is None:
            self._reopen()
            return
        try:
            while True:
                self._tidy(self._file)
                some, size_bytes = self._slice()
                self._room.make(self._file, size_bytes)
                some = [record for record in some if record.seq in self._held]  # the rest went in with a gap
                with self._file.transaction(durable=durable and bool(some)):
                    self._file.put(self._boot, some)
                    last = some[-1].seq if len(some) < len(self._held) else self._last_seq
                    self._file.put_boot(Boot(self._boot, self.boot_id, last, closed=False))
                for record in some:
                    del self._held[record.seq]
                self._room.make(self._file)
                if not self._held:
                    break
        except sqlite3.Error as error:
            self._trouble(error)
            return
        self._writable = True
        self._held_since_s = None
        self._tidied_s = time.monotonic()
        self._alarms.clear("outbox_disk")

    def _slice(self) -> tuple[list[Record], int]:
        """What of the records in memory is written next, the oldest first, and its size."""
        found: list[Record] = []
        size_bytes = 0
        for record in self._held.values():
            found.append(record)
            size_bytes += record.size_bytes
            if len(found) >= _SLICE_RECORDS or size_bytes >= self._limits.cap_bytes // _SLICES:
                break
        return found, size_bytes

    def _tidy(self, file: OutboxFile) -> None:
        """Delete what was acknowledged, before anything is merged or dropped to make room. It is not shown any more anyhow."""
        if not self._untidy:
            return
        with file.transaction():
            for boot_id, seq in self._settled.items():
                if boot_id in self._numbers:
                    file.remove_through(self._numbers[boot_id], seq)
            file.remove(self._done)
        self._done.clear()
        self._untidy = False

    def _trouble(self, error: sqlite3.Error | OSError) -> None:
        """The disk does not do its part. Damage is repaired at once; the rest is tried again later."""
        damaged = isinstance(error, sqlite3.Error) and is_damage(error) and self._file is not None
        if damaged and time.monotonic() - self._damaged_s > _DAMAGE_S:
            assert self._file is not None
            self._damaged_s = time.monotonic()
            log.error("the outbox is damaged", extra={"event": "outbox_damaged", "reason": str(error)})
            self._file.close()
            self._file = None
            try:
                self._aside = set_aside(self._directory / FILE)
            except OSError as refused:
                error = refused
            else:
                self._reopen()
                return
        if damaged and self._file is not None:
            self._file.close()
            self._file = None
        self._writable = False  # an open file can still be read
        self._retry_s = time.monotonic() + _RETRY_S
        self._alarms.set(
            "outbox_disk",
            f"the outbox cannot be written ({error}); events and metrics stay in memory and a crash would lose them",
            f"free space on the disk of {self._directory}, or see why it cannot be written; it is tried again by itself",
        )
        self._bound_memory()

    def _put_in_place(self, file: OutboxFile) -> None:
        """Somebody removed the open file, or put another one over it. What it holds can still be read, until it is closed."""
        path, copy = self._directory / FILE, self._directory / f"{FILE}.copy"
        log.error("the outbox was removed while the node runs", extra={"event": "outbox_removed", "file": str(path)})
        saved = True
        try:
            self._take_directory()
            file.copy_to(copy)
        except (sqlite3.Error, OSError, ConfigurationError) as error:
            saved = False
            log.error("what the outbox held is lost", extra={"event": "outbox_removed", "reason": str(error)})
        try:
            set_aside(path)  # before closing, which deletes the log of whatever is there by then
            file.close()
            self._file = None
            if saved:
                os.replace(copy, path)
        except OSError as error:
            self._trouble(error)
            return
        self._reopen()
        self._alarms.set(
            "outbox_corrupt",
            f"the outbox file was removed or replaced while the node ran; {'its records were saved' if saved else 'it is lost'}",
            f"delete nothing in {self._directory} while the node runs; the alarm ends with the next start",
        )

    def _learn_time(self) -> None:
        """Once the clock is set: how this start of the machine's monotonic clock lies to it."""
        now = self._clock.now()
        if not now.synced:
            self._alarms.set(
                "clock_unsynced",
                "no time source has set this machine's clock; times of events are corrected once one has",
                "see that NTP runs and is reachable, or set mqtt.trust_clock where the clock is right without it",
            )
            return
        self._alarms.clear("clock_unsynced")
        if now.kernel_boot in self._offsets_ns:
            return
        self._offsets_ns[now.kernel_boot] = now.wall_ns - now.mono_ns
        if self._file is not None:
            with contextlib.suppress(sqlite3.Error), self._file.transaction():
                self._file.put_meta(f"offset:{now.kernel_boot}", str(self._offsets_ns[now.kernel_boot]))

    # --- bounds -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _dropping(self, file: OutboxFile) -> Iterator[None]:
        """The transaction in which records go, and the gaps that speak of them come: both, or neither. Gaps go in only with all
        that is in memory, if it is little: what is on disk is a beginning of the sequence."""
        last_seq, put = self._last_seq, False
        try:
            with file.transaction(durable=True):
                yield
                put = len(self._slice()[0]) == len(self._held)
                if put:
                    file.put(self._boot, self._held.values())
                    file.put_boot(Boot(self._boot, self.boot_id, self._last_seq, closed=False))
        except BaseException:
            for seq in range(last_seq + 1, self._last_seq + 1):
                del self._held[seq]
            self._last_seq = last_seq  # or their numbers would be awaited for ever
            raise
        if put:
            self._held.clear()

    def _drop_old(self) -> None:
        now, file = self._clock.now(), self._file
        if not now.synced or file is None:
            return
        try:
            self._tidy(file)
            self._room.drop_before(file, now.wall_ns - int(self._limits.age_s * _NS))
        except sqlite3.Error as error:
            self._trouble(error)

    def _bound_memory(self) -> None:
        """Without a disk the same rules hold for memory."""
        if not self._writable:
            before = set(self._held)
            left = self._room.shrink(self._boot, self.boot_id, self._held)
            come = {seq: record for seq, record in self._held.items() if seq not in before}  # gaps
            self._held = dict(sorted({**left, **come}.items()))

    # --- damage -------------------------------------------------------------------------------------------------------

    def _own(self) -> Boot | None:
        """This boot as it was on disk; None if it never was."""
        if self._boot == _NOWHERE:
            return None
        on_disk = min((r.first for r in self._held.values()), default=self._last_seq + 1) - 1
        return Boot(self._boot, self.boot_id, on_disk, closed=False)

    def _tell_damage(self, saved: Saved, lost: dict[str, Ranges]) -> None:
        aside, self._aside = self._aside, None
        for boot_id, missing in lost.items():
            self._gap(boot_id, missing, "damage")
        fields = {"saved": len(saved.records), "missing": sum(len(m) for m in lost.values()), "file": str(aside)}
        self._hold("event", event_body("outbox_corrupt", fields), 0, self._clock.now())
        self._alarms.set(
            "outbox_corrupt",
            f"the outbox file was damaged: {len(saved.records)} records were saved, the rest is reported as gaps",
            f"look at the disk's health; the damaged file is {aside}; the alarm ends with the next start",
        )

    # --- records out --------------------------------------------------------------------------------------------------

    def take(self, row_id: int, limit: int) -> list[tuple[int, Record]]:
        """As `after`, for sending: others give way before them, until they are acknowledged or let go."""
        with self._lock:
            found = self.after(row_id, limit)
            self._kept.update(i for i, _ in found)
            return found

    def let_go(self, row_id: int | None = None) -> None:
        """The session does not wait for that record any more; None: for none."""
        with self._lock:
            if row_id is None:
                self._kept.clear()
            else:
                self._kept.discard(row_id)

    def after(self, row_id: int, limit: int) -> list[tuple[int, Record]]:
        """The next records that are not acknowledged, in the order in which they are told: (id, record)."""
        with self._lock:
            found: list[tuple[int, Record]] = []
            while self._file is not None and len(found) < limit:
                try:
                    rows = self._file.after(row_id, limit)
                except sqlite3.Error as error:
                    self._trouble(error)
                    break
                if not rows:
                    break
                found += [(i, record) for i, record in rows if not self._is_settled(i, record)]
                row_id = rows[-1][0]
            for seq, record in self._held.items():
                if len(found) >= limit:
                    break
                if self._boot << SHIFT | seq > row_id:
                    found.append((self._boot << SHIFT | seq, record))
            return [(i, set_right(r, self._offsets_ns)) for i, r in found[:limit]]

    def _is_settled(self, row_id: int, record: Record) -> bool:
        return record.seq <= self._settled.get(record.boot_id, 0) or row_id in self._done

    @property
    def newest(self) -> int:
        """The id of the last record."""
        with self._lock:
            return self._boot << SHIFT | self._last_seq

    def floor(self, boot_id: str) -> int:
        """Nothing of that boot below this is still to come."""
        with self._lock:
            return max(self._settled.get(boot_id, 0) + 1, self._floors.get(boot_id, 1))

    def acknowledged(self, boot_id: str, seq: int) -> bool:
        """A sink has all of that boot up to `seq`. False if that cannot be: no such boot, or numbers that were not given yet."""
        with self._lock:
            own = boot_id == self.boot_id
            last_seq = self._last_seq if own else self._last_seqs.get(boot_id, 0)
            if not 0 < seq < 1 << SHIFT or not (own or boot_id in self._numbers) or (own and seq > last_seq):
                return False
            # A boot that crashed may have sent more than came to the disk, and a sink may say so. It means no other boot's.
            seq = min(seq, last_seq)
            if seq > self._settled.get(boot_id, 0):
                self._settled[boot_id] = seq
                if boot_id == self.boot_id:
                    for held in [s for s in self._held if s <= seq]:
                        del self._held[held]
                    if not self._held:
                        self._held_since_s = None
                number = self._boot if boot_id == self.boot_id else self._numbers[boot_id]
                self._kept = {i for i in self._kept if i >> SHIFT != number or i & ((1 << SHIFT) - 1) > seq}
                self._untidy = True
            return True

    def delivered(self, row_id: int, record: Record) -> bool:
        """The broker has that record, and that is all that is asked for (`mqtt.ack` puback). False: it became part of another one
        meanwhile, which is kept until it is delivered itself."""
        with self._lock:
            self._kept.discard(row_id)
            seq = row_id & ((1 << SHIFT) - 1)
            held = self._held.get(seq) if row_id >> SHIFT == self._boot else None
            try:
                covers = held.covers if held is not None else self._file and self._file.covers(row_id)
            except sqlite3.Error as error:
                self._trouble(error)
                return False
            if covers != record.covers:
                self.generation += 1
                return False
            if held is not None:
                del self._held[seq]
                self._held_since_s = self._held_since_s if self._held else None
            else:
                self._done.add(row_id)
                self._untidy = True
            return True

    def discard(self, row_id: int, record: Record, reason: str) -> None:
        """A record that can never be sent goes, as a gap."""
        with self._lock:
            if not self.delivered(row_id, record):
                return
            lost = record.covers | Ranges([(record.seq, record.seq)])
            self._room.dropped["metrics" if record.kind == "metrics" else "event"] += 1
            self._gap(record.boot_id, lost, reason)
            self._write(durable=True)

    # --- commands and account -----------------------------------------------------------------------------------------

    def command(self, command_id: str) -> tuple[bool, str | None]:
        """(whether that command was seen before, its answer if there is one)."""
        with self._lock:
            return self._file.command(command_id) if self._file is not None else (False, None)

    def remember_command(self, command_id: str, expires_s: float, answer: str | None, now_s: float) -> bool:
        """On disk when this returns True. False: it cannot be remembered, so it must not be carried out."""
        with self._lock:
            if self._file is None:
                return False
            try:
                with self._file.transaction(durable=True):
                    self._file.put_command(command_id, expires_s, answer, now_s)
            except sqlite3.Error as error:
                self._trouble(error)
                return False
            return True

    def pending(self) -> int:
        """How many records are not acknowledged."""
        with self._lock:
            found = len(self._held)
            if self._file is not None:
                with contextlib.suppress(sqlite3.Error):
                    found -= len(self._done)
                    for boot_id, number in self._numbers.items():
                        found += self._file.count_above(number, self._settled.get(boot_id, 0))
            return max(0, found)

    def stats(self) -> OutboxStats:
        """How full it is now."""
        with self._lock:
            now, counts, used_bytes, oldest = self._clock.now(), {}, 0, None
            if self._file is not None:
                with contextlib.suppress(sqlite3.Error):
                    counts, used_bytes = self._file.counts(), self._file.used_bytes
                    oldest = self._file.oldest()
            for record in self._held.values():
                counts[record.kind] = counts.get(record.kind, 0) + 1
                oldest = oldest or record.stamp
            return OutboxStats(
                bytes=used_bytes + sum(r.size_bytes for r in self._held.values()),
                cap_bytes=self._limits.cap_bytes,
                records=counts,
                in_memory=len(self._held),
                oldest_age_s=_age_s(oldest, now),
                dropped=dict(self._room.dropped),
                merged=self._room.merged,
                on_disk=self._writable,
            )


def _age_s(stamp: Stamp | None, now: Stamp) -> float:
    if stamp is None:
        return 0.0
    same = stamp.kernel_boot == now.kernel_boot
    return max(0.0, (now.mono_ns - stamp.mono_ns if same else now.wall_ns - stamp.wall_ns) / _NS)
