"""Keeps Python's own housekeeping out of the way of running answers: its collector, and threads that hold the interpreter."""

from __future__ import annotations

import gc
import sys

_YOUNG_OBJECTS, _MIDDLE_ROUNDS, _OLD_ROUNDS = 700, 10, 1000
"""A collection takes as long as there are objects to look at: some 1.5 ms a thousand on a small box. So the young are looked at
often and in small numbers, and all of them very seldom: requests leave hardly any cycles behind."""
_SWITCH_INTERVAL_S = 0.0005
"""A busy thread at the side may hold the interpreter this long while the loop wants it; Python's default is 5 ms."""


def settle_collector() -> None:
    """Call once when a process is ready to work.

    What exists by then stays for good, and is never looked at again: a full collection over the modules of a web
    framework takes 50 ms and more, in the middle of somebody's answer. What requests leave behind is still collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _MIDDLE_ROUNDS, _OLD_ROUNDS)


def yield_soon() -> None:
    """Call at a process's begin: no thread of it keeps the loop from running for long."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
