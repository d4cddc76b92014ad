"""What the threads of another process are like."""

from __future__ import annotations

import contextlib
import os

import psutil


def policies_of(pid: int) -> set[int]:
    """How its threads are scheduled. Those that end while they are looked at are left out."""
    found: set[int] = set()
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(thread.id))
    return found
