"""Which layout of a model fits into which memory. Pure: sizes come from an oracle, budgets as arguments.

What the operator fixed stays; the rest gives way in the order of `_RUNGS`, from what costs least to what costs most. Sizes in
bytes, lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from edge.errors import DoesNotFit
from edge.messages import KvType
from edge.quantities import count, mib

MIB = 1 << 20
_LEAST_CONTEXT = 512
_LEAST_PASS = 64
_SMALL_CACHE = 64 * MIB
_ALTERNATIVE_SLOTS = 32


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


def plan(shape: ModelShape, budget: Budget, wishes: Wishes, sizes_of: SizesOf) -> Plan:
    """The best layout that fits. Raises DoesNotFit with the nearest thing that would."""
    smallest: Plan | None = None
    for found in ladder(shape, budget, wishes, sizes_of):
        if fits(found, budget):
            return found
        if smallest is None or found.total_bytes < smallest.total_bytes:
            smallest = found
    if smallest is None:
        raise DoesNotFit(
            "the library cannot lay this model out as asked; set engine.kv_type and engine.gpu_layers to auto"
        )
    may_split = budget.device_bytes is not None and wishes.gpu_layers is None
    if may_split and (partial := _partly_offloaded(smallest.layout, budget, sizes_of)) is not None:
        return partial
    raise DoesNotFit(_refusal(shape, budget, wishes, smallest, sizes_of))


def fits(found: Plan, budget: Budget) -> bool:
    """Whether a plan stays within a budget."""
    if not budget.separate or budget.device_bytes is None:
        return found.total_bytes <= budget.host_bytes
    return found.host_bytes <= budget.host_bytes and found.device_bytes <= budget.device_bytes


def ladder(shape: ModelShape, budget: Budget, wishes: Wishes, sizes_of: SizesOf) -> Iterator[Plan]:
    """What the library can lay out, from the best to the smallest; each differs from the one before in one thing, so that it
    takes less. A step that the library refuses, such as cells in q8_0 for heads of 80 numbers, is left out, and the next one is
    taken from where things stood."""
    layout = preferred(shape, budget, wishes)
    if (found := _sized(layout, sizes_of)) is not None:
        yield found
    for give_way in _RUNGS:
        lower = give_way(layout, wishes)
        if lower == layout:
            continue
        if (step := _sized(lower, sizes_of)) is not None:
            yield step
        if step is not None or found is None:
            layout, found = lower, step


def preferred(shape: ModelShape, budget: Budget, wishes: Wishes) -> Layout:
    """What would be chosen with memory without end."""
    trained = shape.train_context_tokens or wishes.context_cap_tokens
    context = wishes.context_tokens or min(trained, wishes.context_cap_tokens)
    everywhere = 0 if budget.device_bytes is None else shape.layers
    return Layout(
        slots=wishes.slots or wishes.most_slots,
        context_tokens=context,
        kv_type=wishes.kv_type or "f16",
        pass_tokens=min(wishes.pass_tokens, context),
        cache_bytes=wishes.cache_bytes,
        gpu_layers=everywhere if wishes.gpu_layers is None else min(wishes.gpu_layers, everywhere),
    )


_FIXABLE = ("slots", "context_tokens", "kv_type", "gpu_layers")
"""Wishes that hold, whatever memory there is; settings of the same names in [engine]."""
_Rung = Callable[[Layout, Wishes], Layout]


def _cache(most: int) -> _Rung:
    return lambda layout, _: replace(layout, cache_bytes=min(layout.cache_bytes, most))


def _slots(most: int) -> _Rung:
    return lambda layout, wishes: layout if wishes.slots else replace(layout, slots=min(layout.slots, most))


def _context(most: int) -> _Rung:
    def rung(layout: Layout, wishes: Wishes) -> Layout:
        if wishes.context_tokens or layout.context_tokens <= most:
            return layout
        return replace(layout, context_tokens=most, pass_tokens=min(layout.pass_tokens, most))

    return rung


def _kv(kind: KvType) -> _Rung:
    def rung(layout: Layout, wishes: Wishes) -> Layout:
        return layout if wishes.kv_type or not wishes.flash_attention else replace(layout, kv_type=kind)

    return rung


def _pass(most: int) -> _Rung:
    return lambda layout, _: replace(layout, pass_tokens=min(layout.pass_tokens, most))


_RUNGS: tuple[_Rung, ...] = (
    _cache(_SMALL_CACHE),
    _slots(4),
    _context(4096),
    _kv("q8_0"),
    _slots(2),
    _cache(16 * MIB),
    _context(2048),
    _pass(_LEAST_PASS),
    _slots(1),
    _context(1024),
    _cache(0),
    _kv("q4_0"),
    _context(_LEAST_CONTEXT),
)
"""What gives way, in this order: saved prefixes cost time at the next turn only; four answers and 4,096 tokens are what tools and
chats use; q8_0 halves the cells at hardly any cost in quality; q4_0 is felt, and comes last but one."""


def alternatives(shape: ModelShape, budget: Budget, wishes: Wishes, chosen: Plan, sizes_of: SizesOf) -> list[Plan]:
    """Up to two other layouts that fit: with a longer context, with more answers at a time, or with less memory for cells."""
    found: list[Plan] = []
    for make in (_longer, _wider, _leaner):
        best: Plan | None = None
        for layout in make(chosen.layout, shape, wishes):
            plan_ = _sized(layout, sizes_of)
            if plan_ is None or not fits(plan_, budget):
                break
            best = plan_
        if best is not None and best.layout != chosen.layout:
            found.append(best)
    return found[:2]


def _longer(layout: Layout, shape: ModelShape, wishes: Wishes) -> Iterator[Layout]:
    """Fewer slots, and the context doubled again and again."""
    few = replace(layout, slots=wishes.slots or max(1, layout.slots // 4))
    context = layout.context_tokens * 2
    while wishes.context_tokens is None and context <= shape.train_context_tokens:
        yield replace(few, context_tokens=context)
        context *= 2


def _wider(layout: Layout, shape: ModelShape, wishes: Wishes) -> Iterator[Layout]:
    """More slots, at a context of no more than 2,048 tokens each."""
    context = wishes.context_tokens or min(layout.context_tokens, 2048)
    slots = layout.slots * 2
    while wishes.slots is None and slots <= _ALTERNATIVE_SLOTS:
        yield replace(layout, slots=slots, context_tokens=context)
        slots *= 2


def _leaner(layout: Layout, shape: ModelShape, wishes: Wishes) -> Iterator[Layout]:
    """The same with attention memory of half the size."""
    if layout.kv_type == "f16" and wishes.kv_type is None and wishes.flash_attention:
        yield replace(layout, kv_type="q8_0")


def _sized(layout: Layout, sizes_of: SizesOf) -> Plan | None:
    try:
        return Plan(layout, sizes_of(layout))
    except LayoutRefused:
        return None


def _partly_offloaded(layout: Layout, budget: Budget, sizes_of: SizesOf) -> Plan | None:
    """The smallest layout with as many layers on the device as fit there, the rest on the processor."""
    least, most, best = 0, layout.gpu_layers, None
    while least <= most:
        middle = (least + most) // 2
        found = _sized(replace(layout, gpu_layers=middle), sizes_of)
        if found is not None and (budget.device_bytes is None or found.device_bytes <= budget.device_bytes):
            least = middle + 1
            if fits(found, budget):
                best = found
        else:
            most = middle - 1
    return best


def _refusal(shape: ModelShape, budget: Budget, wishes: Wishes, smallest: Plan, sizes_of: SizesOf) -> str:
    layout = smallest.layout
    said = (
        f"the model does not fit: with {count(layout.slots, 'slot')} of {layout.context_tokens:,} tokens, kv_type "
        f"{layout.kv_type}, it takes {_needs(smallest, budget)}"
    )
    fixed = [name for name in _FIXABLE if getattr(wishes, name) is not None]
    if fixed:
        free = replace(wishes, slots=None, context_tokens=None, kv_type=None, gpu_layers=None)
        try:
            nearest = plan(shape, budget, free, sizes_of).layout
        except DoesNotFit:
            pass
        else:
            layers = f" and {nearest.gpu_layers} layers on {budget.device}" if budget.device_bytes is not None else ""
            return (
                f"{said}; {count(nearest.slots, 'slot')} of {nearest.context_tokens:,} tokens with kv_type "
                f"{nearest.kv_type}{layers} would fit: leave {', '.join(f'engine.{name}' for name in fixed)} to the planner"
            )
    return f"{said}; use a smaller model or a smaller quantization, or {_more(budget)}"


def _needs(found: Plan, budget: Budget) -> str:
    if budget.device_bytes is None or budget.unified:
        return f"{mib(found.total_bytes)} of the {mib(budget.host_bytes)} that {_grants(budget.source)}"
    return (
        f"{mib(found.device_bytes)} of the {mib(budget.device_bytes)} on {budget.device}, and {mib(found.host_bytes)} of the "
        f"{mib(budget.host_bytes)} that {_grants(budget.source)}"
    )


def _more(budget: Budget) -> str:
    """How there may be more memory, by what bounds it."""
    if budget.source == "memory.budget_mib":
        return "raise memory.budget_mib"
    if budget.source.startswith("a control group"):
        return "raise the control group's limit"
    if budget.source.startswith("-"):
        return "plan for more"
    return "leave it more memory: other programs take theirs first, and memory.reserve_mib is kept back"


def _grants(source: str) -> str:
    """`--memory allows`, `this machine has left`."""
    return f"{source} {'allows' if source.startswith(('-', 'memory.')) else 'has left'}"
