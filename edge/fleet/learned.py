"""What an upstream does as a rule: time to its first token, and how often it fails. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
_DEVIATIONS = 2.0
_FORGETS_S = 10.0
"""Half of what was learned is forgotten after this time, so that an upstream that was slow gets another chance."""
FIRST_GUESS_S = 0.3


class Learned:
    """Owner of one upstream's running figures: mean and mean deviation, as TCP keeps them of its round trips (RFC 6298)."""

    def __init__(self) -> None:
        self._mean_s = FIRST_GUESS_S
        self._deviation_s = 0.0
        self._learned_s: float | None = None
        self.error_share = 0.0

    @property
    def known(self) -> bool:
        """Anything was learned yet."""
        return self._learned_s is not None

    def answered(self, ttft_s: float, now_s: float) -> None:
        """A request's first token came after `ttft_s`."""
        if self._learned_s is None:
            self._mean_s, self._deviation_s = ttft_s, ttft_s / 4
        else:
            self._deviation_s += _WEIGHT * (abs(ttft_s - self._mean_s) - self._deviation_s)
            self._mean_s += _WEIGHT * (ttft_s - self._mean_s)
        self._learned_s = now_s
        self.error_share -= _WEIGHT * self.error_share

    def failed(self) -> None:
        """A request failed."""
        self.error_share += _WEIGHT * (1 - self.error_share)

    def ttft_s(self, now_s: float) -> float:
        """What to expect, on the safe side."""
        known_s = self._mean_s + _DEVIATIONS * self._deviation_s
        if self._learned_s is None:
            return known_s
        trust = 0.5 ** ((now_s - self._learned_s) / _FORGETS_S)
        return float(trust * known_s + (1 - trust) * min(known_s, FIRST_GUESS_S))
