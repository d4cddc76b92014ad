"""Making room in the outbox: what `edge.telemetry.merging` decides, done to the file, or to what is in memory while the disk
fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from edge.telemetry.alarms import Alarms
from edge.telemetry.merging import LEVELS_NS, Outline, groups_at, merge, to_drop
from edge.telemetry.outboxfile import SHIFT, OutboxFile
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import Kind, Record

_FULL, _ROOMY, _CALM = 0.80, 0.75, 0.60
_SLICE_BYTES = 256 << 10
_LOOK_AT = 1000
_MEMORY_BYTES = 4 << 20


class Room:
    """Owner of the counts of what gave way."""

    def __init__(
        self,
        cap_bytes: int,
        alarms: Alarms,
        kept: Callable[[int], bool],
        gap: Callable[[str, Ranges, str], None],
        dropping: Callable[[OutboxFile], AbstractContextManager[None]],
    ) -> None:
        """`kept`: whether others are merged before the record of that id. `gap` makes a gap of (boot, lost, reason);
        `dropping` is the transaction in which records go and gaps come."""
        self._cap_bytes, self._alarms, self._kept, self._gap, self._dropping = cap_bytes, alarms, kept, gap, dropping
        self.dropped: dict[str, int] = {"metrics": 0, "event": 0}
        self.merged = 0

    def make(self, file: OutboxFile, coming_bytes: int = 0) -> None:
        """While the file is too full, or would be with what comes: merge a slice of metrics, or drop. Raises sqlite3.Error."""
        used_bytes, roomy_bytes = file.used_bytes + coming_bytes, int(_ROOMY * self._cap_bytes)
        if used_bytes > _FULL * self._cap_bytes:
            self._alarms.set(
                "outbox_full",
                "the outbox is nearly full: metrics are merged to coarser intervals, and dropped if that does not suffice",
                "see why nothing is acknowledged (other alarms say); raise mqtt.outbox_mib if the link is away for long",
            )
            while used_bytes > roomy_bytes and self._give_way(file, min(used_bytes - roomy_bytes, _SLICE_BYTES)):
                used_bytes = file.used_bytes + coming_bytes
        elif used_bytes < _CALM * self._cap_bytes:
            self._alarms.clear("outbox_full")

    def _give_way(self, file: OutboxFile, want_bytes: int) -> bool:
        """One slice. False if there was nothing that could give way."""
        for level_ns in LEVELS_NS:
            if groups := self._groups(level_ns, file.outlines(("metrics",), _LOOK_AT, level_ns), want_bytes):
                self._merge(file, groups)
                return True
        kinds: tuple[Kind, ...] = ("metrics", "event")
        for kind in kinds:
            if gone := to_drop(file.outlines((kind,), _LOOK_AT), want_bytes):
                self._drop(file, gone, "full")
                return True
        return False

    def _groups(self, level_ns: int, outlines: list[Outline], want_bytes: int) -> list[list[Outline]]:
        """Those that were sent come last. They are not left out: without a sink all were sent."""
        marked = [replace(o, kept=True) if self._kept(o.boot << SHIFT | o.seq) else o for o in outlines]
        return groups_at(level_ns, marked, want_bytes) or groups_at(level_ns, outlines, want_bytes)

    def _merge(self, file: OutboxFile, groups: list[list[Outline]]) -> None:
        with file.transaction(durable=True):  # a sink may get it at once: a power cut must not bring the parts back
            for group in groups:
                ids = [o.boot << SHIFT | o.seq for o in group]
                records = file.fetch(ids)
                file.remove(ids)
                file.put(group[0].boot, [merge(records)])
                self.merged += len(records) - 1

    def _drop(self, file: OutboxFile, gone: Sequence[Outline], reason: str) -> None:
        """Delete them, and say so in the same breath."""
        ids = [o.boot << SHIFT | o.seq for o in gone]
        by_boot: dict[str, list[Record]] = {}
        for record in file.fetch(ids):
            by_boot.setdefault(record.boot_id, []).append(record)
        with self._dropping(file):
            file.remove(ids)
            for boot_id, records in by_boot.items():
                self._gap(boot_id, _numbers(records), reason)
        self._count(record for records in by_boot.values() for record in records)

    def _count(self, gone: Iterable[Record]) -> None:
        for record in gone:
            self.dropped[record.kind] += 1

    def drop_before(self, file: OutboxFile, wall_ns: int) -> None:
        """Drop what is older than that time. Raises sqlite3.Error."""
        while gone := file.older_than(wall_ns, _LOOK_AT):
            self._drop(file, gone, "age")

    def shrink(self, boot: int, boot_id: str, held: dict[int, Record]) -> dict[int, Record]:
        """The same for records in memory, by their numbers, if they are too many. Gives what is left; a gap comes by itself."""
        if sum(r.size_bytes for r in held.values()) <= _MEMORY_BYTES:
            return held
        left = dict(held)
        outlines = [
            Outline(boot, r.seq, r.kind, r.stamp.mono_ns, r.span_ns, r.size_bytes, r.covers.spans)
            for r in held.values()
        ]
        for level_ns in LEVELS_NS:
            if groups := self._groups(level_ns, outlines, _SLICE_BYTES):
                for group in groups:
                    merged = merge([left.pop(o.seq) for o in group])
                    left[merged.seq] = merged
                    self.merged += len(group) - 1
                return left
        if gone := to_drop(outlines, _SLICE_BYTES):
            records = [left.pop(o.seq) for o in gone]
            self._gap(boot_id, _numbers(records), "memory")
            self._count(records)
        return left


def _numbers(records: Iterable[Record]) -> Ranges:
    """All that they stand for."""
    found = Ranges()
    for record in records:
        found = found | record.covers
        found.add(record.seq)
    return found
