"""Looks into files that are still elsewhere: parts of them by range, and a GGUF header as a sparse local file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edge.durable import storage_error
from edge.errors import DownloadFailed, ModelUnusable
from edge.registry import hub, web
from edge.registry.fetch import Patience
from edge.registry.gguf import read_header
from edge.registry.source import Hub, Located, Web, file_name, parse_source, shown_url
from edge.registry.window import HeaderCutShort

MOST_HEADER_BYTES = 64 << 20
"""The largest headers known, with vocabularies of 262,144 tokens, take about 12 MB."""
_FIRST_READ_BYTES = 2 << 20
_MOST_READ_BYTES = MOST_HEADER_BYTES
_T = TypeVar("_T")


class RemoteFile:
    """One file behind http, https or hf. Use it in a `with` statement. Reads are bounded and checked; nothing is kept."""

    def __init__(
        self, source: str, patience: Patience | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Asks for the file's size. Raises DownloadFailed, ModelUnusable where `source` is none of these."""
        try:
            where = parse_source(source)
        except ValueError as error:
            raise ModelUnusable(str(error)) from None
        if not isinstance(where, Hub | Web):
            raise ModelUnusable(f"{source} is no file behind http, https or hf")
        self._patience, self._sleep = patience or Patience(), sleep
        self._web = web.client()
        try:
            if isinstance(where, Hub):
                self.located = self._with_patience(partial(hub.locate, where), source)
            else:
                shown = shown_url(where.url)
                self.located = Located(where.url, file_name(where), shown, where.url)
            self.size_bytes = self.located.size_bytes or self._ask_size()
        except BaseException:
            self._web.close()
            raise

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._web.close()

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.located.file

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on, fewer only at the end of the file. Raises DownloadFailed."""
        if start < 0 or not 0 <= length <= _MOST_READ_BYTES:
            raise ValueError(f"read of {length} bytes at {start}")
        length = min(length, max(0, self.size_bytes - start))
        return self._with_patience(partial(self._range, start, length), self.located.shown) if length else b""

    def _ask_size(self) -> int:
        def ask() -> int:
            with web.ask(self._web, "GET", self.located, {"range": "bytes=0-0"}) as answer:
                span = answer.span
                size = span.size_bytes if answer.status == 206 and span is not None else answer.length
            if size is None:
                raise DownloadFailed(f"{self.located.shown} does not say how large it is, so it cannot be looked into")
            return size

        return self._with_patience(ask, self.located.shown)

    def _range(self, start: int, length: int) -> bytes:
        with web.ask(self._web, "GET", self.located, {"range": f"bytes={start}-{start + length - 1}"}) as answer:
            span = answer.span
            partly = answer.status == 206 and span is not None and span.first == start
            if not partly and not (answer.status == 200 and start == 0):
                raise DownloadFailed(
                    f"{self.located.shown} is given only as a whole: fetch it first, `edge models pull`"
                )
            data = bytearray()
            for chunk in web.chunks(answer, self.located):
                data += chunk
                if len(data) >= length:
                    return bytes(data[:length])
        raise web.Interrupted("the server ended the file too early")

    def _with_patience(self, attempt: Callable[[], _T], what: str) -> _T:
        for failures in range(1, self._patience.tries + 1):
            try:
                return attempt()
            except web.Interrupted as error:
                if failures == self._patience.tries:
                    raise DownloadFailed(
                        f"{what} cannot be looked into: {error.what}, {failures} times in a row"
                    ) from None
                pause_s = min(self._patience.pause_s * 2 ** (failures - 1), self._patience.longest_pause_s)
                self._sleep(max(pause_s, error.retry_after_s or 0.0))
        raise AssertionError("patience without a try")


def sparse_copy(source: str, into: Path, patience: Patience | None = None) -> Path:
    """A local file in the directory `into` with the size of a remote GGUF file and its header; the weights are a hole.

    For tools that need a file to plan with. Raises DownloadFailed, ModelUnusable, DiskFull, StoreUnwritable.
    """
    with RemoteFile(source, patience) as remote:
        path = into / (Path(remote.name).name or "model.gguf")
        try:
            into.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            _grow_header(remote, path)
            os.truncate(path, remote.size_bytes)
        except OSError as error:
            raise storage_error(error, into) from None
        except ModelUnusable as error:
            path.unlink(missing_ok=True)
            raise ModelUnusable(error.message.replace(str(path), remote.located.shown)) from None
    return path


def _grow_header(remote: RemoteFile, path: Path) -> None:
    have, most = 0, min(remote.size_bytes, MOST_HEADER_BYTES)
    while True:
        with path.open("ab") as file:
            file.write(remote.read(have, min(max(have, _FIRST_READ_BYTES), most - have)))
            have = file.tell()
        try:
            read_header(path, remote.size_bytes)
            return
        except HeaderCutShort:
            if have >= most:
                raise ModelUnusable(f"{path} has a header of more than {have} bytes; it is corrupt") from None
