"""Small files of /proc and /sys. A file that is not there, or cannot be read now, is no figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def text(path: Path) -> str | None:
    """A file's text without white space around it."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:  # also what a sensor answers that sleeps: EAGAIN, ENODATA, EIO
        return None


def number(path: Path) -> int | None:
    """The whole number that a file holds."""
    found = text(path)
    try:
        return None if found is None else int(found)
    except ValueError:
        return None


def entries(directory: Path, beginning: str = "") -> Iterator[Path]:
    """What lies in a directory, by name; numbers in their order."""
    try:
        found = [path for path in directory.iterdir() if path.name.startswith(beginning)]
    except OSError:
        return
    yield from sorted(found, key=lambda path: (len(path.name), path.name))
