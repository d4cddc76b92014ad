"""What may be spent on the fleet: bytes and money per hour, and tries beyond the first. Pure."""

from __future__ import annotations

from collections import deque

_HOUR_S = 3600.0
_RETRIES_SAVED = 10.0


class HourlyCap:
    """Owner of what was spent in the last hour. `cap` 0: no bound."""

    def __init__(self, cap: float) -> None:
        self.cap = cap
        self._spent: deque[tuple[float, float]] = deque()
        self._total = 0.0

    def spend(self, amount: float, now_s: float) -> None:
        """So much was used."""
        if self._spent and now_s - self._spent[-1][0] < 1.0:  # an entry a second is fine enough, and bounded
            at_s, before = self._spent.pop()
            self._spent.append((at_s, before + amount))
        else:
            self._spent.append((now_s, amount))
        self._total += amount

    def spent(self, now_s: float) -> float:
        """Used in the last hour."""
        while self._spent and now_s - self._spent[0][0] >= _HOUR_S:
            self._total -= self._spent.popleft()[1]
        return max(0.0, self._total)

    def left(self, now_s: float) -> bool:
        """Whether more may be used."""
        return not self.cap or self.spent(now_s) < self.cap


class RetryBudget:
    """Retries are a share of requests: a fleet in trouble is not asked many times as often as one that is well."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = _RETRIES_SAVED

    def asked(self) -> None:
        """A request was sent for the first time."""
        self._tokens = min(_RETRIES_SAVED, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one may be tried once more; if so, it is counted."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
