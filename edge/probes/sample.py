"""The probes' thread: reads all hardware at an interval, and keeps the newest readings for whoever asks.

The management library and sleeping sensors may block; that happens here, never on the event loop. If a round hangs, its readings
grow old, and old readings are no readings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge.probes.gpu import GpuProbe
from edge.probes.host import Roots, read_host
from edge.probes.jetson import read_board, read_gpu
from edge.probes.readings import Readings
from edge.probes.throttle import Change, ThrottleWatch

log = logging.getLogger(__name__)

_TOO_OLD = 3.0
"""Readings older than so many intervals are not shown."""
_LEAST_OLD_S = 5.0
_JOIN_S = 2.0


class Probes:
    """Owner of the thread. `start` it once the process forks no more; `stop` ends it."""

    def __init__(self, roots: Roots, interval_s: float, on_change: Callable[[Change], None]) -> None:
        """`on_change` is called on the probes' thread when a slowdown begins or is over."""
        self._roots, self._interval_s, self._on_change = roots, interval_s, on_change
        self._newest: Readings | None = None
        self.first: Readings | None = None
        """What was read before anything else: where counters stood that are older than this process."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
        self.throttle = ThrottleWatch()

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait a moment for a round that runs; one that hangs is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def now(self) -> Readings | None:
        """The newest readings; None before the first, and when the last are too old to be true."""
        newest = self._newest
        if newest is None or time.monotonic() - newest.at_s > max(_LEAST_OLD_S, _TOO_OLD * self._interval_s):
            return None
        return newest

    def _run(self) -> None:
        gpus = GpuProbe()
        try:
            while True:
                self._round(gpus)
                if self._stop.wait(self._interval_s):
                    return
        finally:
            gpus.close()

    def _round(self, gpus: GpuProbe) -> None:
        try:
            self._newest = newest = read_all(self._roots, gpus)
            self.first = self.first or newest
            change = self.throttle.look(newest)
        except Exception as error:  # a strange board must not end the probes for good
            log.error("probes failed", extra={"event": "bug"}, exc_info=error)
            return
        if change is not None:
            self._on_change(change)


def read_all(roots: Roots, gpus: GpuProbe) -> Readings:
    """One round."""
    begun_s = time.monotonic()
    host, board = read_host(roots), read_board(roots)
    found = gpus.read()
    if board is not None:
        found = [read_gpu(roots, board, host, found[0] if found else None)]
    now_s = time.monotonic()
    return Readings(now_s, host, tuple(found), gpus.driver, board, now_s - begun_s)
