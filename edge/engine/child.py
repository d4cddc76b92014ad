"""An engine child as a process: started with one end of a socket pair, listened to, ended for certain."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from typing import Self

from edge.messages import Message, Quit, frame

log = logging.getLogger(__name__)

_SEND_BUFFER_BYTES = 1 << 21
_THREAD_WAIT = {"GOMP_SPINCOUNT": "1000"}
"""How long OpenMP's threads spin for each other before they sleep; must be set before the process starts. The library's own
default costs the whole scheduling quantum of a core that somebody else wants (docs/adr/0002). The environment overrides."""
_STDERR_BYTES = 1 << 16
_LAST_WORDS = 12
_LONGEST_WORD = 300
_QUIT_GRACE_S = 5.0
_LAST_BREATH_S = 0.3


class ChildProcess:
    """Owner of one child's process, pipe and standard error."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._writer = writer
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._listener = asyncio.create_task(self._listen(), name="engine-stderr")
        self.reader = reader
        """What the child says, as a byte stream of frames."""

    @classmethod
    async def spawn(cls, environment: dict[str, str]) -> Self:
        """Start `edge.engine.worker`; it waits for a Load."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edge.engine.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**_THREAD_WAIT, **os.environ, **environment},
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, data: bytes) -> None:
        """Write a frame; it is buffered while the child does not read."""
        self._writer.write(data)

    def say(self, *messages: Message) -> None:
        """Write messages as one frame."""
        self.send(frame(*messages))

    def kill(self) -> None:
        """End the process at once. Its pipe closes, which is how the owner hears of it."""
        if self._process.returncode is None:
            self._process.kill()

    async def end(self, *, quietly: bool) -> None:
        """End the process for certain. `quietly`: ask first, and give it time; else it has closed its pipe already."""
        if quietly and not self._writer.is_closing():
            self.say(Quit())
        try:
            await asyncio.wait_for(self._process.wait(), _QUIT_GRACE_S if quietly else _LAST_BREATH_S)
        except TimeoutError:
            log.warning("engine did not end by itself", extra={"event": "engine_kill"})
            self.kill()
            await self._process.wait()
        self._writer.close()
        await asyncio.gather(self._listener, return_exceptions=True)

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
        if line := line.rstrip()[:_LONGEST_WORD]:
            self._words.append(line)
            log.debug("engine says", extra={"event": "engine_stderr", "line": line})
