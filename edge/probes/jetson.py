"""An NVIDIA module (Jetson) by its files in /sys: what its management library does not tell.

The GPU's load is in per mille. Power is measured by rail: volts times amperes on ina3221 chips, ready-made on ina238. Rails that
feed more than the GPU are not the GPU's power. Needs no other software. Sources: hwmon/ina3221.rst and hwmon/ina238.rst of the
kernel, NVIDIA's Jetson Linux developer guide (thermal zones, soctherm).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edge.memory.gpu import is_jetson
from edge.probes.files import entries, number, text
from edge.probes.host import Roots
from edge.probes.readings import GPU_FIELDS, BoardReading, GpuReading, HostReading

_GPU_NODES = ("gpu", "gv11b", "gp10b", "ga10b", "gb10b")
"""What the device tree calls the GPU of a module."""
_CLOCKS = re.compile(r"gpu-gpc-\d+")
"""Thor has a clock for each part of the GPU; this part computes."""
_GPU_RAIL = "VDD_GPU"
"""The one name of a rail that feeds the GPU alone."""
_OC_COUNT = re.compile(r"(oc\d+)_event_cnt")


def read_board(roots: Roots) -> BoardReading | None:
    """The board; None if this is none of NVIDIA's modules."""
    if not is_jetson(roots.device_tree / "compatible"):
        return None
    rails: dict[str, float] = {}
    alarms: dict[str, int] = {}
    for chip in entries(roots.sys / "class/hwmon", "hwmon"):
        match text(chip / "name"):
            case "ina3221":
                rails.update(_ina3221(chip))
            case "ina238":
                rails.update(_ina238(chip))
            case "soctherm_oc":
                alarms.update(_alarms(chip))
    return BoardReading(text(roots.device_tree / "model") or "Jetson", rails, alarms)


def read_gpu(roots: Roots, board: BoardReading, host: HostReading, known: GpuReading | None) -> GpuReading:
    """The module's GPU. `known`: what the management library tells of it; that holds where it tells something."""
    device = next(_gpu(roots.sys), None)
    load = number(device / "device/load") if device is not None else None
    found: dict[str, float | None] = {
        "utilization_ratio": load / 1000 if load is not None else None,
        "sm_clock_hertz": _hertz(device, "cur_freq"),
        "sm_clock_max_hertz": _hertz(device, "max_freq"),
        "temperature_celsius": next((t.celsius for t in host.temperatures if t.kind.startswith("gpu")), None),
        "power_watts": board.rails_watts.get(_GPU_RAIL),
    }
    base = known or GpuReading(0, "", board.model, dict.fromkeys(GPU_FIELDS, False))
    told = {name: value for name, value in found.items() if value is not None and getattr(base, name) is None}
    supported = {**base.supported, **{_FIELD[name]: True for name in told}}
    return _with(base, told, supported)


_FIELD = {
    "utilization_ratio": "utilization",
    "sm_clock_hertz": "sm_clock",
    "sm_clock_max_hertz": "sm_clock_max",
    "temperature_celsius": "temperature",
    "power_watts": "power",
}


def _with(base: GpuReading, told: dict[str, float], supported: dict[str, bool]) -> GpuReading:
    values = {name: getattr(base, name) for name in GpuReading.__slots__}
    return GpuReading(**{**values, **told, "supported": supported})


def _gpu(sys: Path) -> Iterator[Path]:
    """The GPU's entry among the devices with changing clocks. The one with a load comes first."""
    found = [path for path in entries(sys / "class/devfreq") if _is_gpu(path)]
    yield from sorted(found, key=lambda path: number(path / "device/load") is None)


def _is_gpu(path: Path) -> bool:
    return text(path / "device/of_node/name") in _GPU_NODES or bool(_CLOCKS.fullmatch(path.name))


def _hertz(device: Path | None, name: str) -> float | None:
    found = number(device / name) if device is not None else None
    return None if found is None else float(found)


def _ina3221(chip: Path) -> Iterator[tuple[str, float]]:
    for channel in (1, 2, 3):
        label = text(chip / f"in{channel}_label")
        millivolts, milliamperes = number(chip / f"in{channel}_input"), number(chip / f"curr{channel}_input")
        if label and label != "NC" and millivolts is not None and milliamperes is not None:
            yield label, millivolts * milliamperes / 1e6


def _ina238(chip: Path) -> Iterator[tuple[str, float]]:
    microwatts = number(chip / "power1_input")
    if microwatts is not None:
        yield text(chip / "in1_label") or "VIN", microwatts / 1e6


def _alarms(chip: Path) -> Iterator[tuple[str, int]]:
    for path in entries(chip, "oc"):
        count = number(path)
        if (named := _OC_COUNT.fullmatch(path.name)) and count is not None:
            yield named[1], count
