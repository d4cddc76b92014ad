"""Times of answers on their way into histograms: noted one by one between two tokens, counted several at a time.

To count a time in every histogram that has it takes some microseconds, for every token of every answer. In a batch it takes a
fraction of that, and a batch is short enough that nobody waits for it. Who reads gets all that was noted.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_BATCH = 64

Count = Callable[[Sequence[float], Sequence[float]], None]
"""Called with times in seconds, and with the moments (monotonic) at which they were measured."""


class Tally:
    """Owner of times of one kind that were noted and are not counted yet. Lives on the event loop."""

    __slots__ = ("_at_s", "_count", "_seconds")

    def __init__(self, count: Count) -> None:
        self._count = count
        self._seconds: list[float] = []
        self._at_s: list[float] = []

    def note(self, seconds: float, at_s: float) -> None:
        """One more. `at_s`: when it was measured, monotonic."""
        self._seconds.append(seconds)
        self._at_s.append(at_s)
        if len(self._at_s) >= _BATCH:
            self.settle()

    def settle(self) -> None:
        """Count what was noted."""
        if self._seconds:
            (seconds, at_s), self._seconds, self._at_s = (self._seconds, self._at_s), [], []
            self._count(seconds, at_s)


class Buckets:
    """Owner of one histogram's counts."""

    __slots__ = ("begun", "bounds", "counts", "total_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the buckets' upper ones, in seconds, ascending; they are part of their buckets."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0
        self.begun = time.time()

    def count(self, seconds: Sequence[float]) -> None:
        """Several times."""
        bounds, counts = self.bounds, self.counts
        for value in seconds:
            counts[bisect_left(bounds, value)] += 1
        self.total_s = sum(seconds, self.total_s)


class Timings(Collector):
    """A histogram on /metrics that is counted in batches: one series, or with a label one for each of its values."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str = "") -> None:
        self._name, self._text, self._bounds, self._label = name, text, tuple(map(float, bounds)), label
        self._edges = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        self._series: dict[str, Buckets] = {}
        if not label:
            self.of("")

    def of(self, value: str) -> Buckets:
        """The series of a value of the label."""
        if (found := self._series.get(value)) is None:
            found = self._series[value] = Buckets(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        """As it stands."""
        family = Metric(self._name, self._text, "histogram")
        self.add_to(family, self._label)
        yield family

    def add_to(self, family: Metric, label: str, *, unlabelled: str = "", created: bool = True) -> None:
        """Add its series to a family of any name, in the order of Prometheus's own client. `unlabelled`: what the label is of
        the series that has none here."""
        for value, buckets in self._series.items():
            labels = {label: value or unlabelled} if label else {}
            for edge, below in zip(self._edges, accumulate(buckets.counts), strict=True):
                family.add_sample(f"{family.name}_bucket", {**labels, "le": edge}, below)
            family.add_sample(f"{family.name}_count", labels, sum(buckets.counts))
            family.add_sample(f"{family.name}_sum", labels, buckets.total_s)
            if created:
                family.add_sample(f"{family.name}_created", labels, buckets.begun)


class Listener(Protocol):
    """Who else wants each time."""

    settle: Callable[[], None]
    """Has all counted that was noted. It calls this before it reads."""

    def observe_all(self, kind: str, operation: str, model: str, seconds: Sequence[float]) -> None:
        """Times of a kind: `ttft`, `itl` or `whole`."""
        ...
