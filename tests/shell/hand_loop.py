"""An event loop whose clock a test moves, so that no timer runs out because the machine stood still for a moment."""

from __future__ import annotations

import asyncio

_TURNS = 5
"""Of the loop: what a timer does is done after so many, and what has come is read."""


class HandLoop(asyncio.SelectorEventLoop):
    """Its clock stands until the test moves it or lets it go on by itself."""

    def __init__(self) -> None:
        self._shown_s = 0.0
        self._goes_since_s: float | None = None
        super().__init__()

    def time(self) -> float:
        """What timers count by."""
        if self._goes_since_s is None:
            return self._shown_s
        return self._shown_s + super().time() - self._goes_since_s

    def go(self) -> None:
        """From now on the clock goes as it does elsewhere."""
        self.stand()
        self._goes_since_s = super().time()

    def stand(self) -> None:
        """From now on the clock stands."""
        self._shown_s, self._goes_since_s = self.time(), None

    async def passes(self, seconds: float) -> None:
        """So much time has passed, and the timers that run out meanwhile have done so."""
        self._shown_s += seconds
        await turns()


def clock() -> HandLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HandLoop)
    return loop


async def turns() -> None:
    """Let everybody else in this loop do what is to be done now."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
