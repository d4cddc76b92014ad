"""Memory of the device that the engine will use, as NVIDIA's management library tells it (`edge.nvml`).

One engine uses one device: the first that CUDA_VISIBLE_DEVICES names (by number, `GPU-...` or `MIG-...`), else the first of all.
On Jetson boards the library either is absent or knows no memory: those are told by the device tree, and their memory is the
machine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge import nvml

_DEVICE_TREE = Path("/proc/device-tree/compatible")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One device. Sizes in bytes."""

    name: str
    uuid: str
    total_bytes: int
    free_bytes: int


def is_jetson(device_tree: Path = _DEVICE_TREE) -> bool:
    """Whether processor and GPU share one memory on an NVIDIA module."""
    try:
        return b"nvidia,tegra" in device_tree.read_bytes()
    except OSError:
        return False


def gpu_memory(environment: Mapping[str, str]) -> GpuMemory | None:
    """The device that CUDA would take first; None if there is none, or none that says how much memory it has."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return None
    with nvml.opened() as there:
        if not there:
            return None
        try:
            device = nvml.device_for_cuda((visible or "0").split(",")[0].strip())
            memory = device.memory()
        except (nvml.Unsupported, nvml.Unreadable, nvml.DeviceLost):
            return None
        return GpuMemory(device.name, device.uuid, memory.total, memory.free)
