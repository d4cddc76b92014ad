"""Which key has had more than its share lately. Pure.

Virtual token counters (VTC, arXiv 2401.00588) in seconds of the engine's time instead of tokens, fading so that the past is
forgiven.
"""

from __future__ import annotations

from collections.abc import Iterable

_HALF_LIFE_S = 20.0


class KeyAccounts:
    """Owner of what each key has used."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, float]] = {}

    def charge(self, key: str, seconds: float, now_s: float) -> None:
        """Work for a key took this long."""
        self._used[key] = (self.used_s(key, now_s) + seconds, now_s)

    def used_s(self, key: str, now_s: float) -> float:
        """Recent use of a key, in seconds of the engine's time."""
        used_s, at_s = self._used.get(key, (0.0, now_s))
        return float(used_s * 0.5 ** ((now_s - at_s) / _HALF_LIFE_S))

    def excess_s(self, key: str, rivals: Iterable[str], now_s: float) -> float:
        """How much more than the least served of `rivals` a key has used."""
        least_s = min((self.used_s(rival, now_s) for rival in rivals), default=0.0)
        return max(0.0, self.used_s(key, now_s) - least_s)
