"""What a person sees of a download: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from edge import quantities

_PLAIN_STEP = 0.1
_PLAIN_STEP_BYTES = 256 << 20
_LEAST_BETWEEN_S = 0.1


class PullView:
    """Shows one download after the other. Use it in a `with` statement: on an error the bar goes before the message comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._file = ""
        self.have_bytes = 0
        self.size_bytes: int | None = None
        self._said_bytes = 0
        self._drawn_s = 0.0
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = Progress(
                *columns, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console
            )

    def __enter__(self) -> PullView:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if self._task is not None:
                self._bar.update(self._task, completed=self.have_bytes)
            self._bar.stop()

    @property
    def far(self) -> str:
        """How far it came."""
        if self.size_bytes:
            return f"{self.have_bytes / self.size_bytes:.0%} of {self._file} ({quantities.size(self.have_bytes)})"
        return f"a part of {self._file} ({quantities.size(self.have_bytes)})"

    def begins(self, file: str, have_bytes: int, size_bytes: int | None) -> None:
        """A file begins, or begins anew."""
        again = file == self._file
        self._file, self.have_bytes, self.size_bytes = file, have_bytes, size_bytes
        self._said_bytes = have_bytes
        if self._bar is None:
            if not again:
                size = "" if size_bytes is None else f", {quantities.size(size_bytes)}"
                here = f", {quantities.size(have_bytes)} of it are here" if have_bytes else ""
                self._console.print(f"{file}{size}{here}", markup=False)
        elif again and self._task is not None:
            self._bar.reset(self._task, total=size_bytes, completed=have_bytes)
        else:
            self._task = self._bar.add_task(file, total=size_bytes, completed=have_bytes)

    def has(self, have_bytes: int) -> None:
        """So much of it is here."""
        self.have_bytes = have_bytes
        if self._bar is not None and self._task is not None:
            if time.monotonic() - self._drawn_s >= _LEAST_BETWEEN_S:
                self._drawn_s = time.monotonic()
                self._bar.update(self._task, completed=have_bytes)
            return
        step = self.size_bytes * _PLAIN_STEP if self.size_bytes else _PLAIN_STEP_BYTES
        if have_bytes - self._said_bytes >= step:
            self._said_bytes = have_bytes
            share = f"{have_bytes / self.size_bytes:.0%}, " if self.size_bytes else ""
            self._console.print(f"  {share}{quantities.size(have_bytes)}", markup=False)

    def notes(self, text: str) -> None:
        """A pause, or another try."""
        self._console.print(f"  {text}", markup=False)
