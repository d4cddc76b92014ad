"""An engine child as a process: started with one end of a socket pair, listened to, ended for certain."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Self, cast

from edge.memory.host import oom_kills
from edge.messages import EXIT_NO_MEMORY, Message, Quit, frame

log = logging.getLogger(__name__)

_SIGKILL = 9
_NO_MEMORY_WORDS = re.compile(
    r"bad_alloc|out of memory|failed to allocate|insufficient memory|cannot allocate memory|mem_buffer != NULL|MemoryError"
    r"|memory allocation of \d+ bytes failed",
    re.IGNORECASE,
)
"""How the C++ runtime, OpenMP, ggml, Python and Rust say in their last words that an allocation failed."""
_SEND_BUFFER_BYTES = 1 << 21
THREAD_WAIT = {"GOMP_SPINCOUNT": "5000"}
"""How long OpenMP's threads spin for each other before they sleep; must be set before the process starts. The library's own
default costs the whole scheduling quantum of a core that somebody else wants (docs/adr/0002). The environment overrides."""
_STDERR_BYTES = 1 << 16
_LAST_WORDS = 12
_LONGEST_WORD = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_QUIT_GRACE_S = 5.0
_SLOW_DISK_BYTES_PER_S = 10e6
_LAST_BREATH_S = 0.3


def longest_end_s(writes_bytes: int) -> float:
    """How long a child that is asked to end is waited for, if it writes so much to disk."""
    return _QUIT_GRACE_S + writes_bytes / _SLOW_DISK_BYTES_PER_S


class _Pipe(asyncio.Protocol):
    """Our end of the socket pair. Hands bytes over as they come: a stream reader would cost every token a task switch."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_data: Callable[[bytes], None] | None = None
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the base class

    def data_received(self, data: bytes) -> None:
        if self.on_data is None:
            self._early += data
            return
        try:
            self.on_data(data)
        except Exception as error:  # the owner waits in `hear` and gets it there
            self._close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(None)  # a child that died with bytes unread is an end like any other

    def hear(self, on_data: Callable[[bytes], None]) -> None:
        self.on_data = on_data
        if self._early:
            self.data_received(bytes(self._early))
            self._early.clear()

    def _close(self, error: Exception | None) -> None:
        assert self.transport is not None
        if not self.closed.done():
            if error is None:
                self.closed.set_result(None)
            else:
                self.closed.set_exception(error)
        self.transport.close()


class ChildProcess:
    """Owner of one child's process, pipe and standard error."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: _Pipe) -> None:
        self._process = process
        self._pipe = pipe
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._killed = False
        self._oom_kills = oom_kills()
        self._listener = asyncio.create_task(self._listen(), name="engine-stderr")

    @classmethod
    async def spawn(cls, module: str, environment: dict[str, str]) -> Self:
        """Start a child's module, such as `edge.engine.worker`; it waits for a load."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**THREAD_WAIT, **os.environ, **environment},
            )
        _, pipe = await asyncio.get_running_loop().create_unix_connection(_Pipe, sock=ours)
        return cls(process, pipe)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, data: bytes | bytearray) -> None:
        """Write a frame; it is buffered while the child does not read."""
        if self._pipe.transport is not None:
            self._pipe.transport.write(data)

    def say(self, *messages: Message) -> None:
        """Write messages as one frame."""
        self.send(frame(*messages))

    async def hear(self, on_data: Callable[[bytes], None]) -> None:
        """Give `on_data` all that the child says, until it closes its end. Raises what `on_data` raises."""
        self._pipe.hear(on_data)
        await asyncio.shield(self._pipe.closed)  # a listener that is given up does not close the pipe

    def kill(self) -> None:
        """End the process at once. Its pipe closes, which is how the owner hears of it."""
        if self._process.returncode is None:
            self._killed = True
            self._process.kill()

    async def end(self, *, quietly: bool, writes_bytes: int = 0) -> None:
        """End the process for certain. `quietly`: ask first, and give it time, more if it writes that much to disk; else it has
        closed its pipe already."""
        grace_s = longest_end_s(writes_bytes)
        if quietly and not self._pipe.closed.done():
            self.say(Quit())
        try:
            await asyncio.wait_for(self._process.wait(), grace_s if quietly else _LAST_BREATH_S)
        except TimeoutError:
            log.warning("engine did not end by itself", extra={"event": "engine_kill"})
            self.kill()
            await self._process.wait()
        if self._pipe.transport is not None:
            self._pipe.transport.close()
        await asyncio.gather(self._listener, return_exceptions=True)

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it ended for want of memory: by its own word, its last words, or the kernel's hand; for after `end`."""
        status = self._process.returncode
        if status == EXIT_NO_MEMORY:
            return True
        if status == -_SIGKILL and not self._killed:
            return oom_kills() > self._oom_kills
        return status not in (0, None) and any(_NO_MEMORY_WORDS.search(line) for line in self._words)

    @property
    def epitaph(self) -> str:
        """How it ended and its last words; for after `end`."""
        status = self._process.returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        words = next((w for w in reversed(self._words) if w), "")
        return f"the process was {how}" + (f": {words}" if words else "")

    async def _listen(self) -> None:
        """Keep the last lines of standard error: an abort says there why. Read in pieces: a line may be of any length."""
        assert self._process.stderr is not None
        rest = ""
        while data := await self._process.stderr.read(_STDERR_BYTES):
            *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                self._hear(line)
            rest = rest[-_LONGEST_WORD:]
        self._hear(rest)

    def _hear(self, line: str) -> None:
        if line := _COLOURS.sub("", line).rstrip()[:_LONGEST_WORD]:
            self._words.append(line)
            log.debug("engine says", extra={"event": "engine_stderr", "line": line})
