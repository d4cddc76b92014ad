"""Files of the fleet's directory: written whole or not at all, keys readable by their owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

from edge.durable import FULL, write_atomically
from edge.errors import ConfigurationError

PRIVATE, PUBLIC = 0o600, 0o644


def write_file(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Replace it, never with more rights than `mode` in between; on disk when this returns. Raises ConfigurationError."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(path, data, mode)
    except OSError as error:
        cure = "free some space" if error.errno in FULL else "give this user the directory"
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}); {cure}") from None


def write_if_changed(path: Path, data: bytes, mode: int = PUBLIC) -> bool:
    """Whether it was written. Raises ConfigurationError."""
    try:
        if path.read_bytes() == data:
            return False
    except OSError:
        pass
    write_file(path, data, mode)
    return True


def close_directory(path: Path) -> None:
    """Nobody but its owner may enter it: it may have been there before. Raises ConfigurationError."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be closed to others: {error.strerror}; chmod 700 {path}") from None


def read_file(path: Path, what: str) -> bytes:
    """Raises ConfigurationError that names what it is for."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror}") from None
