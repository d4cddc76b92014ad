"""Room for models: what the machine grants now, less what is kept back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from edge.memory.gpu import gpu_memory, is_jetson
from edge.memory.host import host_memory
from edge.memory.layout import Budget

_UNKNOWN_BYTES = 1 << 62
"""Where the kernel does not say how much there is, nothing is refused."""
_DEVICE_RESERVE_SHARE = 0.03
"""Of a device's memory, kept back for its driver and for what is in nobody's books."""


def room(budget_mib: int, reserve_mib: int, *, device: bool, environment: Mapping[str, str] = os.environ) -> Budget:
    """Room for models on this node, as things are now. `budget_mib` other than 0 bounds what is found: main memory, or the
    device's where one is used. `device`: whether the engine can use one."""
    host = host_memory()
    found = _UNKNOWN_BYTES if host is None else max(0, host.available_bytes - (reserve_mib << 20))
    source = "this machine" if host is None else host.source
    bound = budget_mib << 20 if budget_mib else _UNKNOWN_BYTES
    card = gpu_memory(environment) if device else None
    main, whose = min(found, bound), "memory.budget_mib" if bound < found else source
    if device and (card is None or is_jetson()):
        return Budget(main, whose, main, "the GPU", unified=True)
    if card is None:
        return Budget(main, whose)
    spare = int(card.free_bytes - card.total_bytes * _DEVICE_RESERVE_SHARE)
    return Budget(found, source, max(0, min(spare, bound)), card.name)


def supposed(size_bytes: int, now: Budget) -> Budget:
    """The same machine, if it had so much of the memory that counts: the device's where that has its own, else main memory."""
    if now.separate:
        return replace(now, device_bytes=size_bytes)
    device_bytes = None if now.device_bytes is None else size_bytes
    return replace(now, host_bytes=size_bytes, source="--memory", device_bytes=device_bytes)
