"""A moment by both clocks. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment by both clocks. Nanoseconds; `wall_ns` since 1970, `mono_ns` since the machine started, sleep included."""

    wall_ns: int
    mono_ns: int
    kernel_boot: str
    """Which start of the machine `mono_ns` counts from."""
    synced: bool


def retimed(stamp: Stamp, offsets_ns: dict[str, int]) -> Stamp:
    """A stamp of an unsynced clock set right, where it was learned how that start of the machine's clocks lie: `offsets_ns` is
    wall time less monotonic time, by kernel boot. Else the stamp as it is."""
    offset_ns = offsets_ns.get(stamp.kernel_boot)
    if stamp.synced or offset_ns is None:
        return stamp
    return Stamp(stamp.mono_ns + offset_ns, stamp.mono_ns, stamp.kernel_boot, True)
