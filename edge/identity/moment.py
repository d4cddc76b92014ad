"""What time it is, as far as a node can know, and when a certificate is renewed. Pure: both clocks come in as a `Stamp`.

Boxes without a battery start in 1970, and a wrong source may set any year. A clock is believed if the kernel says that it was set
and the year can be: not before what is known to be past, not ten years after it. Where it is not believed, certificates are
checked without their dates, and the fleet's word (the Date of its authenticated answers) serves until the machine starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from edge.telemetry.stamp import Stamp

RELEASED_S = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""It was later than this when the software was made."""
_FAR_S = 10 * 365 * 86_400.0
_SPREAD_SHARE = 0.2
"""Of the time between the due moment and the end: nodes that were enrolled in one hour shall not renew in one."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _URGENT_PAUSE_S = 60.0, 6 * 3600.0, 900.0
_URGENT_SHARE = 0.1

Standing = Literal["good", "due", "expiring", "expired"]


@dataclass(frozen=True, slots=True)
class Known:
    """What was learned of the time. Kept over restarts."""

    floor_s: float = RELEASED_S
    """It is later than this, certainly: a believed clock or a certificate that we were given said so."""
    told_s: float = 0.0
    """What the fleet's clock said when this machine's `mono_ns` was `told_mono_ns`, since the start `kernel_boot`."""
    told_mono_ns: int = 0
    kernel_boot: str = ""

    def later(self, floor_s: float) -> Known:
        """It is at least that late."""
        return Known(max(self.floor_s, floor_s), self.told_s, self.told_mono_ns, self.kernel_boot)

    def told(self, told_s: float, stamp: Stamp) -> Known:
        """The fleet's clock says so, now."""
        return Known(self.floor_s, told_s, stamp.mono_ns, stamp.kernel_boot)


def believed_s(stamp: Stamp, known: Known) -> float | None:
    """Unix time that certificates may be judged by; None if there is none to believe."""
    wall_s = stamp.wall_ns / 1e9
    return wall_s if stamp.synced and _possible(wall_s, known) else None


def best_guess_s(stamp: Stamp, known: Known) -> float:
    """Unix time for what is no matter of trust: when to renew, what to show."""
    if (believed := believed_s(stamp, known)) is not None:
        return believed
    if known.kernel_boot == stamp.kernel_boot and known.told_s:
        return max(known.floor_s, known.told_s + (stamp.mono_ns - known.told_mono_ns) / 1e9)
    wall_s = stamp.wall_ns / 1e9
    return wall_s if _possible(wall_s, known) else known.floor_s


def has_no_idea(stamp: Stamp, known: Known) -> bool:
    """Nothing but the floor is known since the machine started: the fleet should be asked."""
    return believed_s(stamp, known) is None and not (known.kernel_boot == stamp.kernel_boot and known.told_s)


def _possible(wall_s: float, known: Known) -> bool:
    return known.floor_s <= wall_s <= known.floor_s + _FAR_S


@dataclass(frozen=True, slots=True)
class Life:
    """A certificate's times, in Unix seconds, and its share of the jitter, 0..1: the same each time it is asked for."""

    begins_s: float
    ends_s: float
    at_share: float
    jitter: float

    @property
    def due_s(self) -> float:
        """When it is renewed."""
        length_s = self.ends_s - self.begins_s
        return self.begins_s + length_s * (self.at_share + (1 - self.at_share) * _SPREAD_SHARE * self.jitter)

    def standing(self, now_s: float) -> Standing:
        """`expiring`: it should long have been renewed; half of what was left for that is gone."""
        if now_s >= self.ends_s:
            return "expired"
        if now_s >= (self.begins_s + (self.ends_s - self.begins_s) * self.at_share + self.ends_s) / 2:
            return "expiring"
        return "due" if now_s >= self.due_s else "good"


def pause_s(failures: int, life: Life, now_s: float, chance: float) -> float:
    """Until the next try after so many in a row that failed; `chance` 0..1. Oftener when the end is near."""
    longest_s = _LONGEST_PAUSE_S
    if now_s > life.ends_s - _URGENT_SHARE * (life.ends_s - life.begins_s):
        longest_s = _URGENT_PAUSE_S
    return float(min(longest_s, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20)) * (0.75 + chance / 2))


def next_pause_s(life: Life, now_s: float, chance: float) -> float:
    """Until the next try after one that went well and yet brought a certificate that is due already: one of two clocks is
    wrong, or certificates are very short."""
    left_s = life.ends_s - now_s
    longest_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, left_s / 2)) if left_s > 0 else _LONGEST_PAUSE_S
    return longest_s * (0.75 + chance / 4)


def floor_by_clock(stamp: Stamp, known: Known, last_use_s: float) -> Known | None:
    """What the machine's own clock teaches, once a day (flash wears); None: nothing. Beyond `last_use_s`, when the certificate
    cannot even be renewed any more, only a fleet that agrees moves the floor: one wrong source must not spoil a box for good."""
    now_s = believed_s(stamp, known)
    if now_s is None or not known.floor_s + 86_400 < now_s <= last_use_s:
        return None
    return known.later(now_s)
