"""Lets work through one piece at a time, with room in between for what is more urgent."""

from __future__ import annotations

import asyncio
import time
from collections import deque

_SHARE = 0.45
"""Part of the loop's time that this work may take."""
_LONGEST_GAP_S = 0.02


class Turnstile:
    """Owner of whose turn it is. One for all work of a kind on one event loop.

    A hundred answers that are passed on would all wake up together, and a stream that was promised its next token would wait for
    all of them. Here they wake one by one, and after each the loop is free for a little longer than that one took.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy = False
        """Somebody's turn, or the pause after it."""
        self._begun_s = 0.0

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it had become ours
                    self._pass_on()
                raise
        self._busy = True
        self._begun_s = time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        """The turn is over; the next comes after a pause in proportion."""
        took_s = time.monotonic() - self._begun_s
        asyncio.get_running_loop().call_later(min(took_s * (1 / _SHARE - 1), _LONGEST_GAP_S), self._pass_on)

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
