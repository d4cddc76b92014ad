"""The last minutes' times, for people who look: exact to the hundredth of a millisecond, bounded, forgotten after a while."""

from __future__ import annotations

import time
from collections import Counter, deque
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
        self._counts: Counter[int] = Counter()
        """How many of each, in hundredths of a millisecond."""

    def add_all(self, seconds: Sequence[float], at_s: Sequence[float]) -> None:
        """Several more, measured at these moments (monotonic, ascending)."""
        steps = [round(value * _STEPS_A_SECOND) for value in seconds]
        self._counts.update(steps)
        coming = list(zip(at_s, steps, strict=True))
        if self._seen and coming and coming[0][0] < self._seen[-1][0]:  # batches of two kinds of requests overlap
            first_s = coming[0][0]
            while self._seen and self._seen[-1][0] > first_s:
                coming.append(self._seen.pop())
            coming.sort()
        self._seen.extend(coming)
        while len(self._seen) > _MOST:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, step = self._seen.popleft()
        left = self._counts[step] - 1
        if left:
            self._counts[step] = left
        else:
            del self._counts[step]

    def summary(self) -> dict[str, Any] | None:
        """Quantiles in milliseconds over the last WINDOW_S, or the last _MOST times if that is less; None if there are none."""
        now_s = time.monotonic()
        since_s = now_s - WINDOW_S
        while self._seen and self._seen[0][0] < since_s:
            self._drop_oldest()
        if not self._seen:
            return None
        count, ascending = len(self._seen), sorted(self._counts.items())
        return {
            "count": count,
            "over_s": round(WINDOW_S if count < _MOST else now_s - self._seen[0][0], 1),
            "p50_ms": _quantile(ascending, count, 0.5) / _STEPS_A_MS,
            "p99_ms": _quantile(ascending, count, 0.99) / _STEPS_A_MS,
            "max_ms": ascending[-1][0] / _STEPS_A_MS,
        }


def _quantile(ascending: list[tuple[int, int]], count: int, share: float) -> int:
    """The least of the values that `share` of all do not exceed."""
    left = max(1, -(-int(count * share * 1000) // 1000))
    for value, times in ascending:
        left -= times
        if left <= 0:
            return value
    return ascending[-1][0]
