"""Somebody else's work beside a measurement."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event


def _burn(stop: Event) -> None:
    while not stop.is_set():
        sum(range(10_000))


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that burns one core."""
    stop = multiprocessing.Event()
    burner = multiprocessing.Process(target=_burn, args=(stop,), daemon=True)
    burner.start()
    try:
        yield
    finally:
        stop.set()
        burner.join()
