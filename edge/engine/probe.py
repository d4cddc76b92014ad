"""The front's half of the measuring child: what layouts of a model would take, asked one by one."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from edge.errors import ModelUnusable, from_code
from edge.messages import (
    FrameReader,
    FrameTooLarge,
    FromMeasure,
    LaidOut,
    Measured,
    MeasureFailed,
    MeasureLayout,
    MeasureModel,
    frame,
    from_measure,
)

_ANSWER_S = 120.0
"""Longest silence. A vocabulary of a quarter of a million tokens takes seconds on a slow box."""
_READ_BYTES = 1 << 16
_WORDS_BYTES = 2000


class LayoutProbe:
    """Owner of one measuring child. A context manager; blocks, so it belongs into a thread of its own."""

    def __init__(self, path: Path, *, cores: int, gpu_layers: int) -> None:
        self._path = path
        self._cores = cores
        self._gpu_layers = gpu_layers
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = FrameReader()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def model(self) -> Measured:
        """What is true of every layout. Raises ModelUnusable with the library's own words."""
        reply = self._ask(MeasureModel(str(self._path), self._cores, self._gpu_layers))
        if isinstance(reply, Measured):
            return reply
        raise self._refused(reply)

    def layout(self, wish: MeasureLayout) -> LaidOut | None:
        """What one layout takes; None if the library cannot lay it out. Raises ModelUnusable if the child fails."""
        if self._process is None:
            self.model()
        reply = self._ask(wish)
        return reply if isinstance(reply, LaidOut) else None

    def _refused(self, reply: FromMeasure) -> Exception:
        if isinstance(reply, MeasureFailed):
            error = from_code(reply.code, reply.message)
            return error if isinstance(error, ModelUnusable) else ModelUnusable(reply.message)
        return ModelUnusable(f"{self._path} cannot be measured: the child answered something else")

    def _ask(self, wish: MeasureModel | MeasureLayout) -> FromMeasure:
        process = self._child()
        assert process.stdin is not None
        try:
            process.stdin.write(frame(wish))
            process.stdin.flush()
            return self._answer(process)
        except (OSError, EOFError, FrameTooLarge, msgspec.DecodeError) as error:
            raise ModelUnusable(f"{self._path} cannot be measured: {self._last_words(process) or error}") from None

    def _child(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._frames = FrameReader()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge.engine.measure"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"GGML_NO_BACKTRACE": "1", **os.environ},
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> FromMeasure:
        """The next message. Standard error is drained meanwhile: a full pipe would stop the child."""
        assert process.stdout is not None and process.stderr is not None
        until_s = time.monotonic() + _ANSWER_S
        self._words = b""
        replies, words = process.stdout.fileno(), process.stderr.fileno()
        waiting = select.poll()  # select takes no file above 1,023, and a node has as many as connections
        for file in (replies, words):
            waiting.register(file, select.POLLIN)
        while (left_s := until_s - time.monotonic()) > 0:
            readable = [file for file, _ in waiting.poll(left_s * 1000)]
            if words in readable:
                self._words = (self._words + os.read(words, _READ_BYTES))[-_WORDS_BYTES:]
            if replies in readable:
                data = os.read(replies, _READ_BYTES)
                if not data:
                    raise EOFError
                for payload in self._frames.feed(data):
                    return from_measure(payload)[0]
        raise OSError(f"no answer for {_ANSWER_S:.0f} s")

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        process.kill()
        _, rest = process.communicate()
        self._process = None
        words = (self._words + rest).decode("utf-8", "replace").strip().splitlines()
        with contextlib.suppress(IndexError):
            return words[-1]
        return ""
