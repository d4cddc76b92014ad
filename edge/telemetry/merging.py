"""What gives way when the outbox is full. Pure.

Metrics lose resolution first: neighbouring intervals become one, the oldest first, level by level. When all are as coarse as
the last
level, the oldest metrics go; only when no metrics are left do events go, the oldest first. What goes is named in a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edge.telemetry.histogram import Histogram
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import Kind, Record, Sample

_S = 1_000_000_000
LEVELS_NS = tuple(s * _S for s in (60, 300, 900, 3600, 6 * 3600, 24 * 3600))
"""How long an interval may become, step by step."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A record without its body, as decisions need it. `boot` counts the node's boots; records sort by (boot, seq)."""

    boot: int
    seq: int
    kind: Kind
    mono_ns: int
    span_ns: int
    size_bytes: int
    spans: int = 0
    """Of how many pieces the numbers are that were merged into it."""
    kept: bool = False
    """It was sent and may have arrived: others are merged before it."""


def groups_at(level_ns: int, outlines: Sequence[Outline], free_bytes: int) -> list[list[Outline]]:
    """Which metrics become one each so that intervals of up to `level_ns` come about and about `free_bytes` come free, the
    oldest first;
    empty if nothing can be merged at that level.

    Groups lie in one window of the level, by the machine's monotonic clock, and in one boot: the time of the wall clock may be
    set right later.
    """
    groups: list[list[Outline]] = []
    group: list[Outline] = []
    freed_bytes = spans = 0
    for outline in outlines:
        if outline.kind != "metrics" or outline.kept or outline.span_ns >= level_ns:
            continue
        spans += outline.spans + 1
        if group and (_window(group[0], level_ns) != _window(outline, level_ns) or spans > MOST_SPANS):
            freed_bytes += _close(group, groups)
            group, spans = [], outline.spans + 1
            if freed_bytes >= free_bytes:
                return groups
        group.append(outline)
    _close(group, groups)
    return groups


def _window(outline: Outline, level_ns: int) -> tuple[int, int]:
    return outline.boot, (outline.mono_ns - 1) // level_ns


def _close(group: list[Outline], groups: list[list[Outline]]) -> int:
    """Take the group if it is one. Returns about how many bytes merging it frees."""
    if len(group) < 2:
        return 0
    groups.append(group)
    return sum(o.size_bytes for o in group) - max(o.size_bytes for o in group)


def to_drop(outlines: Sequence[Outline], free_bytes: int) -> list[Outline]:
    """What goes for good so that `free_bytes` come free: the oldest metrics; events only if there are no metrics. Gaps stay: they
    are the account of what is gone."""
    for kind in ("metrics", "event"):
        found, freed_bytes = [], 0
        for outline in outlines:
            if outline.kind == kind:
                found.append(outline)
                freed_bytes += outline.size_bytes
                if freed_bytes >= free_bytes:
                    break
        if found:
            return found
    return []


def merge(records: Sequence[Record]) -> Record:
    """Metrics of one boot, in order, as one record: the last one's key, over all their time."""
    last = records[-1]
    # The monotonic clock says how long it was; the wall clock may have been set in between.
    start_ns = min(r.stamp.mono_ns - r.span_ns for r in records)
    covers = Ranges()
    for record in records:
        covers = covers | record.covers
        if record.seq != last.seq:
            covers.add(record.seq)
    samples = [Sample.unpacked(r.body) for r in records]
    return replace(last, body=_merge_samples(samples).packed(), span_ns=last.stamp.mono_ns - start_ns, covers=covers)


def _merge_samples(samples: Iterable[Sample]) -> Sample:
    """Counters are totals: the last holds. Of gauges the last, the least and the greatest. Histograms add up."""
    found: Sample | None = None
    for sample in samples:
        if found is None:
            found = Sample(sample.began_ns, {}, {}, {}, sample.began_mono_ns)
        found.counters.update(sample.counters)
        for key, (value, least, greatest) in sample.gauges.items():
            _, low, high = found.gauges.get(key, (value, least, greatest))
            found.gauges[key] = [value, min(low, least), max(high, greatest)]
        for key, histogram in sample.histograms.items():
            found.histograms.setdefault(key, Histogram()).merge(histogram)
    assert found is not None
    return found
