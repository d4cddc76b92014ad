"""Signs of life while a pass runs whose length a client has chosen, and an end to it once it has lasted too long."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge.errors import EdgeError, EngineFault

_BEAT_S = 0.5


class PassStopped(Exception):
    """The pass was told to stop, and did."""


@contextmanager
def faults_named() -> Iterator[None]:
    """Around what is computed for a request. Our own bugs fail that request, and end nothing: raises EngineFault for them. What
    the model or its memory is to blame for passes through."""
    try:
        yield
    except (EdgeError, MemoryError, PassStopped):
        raise
    except Exception as error:
        traceback.print_exc()
        raise EngineFault(f"the engine failed at this request (a bug, {type(error).__name__}; see its log)") from None


class Pulse(threading.Thread):
    """Speaks while `over` is entered, for `limit_s` at most: then it tells the pass to stop, and is silent, so that whoever
    watches the process sees one that does not stop."""

    def __init__(self, limit_s: float, say: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__(name="pulse", daemon=True)
        self._limit_s, self._say, self._stop_pass = limit_s, say, stop
        self._running = threading.Event()
        self._lock = threading.Lock()
        self._until_s: float | None = None
        """When the pass that runs is to be stopped; None while none runs. Guarded by the lock."""
        self.start()

    @contextmanager
    def over(self) -> Iterator[None]:
        """Around one pass."""
        with self._lock:
            self._until_s = time.monotonic() + self._limit_s
        self._running.set()
        try:
            yield
        finally:
            with self._lock:
                self._until_s = None
            self._running.clear()

    def run(self) -> None:
        while True:
            self._running.wait()
            time.sleep(min(_BEAT_S, self._limit_s))
            with self._lock:  # a pass that ends meanwhile must not have the next one stopped
                late = self._until_s is not None and time.monotonic() >= self._until_s
                if late:
                    self._stop_pass()
                    self._until_s = None
                    self._running.clear()
                running = self._until_s is not None
            if running:
                self._say()
