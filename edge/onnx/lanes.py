"""Passes over texts, several at a time: while one waits for its last thread, or for Python, another computes.

A pass of few texts does not fill two cores: its threads meet after every node of the graph, and whoever is first sleeps. Two such
passes at once fill them, and take less processor time for each text than one large pass, without making anybody wait for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edge.onnx.batcher import Batch
from edge.onnx.tasks import Floats
from edge.onnx.texts import Encoded

_LIVELY_S, _PATIENCE = 1.0, 3.0
"""No pass is late before that, nor before so many times as long as it would take beside others."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A pass is over: a row of numbers for each text, or what it raised."""

    batch: Batch
    values: Floats | Exception
    begun_s: float
    ended_s: float


@dataclass(slots=True)
class _Flight:
    begun_s: float
    late_s: float
    own_s: float = 0.0
    shared: bool = False


class Lanes:
    """Owner of the threads that compute, and of what is known of the passes that run. Used by the loop's thread."""

    def __init__(
        self,
        count: int,
        compute: Callable[[list[Encoded], int, int], Floats],
        say: Callable[[Passed], None],
    ) -> None:
        """`compute` makes one pass over texts filled up to (rows, length), in any thread; `say` hears of its end there."""
        self.count = count
        self._compute, self._say = compute, say
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._flights: dict[Batch, _Flight] = {}
        self._seen_s = 0.0

    @property
    def passes(self) -> int:
        """That run."""
        return len(self._flights)

    @property
    def cells(self) -> int:
        """Texts times length in the passes that run."""
        return sum(batch.rows * batch.length for batch in self._flights)

    def late(self, now_s: float) -> bool:
        """Whether a pass runs for so much longer than foreseen that it may never end."""
        return any(now_s > flight.late_s for flight in self._flights.values())

    def start(self, batch: Batch, texts: list[Encoded], foreseen_s: float) -> None:
        """One more pass, which would take so long by itself; there must be a lane for it."""
        assert len(self._flights) < self.count
        now_s = time.monotonic()
        self._account(now_s)
        self._flights[batch] = _Flight(now_s, now_s + max(_LIVELY_S, _PATIENCE * self.count * foreseen_s))
        if len(self._flights) > 1:
            for flight in self._flights.values():
                flight.shared = True
        self._threads.submit(self._run, batch, texts, now_s)

    def ended(self, passed: Passed) -> tuple[float, bool]:
        """Take note of an end. Returns the seconds that it would have taken by itself, and whether it ran beside another."""
        self._account(passed.ended_s)
        flight = self._flights.pop(passed.batch)
        return flight.own_s, flight.shared

    def _account(self, now_s: float) -> None:
        """Passes that run together each have an equal part of the time."""
        for flight in self._flights.values():
            flight.own_s += max(0.0, now_s - max(self._seen_s, flight.begun_s)) / len(self._flights)
        self._seen_s = max(self._seen_s, now_s)

    def _run(self, batch: Batch, texts: list[Encoded], begun_s: float) -> None:
        values: Floats | Exception
        try:
            values = self._compute(texts, batch.rows, batch.length)
        except Exception as error:  # it is the loop's to judge
            values = error
        self._say(Passed(batch, values, begun_s, time.monotonic()))
