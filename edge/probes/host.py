"""The machine itself: /proc, /sys and the file system of EDGE_HOME. Linux only.

Sources in the kernel's Documentation: filesystems/proc.rst (stat), accounting/psi.rst, driver-api/thermal/sysfs-api.rst,
admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.memory.host import host_memory
from edge.probes.files import entries, number, text
from edge.probes.readings import HostReading, Pressure, Temperature

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_GATED_CELSIUS = -256
"""What NVIDIA's boards report of a sensor whose part is switched off. Nothing of ours is as cold as that."""
_HOLDING_BACK = ("processor", "cpufreq", "devfreq", "cpu-cluster", "thermal-cpufreq", "thermal-devfreq")
"""Beginnings of cooling devices' names that stand for slower clocks. A fan is none of them."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where to look; elsewhere in tests."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    home: Path = Path("/")
    """EDGE_HOME."""

    @property
    def cgroup(self) -> Path:
        """Control groups."""
        return self.sys / "fs" / "cgroup"

    @property
    def device_tree(self) -> Path:
        """What the firmware says of the board."""
        return self.proc / "device-tree"


def read_host(roots: Roots) -> HostReading:
    """All that the machine tells now."""
    cpu_s, cores = _processor(text(roots.proc / "stat") or "")
    total, free = _disk(roots.home)
    clock, fastest = _clocks(roots.sys)
    return HostReading(
        cpu_s=cpu_s,
        cores=cores,
        clock_hertz=clock,
        clock_max_hertz=fastest,
        memory=host_memory(roots.proc, roots.cgroup),
        disk_total_bytes=total,
        disk_free_bytes=free,
        temperatures=tuple(_temperatures(roots.sys)),
        pressure=tuple(_pressure(roots.proc)),
        cooling=_cooling(roots.sys),
        cpu_throttles=_throttles(roots.sys),
    )


def _processor(stat: str) -> tuple[dict[str, float], int | None]:
    """Seconds by mode, and how many cores there are. Guests' time is in the user's already."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    whole = next((line[1:] for line in lines if line[0] == "cpu"), [])
    seconds = {mode: int(ticks) / _TICKS_A_SECOND for mode, ticks in zip(_MODES, whole, strict=False)}
    return seconds, sum(line[0] != "cpu" for line in lines) or None


def _disk(home: Path) -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(home)
    except OSError:
        return None, None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _clocks(sys: Path) -> tuple[float | None, float | None]:
    """Mean present clock and mean highest clock of the cores."""
    policies = [core / "cpufreq" for core in entries(sys / "devices/system/cpu", "cpu") if core.name[3:].isdigit()]
    return _mean(policies, "scaling_cur_freq"), _mean(policies, "cpuinfo_max_freq")


def _mean(policies: list[Path], name: str) -> float | None:
    found = [khz for policy in policies if (khz := number(policy / name)) is not None]
    return sum(found) / len(found) * 1000 if found else None


def _temperatures(sys: Path) -> Iterator[Temperature]:
    for zone in entries(sys / "class/thermal", "thermal_zone"):
        kind, thousandths = text(zone / "type"), number(zone / "temp")
        if kind and thousandths is not None and thousandths > _GATED_CELSIUS * 1000:
            yield Temperature(zone.name, kind, thousandths / 1000)


def _pressure(proc: Path) -> Iterator[Pressure]:
    for resource in ("cpu", "memory", "io"):
        for line in (text(proc / "pressure" / resource) or "").splitlines():
            kind, *pairs = line.split()
            fields = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if {"total", "avg10"} <= fields.keys():
                yield Pressure(resource, kind, int(fields["total"]) / 1e6, float(fields["avg10"]) / 100)


def _cooling(sys: Path) -> Mapping[str, float]:
    """By name; several of one name become the strongest of them."""
    found: dict[str, float] = {}
    for device in entries(sys / "class/thermal", "cooling_device"):
        kind, state, most = text(device / "type"), number(device / "cur_state"), number(device / "max_state")
        if kind and kind.lower().startswith(_HOLDING_BACK) and state is not None and most:
            found[kind] = max(found.get(kind, 0.0), state / most)
    return found


def _throttles(sys: Path) -> int | None:
    counts = [
        count
        for core in entries(sys / "devices/system/cpu", "cpu")
        if (count := number(core / "thermal_throttle/core_throttle_count")) is not None
    ]
    return sum(counts) if counts else None
