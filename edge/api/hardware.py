"""The probes' readings as metric families. What is not known has no series; old readings have none either."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.nvml import THROTTLE_REASONS
from edge.probes.readings import BoardReading, GpuReading, HostReading, Readings
from edge.probes.sample import Probes

Family = GaugeMetricFamily | CounterMetricFamily

_GPU = ("gpu", "uuid")
_GPU_GAUGES = {
    "utilization_ratio": "Share of the last moments in which it computed, 0 to 1.",
    "memory_bytes": "Memory of the device.",
    "memory_used_bytes": "Memory in use; less what the driver keeps for itself, where that is told apart.",
    "memory_free_bytes": "Memory that is free.",
    "power_watts": "Power that it draws.",
    "power_limit_watts": "Power that it may draw.",
    "temperature_celsius": "Temperature of the chip.",
    "sm_clock_hertz": "Clock of its processors.",
    "sm_clock_max_hertz": "Highest clock of its processors.",
    "memory_clock_hertz": "Clock of its memory.",
    "processes": "Processes that compute on it.",
}
_ATTRIBUTES = {"memory_bytes": "memory_total_bytes"}


class CountedBefore(CounterMetricFamily):
    """A counter that others keep, and kept before this process began."""


class HardwareFamilies(Collector):
    """Of the newest readings."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def collect(self) -> Iterator[Family]:
        """None while nothing has been read, or the last round is too long ago."""
        readings, throttle = self._probes.now(), self._probes.throttle
        if readings is None:
            return
        yield GaugeMetricFamily("edge_probe_round_seconds", "Time to read all hardware once.", readings.took_s)
        age_s = time.monotonic() - readings.at_s
        yield GaugeMetricFamily("edge_probe_age_seconds", "Since the hardware was read.", age_s)
        if throttle.active is not None:
            yield GaugeMetricFamily(
                "edge_throttled", "1 while heat or power slow this machine.", float(throttle.active)
            )
            yield CounterMetricFamily("edge_throttle_begins", "Times that such a slowdown began.", throttle.begins)
        yield from _of(readings)

    def first(self) -> list[CountedBefore] | None:
        """How far those stood that counted before, when the hardware was read for the first time; None before that."""
        readings = self._probes.first
        return None if readings is None else [family for family in _of(readings) if isinstance(family, CountedBefore)]


