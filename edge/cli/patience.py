"""`edge enroll --keep-trying`: for what stands beside a node and must not end because a fleet is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_S, LONGEST_S = 2.0, 300.0
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a try came to nothing. `passes`: it may pass by itself; else somebody has to do something."""

    said: str
    passes: bool
    retry_after_s: float = 0.0


def pause_s(tries: int, obstacle: Obstacle, chance: float) -> float:
    """Until the next try after so many; `chance` 0..1: thousands of nodes that began together must not come together."""
    grown_s = min(LONGEST_S, FIRST_S * 2.0 ** min(tries - 1, 20)) if obstacle.passes else LONGEST_S
    return max(obstacle.retry_after_s, grown_s * (0.5 + chance / 2))


def keep_trying(
    attempt: Callable[[], Obstacle | None],
    look: Callable[[], object],
    say: Callable[[str], None],
    chance: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
    now_s: Callable[[], float] = time.monotonic,
) -> None:
    """Until an attempt has no obstacle. What `look` sees being another is a reason to try at once, with new patience.

    Each obstacle is said once, until there is another.
    """
    tries, told, seen = 0, "", look()
    while (obstacle := attempt()) is not None:
        tries += 1
        if obstacle.said != told:
            told = obstacle.said
            say(f"{told}; trying again until this node is enrolled")
        until_s = now_s() + pause_s(tries, obstacle, chance())
        while (left_s := until_s - now_s()) > 0 and look() == seen:
            sleep(min(_LOOK_S, left_s))
        if (now := look()) != seen:
            tries, seen = 0, now
