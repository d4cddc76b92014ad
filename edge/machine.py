"""What this machine is, and the cores that it grants this process, control groups included. Linux only."""

from __future__ import annotations

import ctypes
import math
import os
import signal
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and its control group's quota rounded up."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no version 2 control group: affinity alone counts
        pass
    return max(1, cores)


def processor(proc: Path = _PROC) -> str:
    """What kind of processor this is: figures taken on another do not hold here."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))}
    return f"{', '.join(sorted(names))}; {len(os.sched_getaffinity(0))} cores"


def resident_bytes(pid: int, proc: Path = _PROC) -> int:
    """Memory that a process holds at present; 0 if it has gone."""
    try:
        with open(f"{proc}/{pid}/statm", "rb", buffering=0) as file:  # asked for at every poll of the node
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that ended (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
