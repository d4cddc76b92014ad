"""What gives way where memory is short, and in which order. Pure.

What the operator fixed stays; the rest follows `_BEFORE_LAYERS` and `_AFTER_LAYERS`, from what costs least to what costs most.
The order is one and the same for every budget, so more room never gives a smaller plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from edge.memory.layout import MIB, Budget, Layout, LayoutRefused, ModelShape, Plan, SizesOf, Wishes
from edge.messages import KvType

_LEAST_CONTEXT = 512
_LEAST_PASS = 64
_CACHES_BYTES = (64 * MIB, 16 * MIB, 0)


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


def ladder(shape: ModelShape, budget: Budget, wishes: Wishes, sizes_of: SizesOf) -> Iterator[Plan]:
    """What the library can lay out, from the best to the smallest. A step that the library refuses, such as cells in q8_0 for
    heads of 80 numbers, is left out, and the next one is taken from where things stood."""
    layout = preferred(shape, budget, wishes)
    found = sized(layout, sizes_of)
    whole = [layout.gpu_layers]
    fewer = list(_fewer(layout.gpu_layers, budget, wishes))

    def smaller(rungs: Iterable[_Rung], counts: list[int]) -> Iterator[Plan]:
        nonlocal layout, found
        for give_way in rungs:
            lower = give_way(layout, budget, wishes)
            if lower == layout:
                continue
            step = sized(lower, sizes_of)
            if step is not None:
                yield from _spread(lower, budget, counts, sizes_of)
            if step is not None or found is None:
                layout, found = lower, step

    if found is not None:
        yield from _spread(layout, budget, whole, sizes_of)
    yield from smaller(_BEFORE_LAYERS, whole)
    if found is not None:
        yield from _spread(found.layout, budget, fewer, sizes_of)
    yield from smaller(_AFTER_LAYERS, [*whole, *fewer])
    if budget.unified and wishes.gpu_layers is None and found is not None:  # the driver's own part is saved at least
        yield from _spread(found.layout, budget, [0], sizes_of)


def sized(layout: Layout, sizes_of: SizesOf) -> Plan | None:
    """A layout and what it takes; None if the library refuses it."""
    try:
        return Plan(layout, sizes_of(layout))
    except LayoutRefused:
        return None


def _fewer(layers: int, budget: Budget, wishes: Wishes) -> range:
    """With how many layers on the device a layout is tried, beside all of them. Where the memory is one and the same, a layer
    takes as much on either side."""
    return range(layers - 1 if budget.separate and wishes.gpu_layers is None else -1, -1, -1)


def _spread(layout: Layout, budget: Budget, counts: list[int], sizes_of: SizesOf) -> Iterator[Plan]:
    """A layout over the device and main memory: as many layers there as fit, then as much for saved prefixes here."""
    caches = [layout.cache_bytes]
    if budget.separate:
        caches += [size for size in _CACHES_BYTES if size < layout.cache_bytes]
    for layers in counts:
        for cache_bytes in caches:
            if (step := sized(replace(layout, gpu_layers=layers, cache_bytes=cache_bytes), sizes_of)) is not None:
                yield step


_Rung = Callable[[Layout, Budget, Wishes], Layout]


def _cache(most: int) -> _Rung:
    """Saved prefixes lie in main memory: a device with memory of its own has nothing from this, and `_spread` sees to them."""

    def rung(layout: Layout, budget: Budget, wishes: Wishes) -> Layout:
        return layout if budget.separate else replace(layout, cache_bytes=min(layout.cache_bytes, most))

    return rung


def _slots(most: int) -> _Rung:
    def rung(layout: Layout, budget: Budget, wishes: Wishes) -> Layout:
        return layout if wishes.slots else replace(layout, slots=min(layout.slots, most))

    return rung


def _context(most: int) -> _Rung:
    def rung(layout: Layout, budget: Budget, wishes: Wishes) -> Layout:
        if wishes.context_tokens or layout.context_tokens <= most:
            return layout
        return replace(layout, context_tokens=most, pass_tokens=min(layout.pass_tokens, most))

    return rung


def _kv(kind: KvType) -> _Rung:
    def rung(layout: Layout, budget: Budget, wishes: Wishes) -> Layout:
        return layout if wishes.kv_type or not wishes.flash_attention else replace(layout, kv_type=kind)

    return rung


def _pass(most: int) -> _Rung:
    def rung(layout: Layout, budget: Budget, wishes: Wishes) -> Layout:
        return replace(layout, pass_tokens=min(layout.pass_tokens, most))

    return rung


_BEFORE_LAYERS: tuple[_Rung, ...] = (
    _cache(_CACHES_BYTES[0]),
    _slots(4),
    _context(4096),
    _kv("q8_0"),
    _slots(2),
    _cache(_CACHES_BYTES[1]),
    _context(2048),
    _pass(_LEAST_PASS),
)
"""What gives way while all layers stay on the device, in this order: saved prefixes cost time at the next turn only; four answers
and 4,096 tokens are what tools and chats use; q8_0 halves the cells at hardly any cost in quality."""
_AFTER_LAYERS: tuple[_Rung, ...] = (
    _slots(1),
    _context(1024),
    _cache(_CACHES_BYTES[2]),
    _kv("q4_0"),
    _context(_LEAST_CONTEXT),
)
"""What gives way last, each step with fewer layers on the device too. A layer on the processor makes every token slower, so that
what is left of comfort went first; but two answers of 2,048 tokens are the least that somebody can work with, and the cells of
more would be as large as one layer or two. q4_0 is felt, and comes last but one."""
