"""What the service manager hears of a node, from its start to its end, and what keeps its watchdog from ending it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

from edge.engine.child import longest_end_s
from edge.messages import Stats
from edge.residency import Pool
from edge.settings import Settings
from edge.systemd import Notifier

_TICK_S = 0.2
_WATCH_S = 1.0
_GRACE_S = 30.0
"""What the service manager is asked for beyond what a start or an end is known to take."""
_WEDGED_AFTER = 3.0
"""The engine's client replaces a child that is silent for longer than its patience. Silence for this many times as long means
that the client itself has failed, and only the service manager's watchdog is left."""


def patient(notifier: Notifier, checking: Callable[[Path, int], None]) -> Callable[[Path, int], None]:
    """`checking`, and the service manager hears that a checksum goes on: to read gigabytes from a slow disk takes longer than it
    gives a start, and what is ended in the middle begins at the first byte again."""
    told_s = -_WATCH_S

    def told(path: Path, done_bytes: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _WATCH_S:
            told_s = time.monotonic()
            notifier.busy(f"checking {path.name}", extend_s=_GRACE_S)
            notifier.alive()
        checking(path, done_bytes)

    return told


class Watch:
    """Watches the main model. Beside `patient`, which comes before it, the only one who speaks to the service manager."""

    def __init__(
        self, notifier: Notifier, pool: Pool, settings: Settings, stop: asyncio.Event, model_name: str
    ) -> None:
        """`stop`: the node was told to end."""
        self._notifier, self._pool, self._stop, self._model_name = notifier, pool, stop, model_name
        self._drain_s = settings.server.drain_timeout_s
        self._engines_s = longest_end_s(settings.cache.kept_mib << 20) + _GRACE_S
        self._period_s = min(notifier.watchdog_s or _WATCH_S, _WATCH_S)

    async def loaded(self, loading: Callable[[str, float], None]) -> bool:
        """Wait for the main model, and call `loading` with the stage and how far it is meanwhile; False if a signal came first.
        Raises ModelUnusable, DoesNotFit."""
        ready = asyncio.create_task(self._pool.wait_main(), name="wait-ready")
        stopped = asyncio.create_task(self._stop.wait(), name="wait-stop")
        try:
            while not ready.done() and not stopped.done():
                status = self._pool.roster.status(self._pool.roster.main)
                loading(status.reason, status.progress)
                self._notifier.busy(f"{status.reason} {status.progress:.0%}", extend_s=_GRACE_S)
                self._notifier.alive()  # a watchdog that was set runs on when a node starts anew
                await asyncio.wait({ready, stopped}, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return False
            await ready
            return True
        finally:
            ready.cancel()
            stopped.cancel()

    def ready(self) -> None:
        """The node serves from now on."""
        self._notifier.ready(f"serving {self._model_name}")

    async def serving(self) -> None:
        """Until a signal: tell the service manager how the main model's engine is, and that this loop runs."""
        heard, heard_s, told = self._stats(), time.monotonic(), ""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._period_s)
            status, stats, now_s = self._pool.roster.status(self._pool.roster.main), self._stats(), time.monotonic()
            if stats is not heard or status.phase != "ready":
                heard, heard_s = stats, now_s
            if now_s - heard_s < self._patience_s() * _WEDGED_AFTER:
                self._notifier.alive()
            word = f"serving {self._model_name}" if status.phase == "ready" else f"{status.phase}: {status.reason}"
            if word != told:
                self._notifier.status(word)
                told = word

    def _stats(self) -> Stats | None:
        engine = self._pool.roster.main_engine
        return engine.stats if engine is not None else None

    def _patience_s(self) -> float:
        engine = self._pool.roster.main_engine
        return engine.patience_s if engine is not None else math.inf

    def draining(self, *, begin_again: bool) -> None:
        """The node takes no new work, to end, or to begin again as the same process."""
        if begin_again:
            self._notifier.reloading("draining, to start anew")
        else:
            self._notifier.stopping("draining", extend_s=self._drain_s + self._engines_s)

    async def still_draining(self) -> None:
        """One turn of waiting for the requests that run."""
        self._notifier.alive()
        await asyncio.sleep(_TICK_S)

    def ending(self) -> None:
        """No request runs any more, or they are given up."""
        self._notifier.busy("ending the engines", extend_s=self._engines_s)

    async def stay_alive(self) -> None:
        """While the node ends: that may take longer than the watchdog waits, and is bounded by itself."""
        while True:
            self._notifier.alive()
            await asyncio.sleep(self._period_s)
