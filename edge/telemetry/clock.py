"""What time it is, and whether that can be believed: boxes without a battery start in 1970 and learn the time later."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Protocol

from edge.telemetry.stamp import Stamp

_KERNEL_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIME_ERROR = 5
"""What adjtimex(2) returns while no source has set the clock."""
_TIMEX_BYTES = 512
"""More than `struct timex` takes anywhere."""


class Clock(Protocol):
    """Where stamps come from."""

    def now(self) -> Stamp:
        """This moment."""
        ...


class SystemClock:
    """The machine's own clocks. `trusted`: the wall clock is right whatever the kernel says of it."""

    def __init__(self, *, trusted: bool = False) -> None:
        self._trusted = trusted
        try:
            self._kernel_boot = _KERNEL_BOOT.read_text("ascii").strip()
        except OSError:
            self._kernel_boot = "unknown"

    def now(self) -> Stamp:
        """This moment."""
        mono_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Stamp(time.time_ns(), mono_ns, self._kernel_boot, self._trusted or kernel_synced())


def kernel_synced() -> bool:
    """Whether a time source (NTP, PTP) has set the kernel's clock. False where that cannot be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = int(libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR


def new_boot_id() -> str:
    """A name for one life of one process: never used twice. 16 hexadecimal digits."""
    return os.urandom(8).hex()
