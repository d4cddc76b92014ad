"""NVIDIA's management library (NVML): the only place that speaks with it, through pynvml.

Every call either answers, or says that this device does not know the figure (`Unsupported`), or that it could not be read now
(`Unreadable`), or that the device or its driver is gone (`DeviceLost`). A figure is never made up.

The library does not survive fork(): a process that uses it starts its children anew (exec), as all of this project do. Calls may
block for as long as the driver takes, so no event loop makes them while it serves.

Source: NVML API reference. With MIG, a slice is asked for by its UUID: by index alone some drivers answer for the whole card.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pynvml

THROTTLE_REASONS: Mapping[str, int] = {
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
}
"""Bits of the clocks' event reasons that mean slower than asked for."""

Field = Literal[
    "utilization", "memory", "power", "power_limit", "energy", "temperature", "sm_clock", "sm_clock_max", "memory_clock",
    "throttle", "ecc", "processes", "xid",
]  # fmt: skip
"""What a device may be asked for."""

_KNOWS_NOT = frozenset({
    pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
})  # fmt: skip
_IS_GONE = frozenset({
    pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
})  # fmt: skip
_NOT_AVAILABLE = (1 << 64) - 1
"""What the library writes into a 64-bit figure that it does not have."""


class Unsupported(Exception):
    """This device, driver or library does not have the figure."""


class Unreadable(Exception):
    """The figure could not be read this time. The text says why."""


class DeviceLost(Exception):
    """The device, its driver or the library is gone. The text says why."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes in bytes. `used` leaves out what the driver keeps for itself, where the library tells them apart."""

    total: int
    free: int
    used: int


@dataclass(frozen=True, slots=True)
class Device:
    """A card, or a MIG slice of one. `index` is the card's."""

    index: int
    uuid: str
    name: str
    is_slice: bool
    bus_id: str
    handle: Any = field(repr=False, compare=False)

    def read(self, wanted: Field) -> Any:
        """One figure, in the library's units: see `_READERS`. Raises Unsupported, Unreadable, DeviceLost."""
        return _called(lambda: _READERS[wanted](self.handle))

    def memory(self) -> Memory:
        """Of the device. Raises Unsupported, Unreadable, DeviceLost."""
        found = self.read("memory")
        assert isinstance(found, Memory)
        return found


@contextlib.contextmanager
def opened() -> Iterator[bool]:
    """The library while this is held; False if there is none, or no driver. The library counts: several may hold it."""
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


def devices() -> list[Device]:
    """All cards that this process may see, each followed by its MIG slices. Raises DeviceLost, Unreadable, Unsupported."""
    found: list[Device] = []
    for index in range(_called(pynvml.nvmlDeviceGetCount)):
        card = _called(lambda index=index: pynvml.nvmlDeviceGetHandleByIndex(index))  # type: ignore[misc]
        found.append(_device(card, index, is_slice=False))
        found += [_device(handle, index, is_slice=True) for handle in _slices(card)]
    return found


def device_for_cuda(name: str) -> Device:
    """The device that CUDA would take for a name of CUDA_VISIBLE_DEVICES: a number, `GPU-...` (its beginning will do) or
    `MIG-...`. Of a card that is cut up CUDA sees the slices only, and takes the first. Raises DeviceLost, Unreadable,
    Unsupported."""
    if name.startswith("GPU-"):
        name = next((device.uuid for device in devices() if device.uuid.startswith(name)), name)
    if not name.isdigit():
        handle = _called(lambda: pynvml.nvmlDeviceGetHandleByUUID(name))
        return _device(handle, 0, is_slice=name.startswith("MIG-"))
    index = int(name)
    card = _called(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    part = next(_slices(card), None)
    return _device(card if part is None else part, index, is_slice=part is not None)


def driver_version() -> str:
    """Of the kernel's driver; empty if it does not say."""
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


class XidWatch:
    """Errors that a card's driver reports (XID), as they come."""

    def __init__(self, device: Device) -> None:
        """Raises Unsupported, Unreadable, DeviceLost."""
        self._set = _called(pynvml.nvmlEventSetCreate)
        try:
            _called(
                lambda: pynvml.nvmlDeviceRegisterEvents(device.handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
            )
        except (Unsupported, Unreadable, DeviceLost):
            self.close()
            raise

    def seen(self) -> list[int]:
        """Numbers of the errors since the last call. Does not wait. Raises Unsupported, Unreadable, DeviceLost."""
        found: list[int] = []
        while (event := _called(self._next)) is not None:
            found.append(int(event.eventData))
        return found

    def _next(self) -> Any:
        try:
            return pynvml.nvmlEventSetWait_v2(self._set, 0)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            raise

    def close(self) -> None:
        """Watch no longer."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(self._set)


def _called(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in _KNOWS_NOT:
            raise Unsupported(str(error)) from None
        if error.value in _IS_GONE:
            raise DeviceLost(str(error)) from None
        raise Unreadable(str(error)) from None


def _device(handle: Any, index: int, *, is_slice: bool) -> Device:
    name = _text(_called(lambda: pynvml.nvmlDeviceGetName(handle)))
    uuid = _text(_called(lambda: pynvml.nvmlDeviceGetUUID(handle)))
    return Device(index, uuid, name, is_slice, "" if is_slice else _bus_id(handle), handle)


def _bus_id(card: Any) -> str:
    try:
        return _text(pynvml.nvmlDeviceGetPciInfo(card).busId)
    except pynvml.NVMLError:
        return ""


def _slices(card: Any) -> Iterator[Any]:
    """MIG slices of a card; none if it is whole, or cannot be cut up."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(card)
        if current != pynvml.NVML_DEVICE_MIG_ENABLE:
            return
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except pynvml.NVMLError:
        return
    for number in range(count):
        try:
            uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number))
            yield pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:  # that place is empty
            continue


def _memory(handle: Any) -> Memory:
    try:
        found = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if error.value not in _KNOWS_NOT:
            raise
        found = pynvml.nvmlDeviceGetMemoryInfo(handle)
    if found.total == _NOT_AVAILABLE:
        raise Unsupported("memory is not told")
    return Memory(int(found.total), int(found.free), int(found.used))


def _throttle(handle: Any) -> frozenset[str]:
    bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return frozenset(name for name, bit in THROTTLE_REASONS.items() if bits & bit)


def _ecc(handle: Any) -> tuple[int, int]:
    """(corrected, not corrected) over the card's life."""
    corrected, uncorrected = (
        pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_AGGREGATE_ECC)
        for kind in (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    )
    return int(corrected), int(uncorrected)


_READERS: dict[Field, Callable[[Any], Any]] = {
    "utilization": lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu,  # per cent
    "memory": _memory,
    "power": pynvml.nvmlDeviceGetPowerUsage,  # mW
    "power_limit": pynvml.nvmlDeviceGetEnforcedPowerLimit,  # mW
    "energy": pynvml.nvmlDeviceGetTotalEnergyConsumption,  # mJ since the driver was loaded
    "temperature": lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU),  # Celsius
    "sm_clock": lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM),  # MHz
    "sm_clock_max": lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, pynvml.NVML_CLOCK_SM),  # MHz
    "memory_clock": lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_MEM),  # MHz
    "throttle": _throttle,
    "ecc": _ecc,
    "processes": lambda h: len(pynvml.nvmlDeviceGetComputeRunningProcesses_v3(h)),
}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