def _of(readings: Readings) -> Iterator[Family]:
    yield from _host(readings.host)
    yield from _gpus(readings.gpus, readings.driver)
    if readings.board is not None:
        yield from _board(readings.board)


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Sequence[str], float]],
) -> Iterator[Family]:
    """A family of several series; none at all without rows."""
    if rows:
        family = kind(name, text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        yield family


def _plain(name: str, text: str, value: float | None) -> Iterator[Family]:
    if value is not None:
        yield GaugeMetricFamily(name, text, value)


def _host(host: HostReading) -> Iterator[Family]:
    memory = host.memory
    yield from _labelled(
        CountedBefore, "edge_host_cpu_seconds", "Time of all cores, by what they did.", ["mode"],
        [([mode], seconds) for mode, seconds in host.cpu_s.items()],
    )  # fmt: skip
    yield from _plain("edge_host_cores", "Cores of this machine.", host.cores)
    yield from _plain("edge_host_clock_hertz", "Clock of the cores, on average.", host.clock_hertz)
    yield from _plain("edge_host_clock_max_hertz", "Highest clock of the cores.", host.clock_max_hertz)
    if memory is not None:
        yield from _plain("edge_host_memory_bytes", "Main memory.", memory.total_bytes)
        free = "Main memory that this process may still take, control groups counted."
        yield from _plain("edge_host_memory_available_bytes", free, memory.available_bytes)
        limit = "Main memory that the tightest control group allows."
        yield from _plain("edge_host_memory_limit_bytes", limit, memory.limit_bytes)
    yield from _plain("edge_host_disk_bytes", "Size of the file system of EDGE_HOME.", host.disk_total_bytes)
    yield from _plain("edge_host_disk_free_bytes", "Room that is left there.", host.disk_free_bytes)
    yield from _labelled(
        GaugeMetricFamily, "edge_host_temperature_celsius", "Temperature by the kernel's zones.", ["zone", "kind"],
        [((t.zone, t.kind), t.celsius) for t in host.temperatures],
    )  # fmt: skip
    stalls = [((p.resource, p.kind), p.stalled_s) for p in host.pressure]
    text = "Time in which some or all (full) work stood still for want of a resource (PSI)."
    yield from _labelled(CountedBefore, "edge_host_pressure_seconds", text, ["resource", "kind"], stalls)
    recent = [((p.resource, p.kind), p.recent_ratio) for p in host.pressure]
    text = "The same as a share of the last 10 s, 0 to 1."
    yield from _labelled(GaugeMetricFamily, "edge_host_pressure_ratio", text, ["resource", "kind"], recent)
    cooling = [([name], share) for name, share in host.cooling.items()]
    text = "How far the kernel holds a part back for heat, 0 to 1."
    yield from _labelled(GaugeMetricFamily, "edge_host_cooling_ratio", text, ["device"], cooling)
    if host.cpu_throttles is not None:
        text = "Times that a core slowed down for heat."
        yield CountedBefore("edge_host_cpu_throttles", text, host.cpu_throttles)


def _gpus(gpus: Sequence[GpuReading], driver: str) -> Iterator[Family]:
    def rows(attribute: str) -> list[tuple[tuple[str, ...], float]]:
        found = [(gpu, getattr(gpu, attribute)) for gpu in gpus]
        return [(_key(gpu), float(value)) for gpu, value in found if value is not None]

    yield from _labelled(
        GaugeMetricFamily, "edge_gpu_info", "1 for each GPU, and for each MIG slice.", [*_GPU, "name", "driver"],
        [((*_key(gpu), gpu.name, driver), 1.0) for gpu in gpus],
    )  # fmt: skip
    yield from _labelled(
        GaugeMetricFamily, "edge_gpu_field_supported", "1 if this device tells the figure, 0 if it cannot.",
        [*_GPU, "field"],
        [((*_key(gpu), field), float(known)) for gpu in gpus for field, known in gpu.supported.items()],
    )  # fmt: skip
    for name, text in _GPU_GAUGES.items():
        yield from _labelled(GaugeMetricFamily, f"edge_gpu_{name}", text, _GPU, rows(_ATTRIBUTES.get(name, name)))
    text = "Energy since the driver was loaded."
    yield from _labelled(CountedBefore, "edge_gpu_energy_joules", text, _GPU, rows("energy_joules"))
    throttle = [
        ((*_key(gpu), reason), float(reason in gpu.throttle))
        for gpu in gpus
        if gpu.throttle is not None
        for reason in THROTTLE_REASONS
    ]
    text = "1 while its clocks are lower than asked for, for this reason."
    yield from _labelled(GaugeMetricFamily, "edge_gpu_throttle", text, [*_GPU, "reason"], throttle)
    ecc = [((*key, kind), count) for kind in ("corrected", "uncorrected") for key, count in rows(f"ecc_{kind}")]
    text = "Memory errors over the card's life."
    yield from _labelled(CountedBefore, "edge_gpu_ecc_errors", text, [*_GPU, "kind"], ecc)
    xids = [((*_key(gpu), str(xid)), count) for gpu in gpus for xid, count in (gpu.xids or {}).items()]
    text = "Errors that the driver reported since the node started, by number."
    yield from _labelled(CounterMetricFamily, "edge_gpu_xid_errors", text, [*_GPU, "xid"], xids)


def _board(board: BoardReading) -> Iterator[Family]:
    yield from _labelled(
        GaugeMetricFamily, "edge_board_info", "1 for the module's board.", ["model"], [([board.model], 1)]
    )
    rails = list(board.rails_watts.items())
    text = "Power by the board's rails. Some feed others, so they do not add up."
    yield from _labelled(GaugeMetricFamily, "edge_board_rail_watts", text, ["rail"], [([n], w) for n, w in rails])
    alarms = [([name], count) for name, count in board.over_current.items()]
    text = "Times that an over-current alarm slowed the board down."
    yield from _labelled(CountedBefore, "edge_board_over_current", text, ["alarm"], alarms)


def _key(gpu: GpuReading) -> tuple[str, str]:
    return str(gpu.index), gpu.uuid
