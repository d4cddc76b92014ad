"""The last minutes' times, for people who look: exact, bounded, forgotten after a while."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

WINDOW_S = 300.0
_MOST = 4096


class Recent:
    """Owner of the newest times of one kind."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, seconds: float) -> None:
        """One more."""
        self._seen.append((time.monotonic(), seconds))

    def summary(self) -> dict[str, Any] | None:
        """Quantiles in milliseconds over the last WINDOW_S, or the last _MOST times if that is less; None if there are none."""
        now_s = time.monotonic()
        since_s = now_s - WINDOW_S
        while self._seen and self._seen[0][0] < since_s:
            self._seen.popleft()
        if not self._seen:
            return None
        times = sorted(seconds for _, seconds in self._seen)
        return {
            "count": len(times),
            "over_s": round(WINDOW_S if len(times) < _MOST else now_s - self._seen[0][0], 1),
            "p50_ms": round(_quantile(times, 0.5) * 1000, 2),
            "p99_ms": round(_quantile(times, 0.99) * 1000, 2),
            "max_ms": round(times[-1] * 1000, 2),
        }


def _quantile(ascending: list[float], share: float) -> float:
    """The least value that `share` of them do not exceed."""
    return ascending[max(0, -(-int(len(ascending) * share * 1000) // 1000) - 1)]
