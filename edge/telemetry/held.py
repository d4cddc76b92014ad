"""This boot's records while they are in memory: their numbers, their bound, and since when they wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from edge.telemetry.clock import Clock, new_boot_id
from edge.telemetry.outboxfile import SHIFT, Boot
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import Kind, Record, gap_body
from edge.telemetry.room import Room
from edge.telemetry.stamp import Stamp

log = logging.getLogger(__name__)

_NOWHERE = 1 << 22
"""The boot's number while there is no file to take one from: after all that a file may hold."""
_SLICE_RECORDS, _SLICES = 100, 32
"""What is written at once: so many records, and no more than that part of the bound, or it would not be kept."""


class Held:
    """Owner of this boot's numbers, and of its records that are not on disk. The outbox's lock guards it."""

    def __init__(self, clock: Clock, cap_bytes: int) -> None:
        self.boot_id = new_boot_id()
        self.boot = _NOWHERE
        """Its number. The outbox writes it when it takes up a file."""
        self.last_seq = 0
        self.since_s: float | None = None
        self._clock, self._slice_bytes = clock, cap_bytes // _SLICES
        self._records: dict[int, Record] = {}
        """By seq."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """The oldest first."""
        return iter(self._records.values())

    def __contains__(self, record: Record) -> bool:
        return record.seq in self._records

    def get(self, row_id: int) -> Record | None:
        """The record of that id, if it is here."""
        return self._records.get(row_id & ((1 << SHIFT) - 1)) if row_id >> SHIFT == self.boot else None

    def row_id(self, seq: int) -> int:
        """Of this boot's record of that number."""
        return self.boot << SHIFT | seq

    def as_boot(self, last_seq: int, *, closed: bool = False) -> Boot:
        """This boot as the file shall know it."""
        return Boot(self.boot, self.boot_id, last_seq, closed)

    def as_on_disk(self) -> Boot | None:
        """This boot as it was on disk; None if it never was."""
        if self.boot == _NOWHERE:
            return None
        return self.as_boot(min((r.first for r in self), default=self.last_seq + 1) - 1)

    # --- records come -------------------------------------------------------------------------------------------------

    def hold(self, kind: Kind, body: dict[str, Any], span_ns: int = 0, stamp: Stamp | None = None) -> Record:
        """A new record, with the next number."""
        stamp = stamp or self._clock.now()
        self.last_seq += 1
        record = Record(self.boot_id, self.last_seq, kind, stamp, body, span_ns)
        self._records[record.seq] = record
        if self.since_s is None:
            self.since_s = time.monotonic()
        return record

    def gap(self, boot_id: str, lost: Ranges, reason: str, *, open_ended: bool = False) -> None:
        """Records that say what of that boot is lost, and why."""
        for part in lost.split(MOST_SPANS):
            self.hold("gap", gap_body(boot_id, part, reason, open_ended=open_ended))
        fields = {"event": "telemetry_gap", "of": boot_id, "lost": str(lost)[:200], "reason": reason}
        log.warning("telemetry has a gap", extra=fields)

    def take_back(self, last_seq: int) -> None:
        """Records after that number go, and their numbers with them: they would be awaited for ever."""
        for seq in range(last_seq + 1, self.last_seq + 1):
            del self._records[seq]
        self.last_seq = last_seq

    # --- records go ---------------------------------------------------------------------------------------------------

    def slice(self) -> tuple[list[Record], int]:
        """What is written next, the oldest first, and its size."""
        found: list[Record] = []
        size_bytes = 0
        for record in self:
            found.append(record)
            size_bytes += record.size_bytes
            if len(found) >= _SLICE_RECORDS or size_bytes >= self._slice_bytes:
                break
        return found, size_bytes

    def written(self, records: Iterable[Record]) -> None:
        """They are on disk."""
        for record in list(records):
            del self._records[record.seq]

    def acknowledged(self, record: Record) -> None:
        """It need not come to disk any more."""
        del self._records[record.seq]
        self.since_s = self.since_s if self else None

    def acknowledged_through(self, seq: int) -> None:
        """None up to there need come to disk any more."""
        for held in [s for s in self._records if s <= seq]:
            del self._records[held]
        if not self:
            self.since_s = None

    def shrink(self, room: Room) -> None:
        """The rules that hold for the disk hold for memory while there is none."""
        before = set(self._records)
        left = room.shrink(self.boot, self.boot_id, self._records)
        come = {seq: record for seq, record in self._records.items() if seq not in before}  # gaps
        self._records = dict(sorted({**left, **come}.items()))
