"""The last minutes' times, for people who look: exact to the hundredth of a millisecond, bounded, forgotten after a while."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

WINDOW_S = 300.0
_MOST = 4096
_STEPS_A_SECOND = 100_000
_STEPS_A_MS = _STEPS_A_SECOND // 1000


class Recent:
    """Owner of the newest times of one kind. Counted as they come and go, so that a look at them sorts next to nothing."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._counts: dict[int, int] = {}
        """How many of each, in hundredths of a millisecond."""

    def add_all(self, seconds: Sequence[float], at_s: Sequence[float]) -> None:
        """Several more, measured at these moments (monotonic, ascending)."""
        seen, counts = self._seen, self._counts
        coming = [(at, round(value * _STEPS_A_SECOND)) for value, at in zip(seconds, at_s, strict=True)]
        for _, step in coming:
            counts[step] = counts.get(step, 0) + 1
        if seen and coming and coming[0][0] < seen[-1][0]:  # batches of two kinds of requests overlap
            first_s = coming[0][0]
            while seen and seen[-1][0] > first_s:
                coming.append(seen.pop())
            coming.sort()
        seen.extend(coming)
        self._forget(len(seen) - _MOST)

    def _forget(self, oldest: int) -> None:
        """So many of the oldest."""
        seen, counts = self._seen, self._counts
        for _ in range(oldest):
            _, step = seen.popleft()
            if (left := counts[step] - 1) > 0:
                counts[step] = left
            else:
                del counts[step]

    def summary(self) -> dict[str, Any] | None:
        """Quantiles in milliseconds over the last WINDOW_S, or the last _MOST times if that is less; None if there are none."""
        now_s = time.monotonic()
        since_s = now_s - WINDOW_S
        while self._seen and self._seen[0][0] < since_s:
            self._forget(1)
        if not self._seen:
            return None
        count, ascending = len(self._seen), sorted(self._counts)
        return {
            "count": count,
            "over_s": round(WINDOW_S if count < _MOST else now_s - self._seen[0][0], 1),
            "p50_ms": self._quantile(ascending, 0.5) / _STEPS_A_MS,
            "p99_ms": self._quantile(ascending, 0.99) / _STEPS_A_MS,
            "max_ms": ascending[-1] / _STEPS_A_MS,
        }

    def _quantile(self, ascending: list[int], share: float) -> int:
        """The least of the values that `share` of all do not exceed."""
        above = len(self._seen) - max(1, -(-int(len(self._seen) * share * 1000) // 1000))
        for value in reversed(ascending):
            above -= self._counts[value]
            if above < 0:
                return value
        return ascending[0]
