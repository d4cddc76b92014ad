"""What a figure was measured on: the machine in words, and how quiet it was."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel, versions and date; no names and no paths."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 1024**2, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "llama_cpp_python": _version("llama-cpp-python"),
        "edge": _version("edge-node"),
    }


def largest_gap_s(seconds: float) -> float:
    """The longest that a spinning loop was kept from running: what no server on this machine can beat."""
    end = time.perf_counter() + seconds
    last, worst = time.perf_counter(), 0.0
    while last < end:
        now = time.perf_counter()
        worst = max(worst, now - last)
        last = now
    return worst


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
