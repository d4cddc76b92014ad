"""Long answers made piece by piece: at one go they would hold up the tokens of all answers for longer than a pass takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

_PIECE_S = 0.0002


async def in_turns(pieces: Iterable[bytes]) -> list[bytes]:
    """All of them, as the iterable makes them, with a turn for everybody else whenever they took a while."""
    made, since_s = [], time.monotonic()
    for piece in pieces:
        made.append(piece)
        if time.monotonic() - since_s > _PIECE_S:
            await asyncio.sleep(0)
            since_s = time.monotonic()
    return made
