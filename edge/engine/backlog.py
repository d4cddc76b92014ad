"""When an answer that was not admitted would begin: learned from how fast such answers got their slots lately. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
_LONGEST_GAP_S = 60.0


class Backlog:
    """Owner of the mean time between two answers out of a queue that get a slot."""

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._last_s: float | None = None

    def seated(self, now_s: float, *, left: int) -> None:
        """An answer out of the queue got a slot; `left` still wait."""
        if self._last_s is not None:
            gap_s = min(now_s - self._last_s, _LONGEST_GAP_S)
            known_s = self._interval_s if self._interval_s is not None else gap_s
            self._interval_s = known_s + _WEIGHT * (gap_s - known_s)
        # The time until the next one counts only if somebody waits all that time.
        self._last_s = now_s if left else None

    def wait_s(self, ahead: int, guess_s: float) -> float:
        """How long until the one behind `ahead` others gets a slot: as lately, but at most `guess_s` each, which is what they
        ask for. Answers end early more often than they take longer, and what was learned under another load is soon untrue."""
        return ahead * min(guess_s, self._interval_s if self._interval_s is not None else guess_s)
