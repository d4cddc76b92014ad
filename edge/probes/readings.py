"""What one round of probes found. Frozen: made on the probes' thread, read on any. None, or no entry: not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.memory.host import HostMemory

GPU_FIELDS = (
    "utilization", "memory", "power", "power_limit", "energy", "temperature", "sm_clock", "sm_clock_max", "memory_clock",
    "throttle", "ecc", "processes", "xid",
)  # fmt: skip
"""What each GPU is asked for."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One card, MIG slice or board GPU. `supported` has an entry for each field that has been asked for."""

    index: int
    uuid: str
    name: str
    supported: Mapping[str, bool]
    is_slice: bool = False
    bus_id: str = ""
    utilization_ratio: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    """Since the driver was loaded."""
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    sm_clock_max_hertz: float | None = None
    memory_clock_hertz: float | None = None
    throttle: frozenset[str] | None = None
    """Why the clocks are lower than asked for; keys of `edge.nvml.THROTTLE_REASONS`."""
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    processes: int | None = None
    xids: Mapping[int, int] | None = None
    """Driver errors since the node started: how often each number came."""
    last_xid: int = 0


@dataclass(frozen=True, slots=True)
class Temperature:
    """One sensor. `zone` is the kernel's name of it, `kind` what it measures."""

    zone: str
    kind: str
    celsius: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """How long work stood still for want of a resource (PSI). `kind`: some tasks, or all (`full`)."""

    resource: str
    kind: str
    stalled_s: float
    recent_ratio: float
    """Over the last 10 s."""


@dataclass(frozen=True, slots=True)
class HostReading:
    """The machine that the node runs on."""

    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all cores by mode, since the machine started."""
    cores: int | None = None
    clock_hertz: float | None = None
    """Mean over the cores."""
    clock_max_hertz: float | None = None
    memory: HostMemory | None = None
    disk_total_bytes: int | None = None
    """Of the file system that holds EDGE_HOME."""
    disk_free_bytes: int | None = None
    temperatures: tuple[Temperature, ...] = ()
    pressure: tuple[Pressure, ...] = ()
    cooling: Mapping[str, float] = field(default_factory=dict)
    """How far the kernel holds each processor or GPU back for heat, 0..1."""
    cpu_throttles: int | None = None
    """Times that a core slowed down for heat, of all cores, since the machine started."""


@dataclass(frozen=True, slots=True)
class BoardReading:
    """What only an NVIDIA module's board tells."""

    model: str
    rails_watts: Mapping[str, float] = field(default_factory=dict)
    over_current: Mapping[str, int] = field(default_factory=dict)
    """Events of each over-current alarm since the board started."""


@dataclass(frozen=True, slots=True)
class Readings:
    """All of it. `at_s`: monotonic time."""

    at_s: float
    host: HostReading
    gpus: tuple[GpuReading, ...] = ()
    driver: str = ""
    board: BoardReading | None = None
    took_s: float = 0.0

    @property
    def hottest(self) -> Temperature | None:
        """The hottest sensor of all."""
        of_gpus = (
            Temperature(f"gpu{gpu.index}", "gpu", gpu.temperature_celsius)
            for gpu in self.gpus
            if gpu.temperature_celsius is not None
        )
        return max((*self.host.temperatures, *of_gpus), key=lambda t: t.celsius, default=None)
