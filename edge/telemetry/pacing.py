"""When to try again, and how fast to catch up. Pure: time and chance come in as arguments."""

from __future__ import annotations

_FIRST_S = 1.0
_LEAST_S = 0.2


class Backoff:
    """Pauses that double up to a bound, with full jitter: after an outage a thousand nodes must not come back in step."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._tries = 0

    def next_s(self, chance: float) -> float:
        """How long to wait now. `chance` is uniform in 0..1."""
        bound_s = min(self._longest_s, _FIRST_S * 2.0**self._tries)
        self._tries = min(self._tries + 1, 30)
        return _LEAST_S + chance * (bound_s - _LEAST_S) if bound_s > _LEAST_S else bound_s

    def succeeded(self) -> None:
        """Begin with short pauses again."""
        self._tries = 0


class Bucket:
    """So many a second, and at most one second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = 1.0
        self._at_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one more may go now."""
        if self._at_s is not None:
            self._tokens = min(max(1.0, self._per_s), self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Window:
    """How many records of the backlog may wait for the sink. Narrower while it takes longer than the target (what happens now
    waits
    behind them), wider while it does not: additive increase, multiplicative decrease, as TCP has it (Chiu and Jain, 1989)."""

    def __init__(self, least: int, most: int, target_s: float) -> None:
        self._least, self._most, self._target_s = least, most, target_s
        self._size = float(least)
        self._narrowed_s = 0.0

    @property
    def size(self) -> int:
        """How many now."""
        return int(self._size)

    def acknowledged(self, sent_s: float, now_s: float) -> None:
        """A record that was sent at `sent_s` came back."""
        if now_s - sent_s <= self._target_s:
            self._size = min(self._most, self._size + 1.0)
        elif sent_s >= self._narrowed_s:  # once for all that was under way when it became narrower
            self.narrow(now_s)

    def narrow(self, now_s: float) -> None:
        """Too slow, or nothing came back."""
        self._size = max(self._least, self._size / 2)
        self._narrowed_s = now_s


class Patience:
    """How long to wait for a sink before what was sent is sent again: longer each time, short again after any progress."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._wait_s = first_s
        self._since_s = 0.0

    def progress(self, now_s: float) -> None:
        """Something was acknowledged."""
        self._wait_s, self._since_s = self._first_s, now_s

    def sent(self, now_s: float, *, outstanding: int) -> None:
        """A record leaves; the first one starts the wait."""
        if outstanding == 0:
            self._since_s = now_s

    def over(self, now_s: float) -> bool:
        """Whether to send again. If so, the next wait is longer."""
        if now_s - self._since_s < self._wait_s:
            return False
        self._wait_s, self._since_s = min(self._longest_s, 2 * self._wait_s), now_s
        return True
