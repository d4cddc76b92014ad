"""The end of the authority, told of in time: it takes weeks until all nodes have another. The time comes in."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from edge.control.authority import Authority

log = logging.getLogger(__name__)

AHEAD_DAYS = (30, 7)
"""So long before it ends a warning is logged, once each; from the first on the page tells of it."""
_CURES = {
    "issuing authority": "make another: edge fleet ca new-issuing",
    "root": "make another: edge fleet ca new-root, and later new-issuing",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """A certificate of the authority's that ends soon, or has ended. `ahead_days` is the entry of AHEAD_DAYS that is passed."""

    what: str
    serial: int
    ends: datetime
    ahead_days: int
    text: str
    """What is wrong and the cure, for people."""


def endings(authority: Authority, now: datetime) -> list[Ending]:
    """Of who signs now and the root above. One that was taken over from may end: nobody needs it."""
    current = {"issuing authority": authority.issuer.certificate, "root": authority.current_root}
    found = []
    for what, certificate in current.items():
        ends = certificate.not_valid_after_utc
        left_s = (ends - now).total_seconds()
        passed = [days for days in AHEAD_DAYS if left_s <= days * 86_400]
        if passed:
            word, then = ("ends", "from then on") if left_s > 0 else ("ended", "any more")
            text = f"the {what} {word} on {ends:%Y-%m-%d}, and nothing can be signed {then}; {_CURES[what]}"
            found.append(Ending(what, certificate.serial_number, ends, passed[-1], text))
    return found


def problem(authority: Authority, now: datetime) -> str:
    """What ends soon, for the page; nothing if nothing does."""
    return "; ".join(ending.text for ending in endings(authority, now))


class Told:
    """Which endings were told of, in this run of the server."""

    def __init__(self) -> None:
        self._told: set[tuple[int, int]] = set()

    def warn(self, authority: Authority, now: datetime) -> None:
        """In the log, of what is new."""
        for ending in self.new(endings(authority, now)):
            about = {"what": ending.what, "ends": ending.ends.isoformat(timespec="seconds")}
            log.warning(
                "the authority ends soon", extra={"event": "fleet_authority_ends", **about, "reason": ending.text}
            )

    def new(self, found: list[Ending]) -> list[Ending]:
        """Those that were not told of yet at this distance; they count as told from now on."""
        fresh = [ending for ending in found if (ending.serial, ending.ahead_days) not in self._told]
        self._told.update((ending.serial, ending.ahead_days) for ending in fresh)
        return fresh
