"""Which layout of a model fits into which memory. Pure: sizes come from an oracle, budgets as arguments.

What gives way, and in which order, is `edge.memory.ladder`'s; here the first step that fits is taken, and it is said what else
would fit, or why nothing does. Sizes in bytes, lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge.errors import DoesNotFit
from edge.memory.ladder import ladder, sized
from edge.memory.layout import Budget, Layout, ModelShape, Plan, SizesOf, Wishes, fits
from edge.quantities import count, mib

_ALTERNATIVE_SLOTS = 32
_FIXABLE = ("slots", "context_tokens", "kv_type", "gpu_layers")
"""Wishes that hold, whatever memory there is; settings of the same names in [engine]."""


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
    raise DoesNotFit(_refusal(shape, budget, wishes, smallest, sizes_of))


def plan_keeping(
    shape: ModelShape, budget: Budget, wishes: Wishes, kept_bytes: int, sizes_of: SizesOf
) -> tuple[Plan, int]:
    """The best layout of the node's own model that leaves so much room for further ones, and how much it leaves: none where it
    would not fit beside that, or would have layers on the processor for their sake. Raises as `plan`."""
    whole = plan(shape, budget, wishes, sizes_of)
    if not kept_bytes:
        return whole, 0
    try:
        beside = plan(shape, budget.at_most(max(0, budget.bytes - kept_bytes)), wishes, sizes_of)
    except DoesNotFit:
        return whole, 0
    slower = beside.layout.gpu_layers < whole.layout.gpu_layers
    return (whole, 0) if slower else (beside, kept_bytes)


def alternatives(shape: ModelShape, budget: Budget, wishes: Wishes, chosen: Plan, sizes_of: SizesOf) -> list[Plan]:
    """Up to two other layouts that fit: with all layers on the device, with a longer context, with more answers at a time, or
    with less memory for cells."""
    faster = _faster(shape, budget, wishes, chosen, sizes_of)
    found = [] if faster is None else [faster]
    for make in (_longer, _wider, _leaner):
        best: Plan | None = None
        for layout in make(chosen.layout, shape, wishes):
            plan_ = sized(layout, sizes_of)
            if plan_ is None or not fits(plan_, budget):
                break
            best = plan_
        if best is not None and best.layout != chosen.layout:
            found.append(best)
    return found[:2]


def _faster(shape: ModelShape, budget: Budget, wishes: Wishes, chosen: Plan, sizes_of: SizesOf) -> Plan | None:
    """All layers on the device that holds some: smaller than anybody is given unasked."""
    if wishes.gpu_layers is not None or not budget.separate or chosen.layout.gpu_layers == shape.layers:
        return None
    there = replace(wishes, gpu_layers=shape.layers)
    return next((step for step in ladder(shape, budget, there, sizes_of) if fits(step, budget)), None)


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
