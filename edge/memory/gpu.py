"""What NVIDIA's management library says of the device that the engine will use. The only importer of pynvml.

One engine uses one device: the first that CUDA_VISIBLE_DEVICES names (by number, `GPU-...` or `MIG-...`), else the first of all.
On Jetson boards the library either is absent or knows no memory: those are told by the device tree, and their memory is the
machine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

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
    with _library() as ready:
        if not ready:
            return None
        try:
            handle = _handle((visible or "0").split(",")[0].strip())
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return GpuMemory(
                _text(pynvml.nvmlDeviceGetName(handle)),
                _text(pynvml.nvmlDeviceGetUUID(handle)),
                int(memory.total),
                int(memory.free),
            )
        except pynvml.NVMLError:
            return None


@contextlib.contextmanager
def _library() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _handle(name: str) -> Any:
    """Raises NVMLError if there is no such device."""
    if not name.isdigit():
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return _first_slice(handle) or handle


def _first_slice(handle: Any) -> Any | None:
    """The first MIG slice of a card that is cut up: CUDA sees slices only, and takes the first."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        if current != pynvml.NVML_DEVICE_MIG_ENABLE:
            return None
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:  # a card that cannot be cut up
        return None
    for number in range(count):
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
    return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
