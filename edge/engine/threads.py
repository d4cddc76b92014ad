"""How many threads passes use, judged again while running: a neighbour that takes a core may come and go. Pure.

A pass on all cores ends when its slowest thread does; beside somebody else's work that thread may not be running at all
(docs/adr/0002-threads-on-small-boxes.md). So other counts are tried when nobody waits, and when passes take far longer than
they should, and are compared by how long their passes took beside what was predicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from edge.engine.steps import Kind

WORTH_A_CORE = 0.85
"""More threads must bring a pass below this share of the time that fewer need."""
_REMEMBERED = 8
_ENOUGH = 4
_TURNS_PER_TRIAL = 4


def fewest_worth(slow_s: Mapping[int, float]) -> int:
    """The fewest threads that are worth it, given how long a slow pass takes with each count, in ascending order."""
    counts = iter(slow_s)
    best = next(counts)
    for threads in counts:
        if slow_s[threads] < slow_s[best] * WORTH_A_CORE:
            best = threads
    return best


class ThreadChoice:
    """Owner of the thread counts in use, one for each kind of pass."""

    def __init__(self, *, decode: int, prompt: int, candidates: list[int]) -> None:
        self._chosen: dict[Kind, int] = {"decode": decode, "prompt": prompt}
        self._candidates = candidates
        self._ratios: dict[tuple[Kind, int], deque[float]] = {}
        self._turn = 0

    def of(self, kind: Kind) -> int:
        """The count in use."""
        return self._chosen[kind]

    @property
    def candidates(self) -> list[int]:
        """Counts worth a trial; one where there is nothing to choose."""
        return self._candidates

    def for_pass(self, kind: Kind, *, strained: bool) -> int:
        """The count for the next pass. `strained`: passes take much longer than predicted, so some of them are spent on
        finding out whether another count does better."""
        if not strained or len(self._candidates) == 1:
            return self._chosen[kind]
        self._turn += 1
        if self._turn % _TURNS_PER_TRIAL:
            return self._chosen[kind]
        others = [n for n in self._candidates if n != self._chosen[kind]]
        return others[self._turn // _TURNS_PER_TRIAL % len(others)]

    def tried(self, kind: Kind, threads: int, ratio: float) -> None:
        """A trial took `ratio` times what is predicted for the count in use."""
        self._ratios.setdefault((kind, threads), deque(maxlen=_REMEMBERED)).append(ratio)

    def decide(self, kind: Kind) -> float | None:
        """Choose anew. None if nothing changes, else how many times longer a pass takes from now on than predicted."""
        slow = {n: seen for n in self._candidates if (seen := self._slow(kind, n)) is not None}
        if len(slow) < len(self._candidates):
            return None
        best = fewest_worth(slow)
        if best == self._chosen[kind]:
            return None
        self._chosen[kind] = best
        for threads in self._candidates:
            del self._ratios[kind, threads]
        return slow[best]

    def _slow(self, kind: Kind, threads: int) -> float | None:
        """A slow pass with this count; None before enough were seen."""
        seen = sorted(self._ratios.get((kind, threads), ()))
        return seen[len(seen) * 3 // 4] if len(seen) >= _ENOUGH else None
