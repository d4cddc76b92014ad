"""What /edge/v1/load says of the hardware: the little that people look at. What is not known is not there."""

from __future__ import annotations

import time
from typing import Any

from edge.probes.readings import GpuReading, Readings
from edge.probes.sample import Probes


def hardware(probes: Probes) -> dict[str, Any] | None:
    """Of the newest readings; None if there are none that are new enough."""
    readings = probes.now()
    if readings is None:
        return None
    host, hottest = readings.host, readings.hottest
    found: dict[str, Any] = {"age_s": round(time.monotonic() - readings.at_s, 1), "throttled": probes.throttle.active}
    if hottest is not None:
        found["hottest"] = {"zone": hottest.zone, "kind": hottest.kind, "celsius": hottest.celsius}
    if host.memory is not None:
        found["memory"] = {"total_bytes": host.memory.total_bytes, "available_bytes": host.memory.available_bytes}
    if host.disk_total_bytes is not None:
        found["disk"] = {"total_bytes": host.disk_total_bytes, "free_bytes": host.disk_free_bytes}
    found["cpu_pressure"] = _cpu_pressure(readings)
    found["board"] = readings.board.model if readings.board is not None else None
    found["gpus"] = [_gpu(gpu) for gpu in readings.gpus] or None
    return {name: value for name, value in found.items() if value is not None}


def _cpu_pressure(readings: Readings) -> float | None:
    return next((p.recent_ratio for p in readings.host.pressure if (p.resource, p.kind) == ("cpu", "some")), None)


def _gpu(gpu: GpuReading) -> dict[str, Any]:
    shown = {
        "name": gpu.name,
        "uuid": gpu.uuid,
        "utilization_ratio": gpu.utilization_ratio,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "temperature_celsius": gpu.temperature_celsius,
        "power_watts": gpu.power_watts,
        "throttle": sorted(gpu.throttle) if gpu.throttle is not None else None,
    }
    return {name: value for name, value in shown.items() if value is not None}
