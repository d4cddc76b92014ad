"""One node on one EDGE_HOME: two would be one identity, and put their records into one outbox.

The kernel keeps the lock for a process and takes it back when that ends, however it ends. Children do not inherit it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from edge.durable import lock, open_lock
from edge.errors import EdgeError

log = logging.getLogger(__name__)

LOCK = "serve.lock"
_LONGEST_NOTE = 300
_GOING_S = 1.0
"""So long a node that ends is waited for: its process is gone a moment before what it held is free."""


class HomeBusy(EdgeError):
    """Another node runs on this EDGE_HOME."""

    code = "home_busy"


@contextlib.contextmanager
def sole_node(home: Path) -> Iterator[None]:
    """Be the one node on `home` meanwhile. Raises HomeBusy. Where no lock can be had, since the directory cannot be written to or
    its file system has none, a warning says so and nothing is held."""
    descriptor = _opened(home)
    try:
        if descriptor is not None:
            _take(descriptor, home)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def running(home: Path) -> str | None:
    """Who runs a node on `home`: ` (process N)`, empty if it does not say so; None if nobody does, or nobody can know."""
    try:
        descriptor = os.open(home / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:  # shared and for a moment: a node that starts just now waits for longer
        lock(descriptor, wait=False, shared=True)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _opened(home: Path) -> int | None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        return open_lock(home / LOCK)
    except OSError as error:
        _warn(home, error.strerror or str(error))
        return None


def _take(descriptor: int, home: Path) -> None:
    try:
        unlocked = lock(descriptor, wait=False, patience_s=_GOING_S)
    except BlockingIOError:
        raise HomeBusy(
            f"another node runs on {home} already{_holder(descriptor)}; stop it, or give this one a directory of its own: "
            "edge --home DIRECTORY serve"
        ) from None
    except OSError as error:
        unlocked = error.strerror or str(error)
    if unlocked:
        _warn(home, unlocked)
        return
    with contextlib.suppress(OSError):  # a full disk takes nobody the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    """Who wrote himself down, empty if that cannot be read. In another container a process id alone says little."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = os.pread(descriptor, _LONGEST_NOTE, 0).decode().split()
        return f" (process {int(pid)}{'' if host == socket.gethostname() else f' of {host}'})"
    return ""


def _warn(home: Path, reason: str) -> None:
    log.warning(
        "no lock can be had in EDGE_HOME: nothing keeps a second node from running on it",
        extra={"event": "home_unlocked", "home": str(home), "reason": reason},
    )
