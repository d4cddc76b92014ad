"""Layouts, and the memory they take: the words in which plans are made. Sizes in bytes, lengths in tokens. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from edge.messages import KvType

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asked for; None: the planner chooses. `cache_bytes`, `pass_tokens` and `context_cap_tokens` are upper
    bounds."""

    slots: int | None = None
    most_slots: int = 8
    """Where `slots` is None."""
    context_tokens: int | None = None
    kv_type: KvType | None = None
    gpu_layers: int | None = None
    context_cap_tokens: int = 8192
    pass_tokens: int = 256
    cache_bytes: int = 256 * MIB
    flash_attention: bool = True
    """Whether it may be used: other attention memory than f16 needs it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is laid out. `context_tokens` is per slot; `gpu_layers` counts the output layer as one."""

    slots: int
    context_tokens: int
    kv_type: KvType
    pass_tokens: int
    cache_bytes: int
    gpu_layers: int

    @property
    def cells(self) -> int:
        """KV cells of all slots."""
        return self.slots * self.context_tokens


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one kind, in main memory and on the device."""

    name: Literal["weights", "attention", "compute", "prefixes", "process"]
    host_bytes: int
    device_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the planner must know of a model. `layers` includes the output layer."""

    train_context_tokens: int
    layers: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Room for one model. `device_bytes` None: no device but the processor. `unified`: the device's memory is main memory, and
    everything counts together against `host_bytes`."""

    host_bytes: int
    source: str
    device_bytes: int | None = None
    device: str = ""
    unified: bool = False

    @property
    def separate(self) -> bool:
        """The device has memory of its own."""
        return self.device_bytes is not None and not self.unified

    def at_most(self, size_bytes: int) -> Budget:
        """The same with no more than this of the memory that counts: the device's own, else main memory."""
        if self.device_bytes is not None and self.separate:
            return replace(self, device_bytes=min(self.device_bytes, size_bytes))
        return replace(self, host_bytes=min(self.host_bytes, size_bytes))

    def below(self, failed: Plan, share: float) -> Budget:
        """The same with no more than a share of what a plan that ran out of memory took: of the device's own, else of main
        memory."""
        if self.separate and failed.device_bytes == 0:
            return replace(self, device_bytes=0, host_bytes=min(self.host_bytes, int(failed.host_bytes * share)))
        return self.at_most(int((failed.device_bytes if self.separate else failed.total_bytes) * share))

    @property
    def bytes(self) -> int:
        """Room in the memory that counts."""
        return self.device_bytes if self.device_bytes is not None and self.separate else self.host_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout that fits, and what it takes."""

    layout: Layout
    parts: tuple[Part, ...]

    @property
    def host_bytes(self) -> int:
        """Main memory, all parts."""
        return sum(part.host_bytes for part in self.parts)

    @property
    def device_bytes(self) -> int:
        """Memory of the device, all parts."""
        return sum(part.device_bytes for part in self.parts)

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.host_bytes + self.device_bytes


class LayoutRefused(Exception):
    """The library cannot lay a model out like this at all."""


SizesOf = Callable[[Layout], tuple[Part, ...]]
"""The oracle: what a layout takes. Raises LayoutRefused."""


def fits(found: Plan, budget: Budget) -> bool:
    """Whether a plan stays within a budget."""
    if not budget.separate or budget.device_bytes is None:
        return found.total_bytes <= budget.host_bytes
    return found.host_bytes <= budget.host_bytes and found.device_bytes <= budget.device_bytes
