"""A view through which a file's header is read, piece by piece. Nothing that the file says of its own lengths is believed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from edge.errors import ModelUnusable

_WINDOW_BYTES = 1 << 20

Value = int | float | bool | str


class HeaderCutShort(ModelUnusable):
    """The header goes on behind what is here of the file."""


class Window:
    """A bounded view that moves forward through a file. Every read is checked against the file's size first."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self.size = path, file, size
        self._data, self._start, self.position = b"", 0, 0

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.position

    def require(self, count: int, what: str) -> None:
        """Raise ModelUnusable unless `count` more bytes exist."""
        if count > self.left:
            raise ModelUnusable(
                f"{self._path} is cut short or corrupt: at byte {self.position} {what} needs {count} bytes, "
                f"{self.left} are left; download it again"
            )

    def skip(self, count: int, what: str) -> None:
        """Go forward."""
        self.require(count, what)
        self.position += count

    def take(self, count: int, what: str) -> bytes:
        """Read `count` bytes; callers bound `count` by what they are willing to keep."""
        self.require(count, what)
        offset = self._reach(count, what)
        self.position += count
        return self._data[offset : offset + count]

    def scalar(self, form: struct.Struct, what: str) -> Value:
        """Read one number."""
        self.require(form.size, what)
        offset = self._reach(form.size, what)
        self.position += form.size
        return form.unpack_from(self._data, offset)[0]  # type: ignore[no-any-return]

    def count(self, form: struct.Struct, what: str) -> int:
        """Read one unsigned number."""
        return int(self.scalar(form, what))

    def _reach(self, count: int, what: str) -> int:
        offset = self.position - self._start
        if offset + count > len(self._data):
            self._file.seek(self.position)
            self._data, self._start, offset = self._file.read(max(count, _WINDOW_BYTES)), self.position, 0
            if len(self._data) < count:  # only the beginning is here, or the file shrank under us
                raise HeaderCutShort(
                    f"{self._path} is cut short: at byte {self.position} {what} needs {count} bytes; download it again"
                )
        return offset
