"""A memory-limited control group for what a proof starts, in either generation of control groups. Needs root."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One group. Sizes in bytes."""

    place: Path
    unified: bool

    def enter(self) -> Callable[[], None]:
        """To be called in a child before it starts its program."""
        file = str(self.place / "cgroup.procs")

        def join() -> None:
            with open(file, "w") as procs:
                procs.write(str(os.getpid()))

        return join

    def kills(self) -> int:
        """Processes of the group that the kernel killed for want of memory."""
        name = "memory.events" if self.unified else "memory.oom_control"
        lines = (self.place / name).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def peak_bytes(self) -> int:
        """The most that was in use, page cache included."""
        name = "memory.peak" if self.unified else "memory.max_usage_in_bytes"
        try:
            return int((self.place / name).read_text())
        except OSError:
            return 0


@contextlib.contextmanager
def limited(limit_bytes: int, name: str) -> Iterator[ControlGroup]:
    """A group below this process's own. Raises OSError where groups cannot be made: run as root, outside of a container that
    mounts them read-only."""
    unified = not (_ROOT / "memory").is_dir()
    place = _parent(unified) / f"edge-{name}-{os.getpid()}"
    place.mkdir()
    try:
        if unified:
            (place / "memory.swap.max").write_text("0")
            (place / "memory.max").write_text(str(limit_bytes))
        else:
            (place / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield ControlGroup(place, unified)
    finally:
        _remove(place)


def _parent(unified: bool) -> Path:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    if not unified:
        path = next(line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(","))
        mine = _ROOT / "memory" / path.strip("/")
        return mine if mine.is_dir() else _ROOT / "memory"
    (_ROOT / "cgroup.subtree_control").write_text(
        "+memory"
    )  # a group with processes in it may have none below: the root may
    return _ROOT


def _remove(place: Path) -> None:
    """The kernel takes a moment after the last process has ended."""
    for _ in range(100):
        for pid in (place / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        try:
            place.rmdir()
            return
        except OSError:
            time.sleep(0.05)
