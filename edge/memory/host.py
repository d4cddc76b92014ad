"""Main memory that this process may still take: the machine's, less what its control groups forbid. Linux only.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel. A group's usage counts page cache,
which the kernel gives back when memory is wanted; the inactive part of it counts as free here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as the largest number of whole pages."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Sizes in bytes. `limit_bytes` is the tightest control group's, None without one."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None

    @property
    def source(self) -> str:
        """Where `available_bytes` comes from, for people."""

        if self.limit_bytes is None or self.limit_bytes >= self.total_bytes:
            return "this machine"
        return f"a control group limited to {self.limit_bytes / 2**20:,.0f} MiB"


def host_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> HostMemory | None:
    """What there is now; None if the kernel does not say."""
    total, available = (_behind(proc / "meminfo", name) for name in ("MemTotal:", "MemAvailable:"))
    if total is None or available is None:
        return None
    total, available = total * 1024, available * 1024
    limit: int | None = None
    for group in _groups(proc, cgroup):
        granted, used = group
        limit = granted if limit is None else min(limit, granted)
        available = min(available, max(0, granted - used))
    return HostMemory(total, available, limit)


def oom_kills(proc: Path = _PROC) -> int:
    """How many processes the kernel has killed for want of memory since it started, in all control groups; 0 if it does not
    count."""
    return _behind(proc / "vmstat", "oom_kill ") or 0


def proportional_bytes(pid: int, proc: Path = _PROC) -> int:
    """Memory of a process, pages that it shares divided by those who share them (PSS); 0 if it has gone."""
    return (_behind(proc / str(pid) / "smaps_rollup", "Pss:") or 0) * 1024


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be given back) of this process's group and of each above it that has a limit."""
    unified, legacy = _paths(proc)
    if legacy is not None:
        root = cgroup / "memory"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        yield from _limits(root, legacy, names)
    if unified is not None:
        for limit in ("memory.max", "memory.high"):  # beyond the second nothing is killed, but all of it stands still
            yield from _limits(cgroup, unified, (limit, "memory.current", "inactive_file"))


def _paths(proc: Path) -> tuple[str | None, str | None]:
    """This process's place in the unified hierarchy and in version 1's memory hierarchy."""
    unified = legacy = None
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return "/", None
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            unified = path
        elif "memory" in controllers.split(","):
            legacy = path
    return unified, legacy


def _limits(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[tuple[int, int]]:
    place = root / path.strip("/")
    if not place.is_dir():  # in a container that sees its own group as the root, under the path that the host knows
        place = root
    while True:
        if (found := _limit(place, *names)) is not None:
            yield found
        if place == root:
            return
        place = place.parent


def _limit(place: Path, limit: str, usage: str, reclaimable: str) -> tuple[int, int] | None:
    """A limit holds also where the kernel does not say how much of it is used."""
    granted = _number(place / limit)  # the word `max` is no number: no limit
    if granted is None or granted >= _UNLIMITED:
        return None
    cache = _behind(place / "memory.stat", reclaimable + " ") or 0
    return granted, max(0, (_number(place / usage) or 0) - cache)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _behind(path: Path, name: str) -> int | None:
    """The number behind a name in a file of such lines."""
    try:
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
