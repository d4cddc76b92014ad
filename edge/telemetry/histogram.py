"""Base-2 exponential histograms as OpenTelemetry defines them (data model, "ExponentialHistogram"). Pure.

A bucket of index i holds values in (base^i, base^(i+1)] with base = 2^(2^-scale). One scale less makes a bucket of two, exactly;
so histograms of different scales can be merged without error beyond the coarser one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

MAX_BUCKETS = 160
_FIRST_SCALE = 12


class Histogram:
    """Counts of values of 0 or more; at most MAX_BUCKETS buckets, as fine as those allow."""

    __slots__ = ("buckets", "count", "greatest", "least", "scale", "total", "zeros")

    def __init__(self) -> None:
        self.scale = _FIRST_SCALE
        self.buckets: dict[int, int] = {}
        self.zeros = 0
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.greatest = -math.inf

    def observe(self, value: float) -> None:
        """Count one value. What is no finite number of 0 or more is not counted: it can only come from a broken clock."""
        if not 0.0 <= value < math.inf:
            return
        self.count += 1
        self.total += value
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)
        if value == 0.0:
            self.zeros += 1
            return
        index = _index(value, self.scale)
        if index not in self.buckets and self.buckets:
            low, high = min(index, min(self.buckets)), max(index, max(self.buckets))
            if high - low >= MAX_BUCKETS:
                self._coarsen(_steps(low, high))
                index = _index(value, self.scale)
        self.buckets[index] = self.buckets.get(index, 0) + 1

    def observe_all(self, values: Sequence[float]) -> None:
        """Count several; as if one by one, in a fraction of the time."""
        found = [value for value in values if 0.0 < value < math.inf]
        if len(found) < len(values):
            zeros = sum(value == 0.0 for value in values)
            self.count, self.zeros = self.count + zeros, self.zeros + zeros
            if zeros:
                self.least, self.greatest = 0.0, max(self.greatest, 0.0)
        if not found:
            return
        self.count += len(found)
        self.total = sum(found, self.total)
        low, high = min(found), max(found)
        if self.zeros or low < self.least or high > self.greatest:  # else it fits where the others are
            self.least, self.greatest = min(self.least, low), max(self.greatest, high)
            ends = [_index(low, self.scale), _index(high, self.scale), *self.buckets]
            if (steps := _steps(min(ends), max(ends))) > 0:
                self._coarsen(steps)
        _count(found, self.scale, self.buckets)

    def _coarsen(self, steps: int) -> None:
        """Take `steps` off the scale: 2^steps buckets become one."""
        merged: dict[int, int] = {}
        for index, count in self.buckets.items():
            merged[index >> steps] = merged.get(index >> steps, 0) + count
        self.buckets = merged
        self.scale -= steps

    def merge(self, other: Histogram) -> None:
        """Add all that `other` counted; `other` stays as it is."""
        if not other.count:
            return
        self.count += other.count
        self.zeros += other.zeros
        self.total += other.total
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        if not other.buckets:
            return
        scale = min(self.scale, other.scale) if self.buckets else other.scale
        if self.buckets:
            self._coarsen(self.scale - scale)
        self.scale = scale
        shift = other.scale - scale
        for index, count in other.buckets.items():
            self.buckets[index >> shift] = self.buckets.get(index >> shift, 0) + count
        low, high = min(self.buckets), max(self.buckets)
        if high - low >= MAX_BUCKETS:
            self._coarsen(_steps(low, high))

    def quantile(self, share: float) -> float:
        """The value below which `share` (0..1) of the values lie; NaN if there are none. Within a bucket values are taken to
        lie evenly,
        by their logarithms."""
        if not self.count:
            return math.nan
        left = share * self.count - self.zeros
        if left <= 0 and self.zeros:
            return 0.0
        for index in sorted(self.buckets):
            count = self.buckets[index]
            if left <= count:
                value = float(2.0 ** ((index + left / count) * 2.0**-self.scale))
                return min(max(value, self.least), self.greatest)
            left -= count
        return self.greatest

    # --- as kept and as sent ------------------------------------------------------------------------------------------

    def packed(self) -> list[Any]:
        """A short JSON value: [scale, zeros, sum, least, greatest, offset, counts]."""
        offset, counts = self._dense()
        least, greatest = (self.least, self.greatest) if self.count else (0.0, 0.0)
        return [self.scale, self.zeros, self.total, least, greatest, offset, counts]

    @classmethod
    def unpacked(cls, value: list[Any]) -> Histogram:
        """Of what `packed` made."""
        found = cls()
        found.scale, found.zeros, found.total, found.least, found.greatest, offset, counts = value
        found.buckets = {offset + n: count for n, count in enumerate(counts) if count}
        found.count = found.zeros + sum(counts)
        if not found.count:
            found.least, found.greatest = math.inf, -math.inf
        return found

    def _dense(self) -> tuple[int, list[int]]:
        if not self.buckets:
            return 0, []
        low, high = min(self.buckets), max(self.buckets)
        return low, [self.buckets.get(index, 0) for index in range(low, high + 1)]

    def otlp(self) -> dict[str, Any]:
        """The fields of an OTLP/JSON ExponentialHistogramDataPoint that this histogram knows. 64-bit numbers are strings
        there."""
        offset, counts = self._dense()
        point: dict[str, Any] = {
            "count": str(self.count),
            "sum": self.total,
            "scale": self.scale,
            "zeroCount": str(self.zeros),
            "positive": {"offset": offset, "bucketCounts": [str(count) for count in counts]},
        }
        return {**point, "min": self.least, "max": self.greatest} if self.count else point

    @classmethod
    def from_otlp(cls, point: dict[str, Any]) -> Histogram:
        """Of a data point as `otlp` gives it, or another sender."""
        positive = point.get("positive", {})
        counts = [int(count) for count in positive.get("bucketCounts", ())]
        head = [int(point.get("scale", 0)), int(point.get("zeroCount", 0)), float(point.get("sum", 0.0))]
        bounds = [float(point.get("min", 0.0)), float(point.get("max", math.inf))]
        return cls.unpacked([*head, *bounds, int(positive.get("offset", 0)), counts])


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them in one."""
    found = Histogram()
    for histogram in histograms:
        found.merge(histogram)
    return found


def _index(value: float, scale: int) -> int:
    """The bucket of a value above 0. Exact for powers of two, which are upper bounds of their buckets."""
    fraction, exponent = math.frexp(value)  # value = fraction * 2^exponent, fraction in [0.5, 1)
    if fraction == 0.5:
        return ((exponent - 1) << scale) - 1 if scale > 0 else ((exponent - 2) >> -scale)
    if scale <= 0:
        return (exponent - 1) >> -scale
    return min(math.ceil(math.log2(value) * (1 << scale)) - 1, (exponent << scale) - 1)


def _count(values: Sequence[float], scale: int, buckets: dict[int, int]) -> None:
    """Count values above 0 in the buckets that `_index` gives."""
    if scale <= 0:
        for value in values:
            index = _index(value, scale)
            buckets[index] = buckets.get(index, 0) + 1
        return
    ceil, log2, factor, get = math.ceil, math.log2, 1 << scale, buckets.get
    for value in values:
        index = ceil(log2(value) * factor) - 1
        buckets[index] = get(index, 0) + 1


def _steps(low: int, high: int) -> int:
    steps = 0
    while (high >> steps) - (low >> steps) >= MAX_BUCKETS:
        steps += 1
    return steps
