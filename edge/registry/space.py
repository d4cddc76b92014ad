"""Whether a file fits on the disk, asked before it is fetched."""

from __future__ import annotations

import os
from pathlib import Path

from edge.durable import storage_error
from edge.errors import DiskFull
from edge.quantities import size

RESERVE_BYTES = 64 << 20
"""Stays free: logs, settings and the operating system live on the same disk on most small boxes."""


def free_bytes(directory: Path) -> int:
    """What this user may still write there. Raises StoreUnwritable."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise storage_error(error, directory) from None
    return status.f_bavail * status.f_frsize


def require_space(directory: Path, needed_bytes: int) -> None:
    """Raises DiskFull, with the figures, unless so much fits beside the reserve."""
    free = free_bytes(directory)
    if needed_bytes and needed_bytes + RESERVE_BYTES > free:
        raise DiskFull(
            f"not enough space: {size(needed_bytes)} are still to come and {size(RESERVE_BYTES)} must stay free, "
            f"the disk of {directory} has {size(free)} free; `edge models prune` and `edge models remove NAME` make room, "
            "or put EDGE_HOME on a larger disk"
        )
