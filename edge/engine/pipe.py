"""A child's own end of things: the socket pair, its life and its place behind others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from edge.machine import die_with_parent
from edge.messages import FrameReader, Message, frame

EXIT_LOAD_FAILED = 3
EXIT_ENGINE_BROKEN = 70
_READ_BYTES = 1 << 18
_NICEST = 19

HeardT = TypeVar("HeardT")


class Pipe(Generic[HeardT]):
    """The child's end of the socket pair. Any thread may send; one reads."""

    def __init__(self, fd: int, decode: Callable[[bytes], list[HeardT]]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._decode = decode
        self._lock = threading.Lock()
        self._frames = FrameReader()
        self._room = memoryview(bytearray(_READ_BYTES))
        """Where it is read to. It is had from the start: while a pass takes all the memory there is, there would be none."""

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages as one frame. A front that is gone ends the process: nobody is left to answer. Raises FrameTooLarge."""
        data = frame(*messages)
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                os._exit(0)

    def receive(self) -> Iterable[HeardT]:
        """Yield what the front says until it closes the pipe. Raises msgspec.DecodeError, FrameTooLarge."""
        while count := self._socket.recv_into(self._room):
            for payload in self._frames.feed(self._room[:count]):
                yield from self._decode(payload)


def end_with_parent() -> None:
    """The kernel kills this process when the front dies, even by SIGKILL; Ctrl-C, SIGTERM and a terminal that is closed are the
    front's to handle."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def step_back() -> None:
    """Run only when nobody else wants the processor: threads that libraries have started already, and all that come.

    A sandbox may forbid it. Then this process takes its turn like the others, and says so.
    """
    seen: set[str] = set()
    try:
        while came := set(os.listdir("/proc/self/task")) - seen:  # those too that threads ahead of us start meanwhile
            for thread in came:
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
            seen |= came
    except OSError:
        try:
            os.nice(_NICEST)
        except OSError as error:
            print(f"engine: it cannot step back behind others: {error.strerror}", file=sys.stderr, flush=True)
