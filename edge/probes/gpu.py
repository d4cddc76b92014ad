"""GPUs through NVIDIA's management library, for as long as the node runs. Used by one thread."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from typing import Any, cast

from edge import nvml
from edge.probes.readings import GPU_FIELDS, GpuReading

log = logging.getLogger(__name__)


class GpuProbe:
    """Owner of the library's session. `close` it on the thread that used it."""

    def __init__(self) -> None:
        self._session = contextlib.ExitStack()
        self._devices: list[nvml.Device] | None = None
        self._watches: dict[str, nvml.XidWatch] = {}
        self._xids: dict[str, Counter[int]] = {}
        self._last_xid: dict[str, int] = {}
        self._failing = ""
        self.driver = ""

    def read(self) -> list[GpuReading]:
        """All devices as they are now; none where there is no library, no driver or no card. A device that is lost is left out,
        and the session begins anew with the next call."""
        failing = ""
        found: list[GpuReading] = []
        try:
            if self._devices is None and not self._open():
                return []
        except (nvml.DeviceLost, nvml.Unreadable, nvml.Unsupported) as error:
            failing = str(error)
        for device in self._devices or ():
            try:
                found.append(self._reading(device))
            except nvml.DeviceLost as error:
                failing = str(error)
        self._judge(failing)
        return found

    def _open(self) -> bool:
        if not self._session.enter_context(nvml.opened()):
            self.close()
            return False
        self._devices = nvml.devices()
        self.driver = nvml.driver_version()
        for device in self._devices:
            with contextlib.suppress(nvml.Unsupported, nvml.Unreadable, nvml.DeviceLost):
                if not device.is_slice:
                    self._watches[device.uuid] = nvml.XidWatch(device)
        return True

    def _judge(self, failing: str) -> None:
        """Say once that something fails, and once that it works again."""
        if failing:
            self.close()
        if failing and not self._failing:
            log.warning("gpu does not answer", extra={"event": "gpu_lost", "reason": failing})
        elif self._failing and not failing:
            log.info("gpu answers again", extra={"event": "gpu_back"})
        self._failing = failing

    def close(self) -> None:
        """Give the library back."""
        for watch in self._watches.values():
            watch.close()
        self._watches, self._devices = {}, None
        self._session.close()

    def _reading(self, device: nvml.Device) -> GpuReading:
        """Raises DeviceLost."""
        values: dict[str, Any] = {}
        supported: dict[str, bool] = {}
        for field in GPU_FIELDS:
            try:
                values[field] = self._xid(device) if field == "xid" else device.read(cast(nvml.Field, field))
                supported[field] = True
            except nvml.Unsupported:
                supported[field] = False
            except nvml.Unreadable:  # absent this time; whether it is supported is not known by that
                continue
        return reading(device, values, supported, self._last_xid.get(device.uuid, 0))

    def _xid(self, device: nvml.Device) -> dict[int, int]:
        watch = self._watches.get(device.uuid)
        if watch is None:
            raise nvml.Unsupported("driver errors are not told of this device")
        counts = self._xids.setdefault(device.uuid, Counter())
        for number in watch.seen():
            counts[number] += 1
            self._last_xid[device.uuid] = number
            fields = {"event": "gpu_xid", "gpu": device.index, "xid": number}
            log.error("the gpu's driver reports an error", extra=fields)
        return dict(counts)


def reading(device: nvml.Device, values: dict[str, Any], supported: dict[str, bool], last_xid: int) -> GpuReading:
    """The library's figures in base units. Pure."""

    def scaled(field: str, factor: float) -> float | None:
        return values[field] * factor if field in values else None

    memory: nvml.Memory | None = values.get("memory")
    ecc: tuple[int | None, int | None] = values.get("ecc", (None, None))
    return GpuReading(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        supported=supported,
        is_slice=device.is_slice,
        bus_id=device.bus_id,
        utilization_ratio=values["utilization"] / 100 if "utilization" in values else None,
        memory_total_bytes=memory.total if memory is not None else None,
        memory_used_bytes=memory.used if memory is not None else None,
        memory_free_bytes=memory.free if memory is not None else None,
        power_watts=values["power"] / 1000 if "power" in values else None,
        power_limit_watts=values["power_limit"] / 1000 if "power_limit" in values else None,
        energy_joules=values["energy"] / 1000 if "energy" in values else None,
        temperature_celsius=scaled("temperature", 1.0),
        sm_clock_hertz=scaled("sm_clock", 1e6),
        sm_clock_max_hertz=scaled("sm_clock_max", 1e6),
        memory_clock_hertz=scaled("memory_clock", 1e6),
        throttle=values.get("throttle"),
        ecc_corrected=ecc[0],
        ecc_uncorrected=ecc[1],
        processes=values.get("processes"),
        xids=values.get("xid"),
        last_xid=last_xid,
    )
