"""Who goes first: admitted requests by deadline, the others by age, behind keys that had less. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from edge.engine.admission import Targets
from edge.engine.fairness import KeyAccounts
from edge.engine.sequence import Request, Sequence

_PATIENCE_PER_PROMPT = 2.0
_LARGEST_HANDICAP_S = 5.0
_TIER_HANDICAP_S = {"priority": -10.0, "default": 0.0, "flex": 30.0}
"""Late answers wait their turn by this much less or more; nobody waits for ever."""


class Line:
    """Owner of what each key has used lately."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._accounts = KeyAccounts()

    def charge(self, request: Request, seconds: float, now_s: float) -> None:
        """A pass for this request took so long."""
        self._accounts.charge(request.work.key, seconds, now_s)

    def due_s(self, request: Request) -> float:
        """When an admitted request's first token is due."""
        return request.arrived_s + self._targets.ttft_s

    def first(self, candidates: Iterable[Sequence], present: Iterable[Sequence], now_s: float) -> Sequence:
        """Whose turn it is. `present`: all whose keys are rivals now."""
        waiting = list(candidates)
        if len(waiting) == 1:
            return waiting[0]
        rivals = {s.request.work.key for s in present}
        return min(waiting, key=lambda s: self._urgency(s, rivals, now_s))

    def _urgency(self, sequence: Sequence, rivals: set[str], now_s: float) -> tuple[bool, float, int]:
        """Sort key: admitted by deadline; others by age, with time for a longer prompt, behind keys that had less."""
        request = sequence.request
        if request.admitted:
            return False, self.due_s(request), sequence.index
        handicap_s = self._accounts.excess_s(request.work.key, rivals, now_s) if len(rivals) > 1 else 0.0
        handicap_s = min(handicap_s, _LARGEST_HANDICAP_S) + _TIER_HANDICAP_S[request.work.tier]
        return True, request.arrived_s + _PATIENCE_PER_PROMPT * request.prompt_s + handicap_s, sequence.index
