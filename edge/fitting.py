"""Fits models into this node's memory: the machine's budget, the library's own sizes, and the planner brought together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.engine.probe import LayoutProbe
from edge.machine import usable_cores
from edge.memory.budget import room, supposed
from edge.memory.layout import Budget, Layout, LayoutRefused, ModelShape, Part, Plan, SizesOf, Wishes
from edge.memory.planner import alternatives, plan_keeping
from edge.memory.sizes import WeightTable, parts
from edge.messages import LaidOut, Measured, MeasureLayout
from edge.registry.gguf import GgufHeader
from edge.settings import Settings

_LESS = 0.85
"""A layout that ran out of memory is followed by one of at most this part of its size."""
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Planned:
    """A layout of one model that fits, the memory it was fitted into, and other layouts that would fit."""

    plan: Plan
    budget: Budget
    layers: int
    """All that could lie on a device; `plan.layout.gpu_layers` of them do."""
    kept_bytes: int = 0
    """Left free for further models; beside the budget."""
    others: tuple[Plan, ...] = ()

    @property
    def bytes(self) -> int:
        """What it takes of the budget's memory: of the device where that has its own, else of main memory."""
        return self.plan.device_bytes if self.budget.separate else self.plan.total_bytes


@dataclass(slots=True)
class _Known:
    """What was measured of one file."""

    model: Measured | None = None
    layouts: dict[MeasureLayout, LaidOut | None] = field(default_factory=dict)


class Fitter:
    """Finds layouts. The budget is found once, at the first question: what is free later depends on what was loaded. Blocks
    while it measures, half a second for most models, and measures each layout of a file once; any thread may ask."""

    def __init__(self, settings: Settings, memory_bytes: int | None = None) -> None:
        """`memory_bytes`: plan for so much, whatever is free."""
        self._settings, self._memory_bytes = settings, memory_bytes
        self._budget: Budget | None = None
        self._lock = threading.Lock()
        self._files: dict[tuple[Path, float, int], _Known] = {}

    def fit(
        self,
        header: GgufHeader,
        wishes: Wishes,
        *,
        at_most_bytes: int | None = None,
        kept_bytes: int = 0,
        others: bool = False,
    ) -> Planned:
        """The best layout. `at_most_bytes`: room for this model where that is less than the budget. `kept_bytes`: so much of
        it stays free if it can. `others`: what else would fit. Raises DoesNotFit with the nearest thing that would,
        ModelUnusable if the library refuses the file, OSError if it is gone."""

        def bound(whole: Budget) -> Budget:
            return whole if at_most_bytes is None else whole.at_most(at_most_bytes)

        return self._fit(header, wishes, bound, kept_bytes, others=others)

    def less(self, header: GgufHeader, wishes: Wishes, failed: Planned) -> Planned:
        """The best layout that takes clearly less than one that ran out of memory. Raises as `fit`."""
        return self._fit(header, wishes, lambda whole: whole.below(failed.plan, _LESS))

    def _fit(
        self,
        header: GgufHeader,
        wishes: Wishes,
        bound: Callable[[Budget], Budget],
        kept_bytes: int = 0,
        *,
        others: bool = False,
    ) -> Planned:
        settings = self._settings
        with self._lock, LayoutProbe(header.path, cores=usable_cores(), gpu_layers=settings.engine.gpu_layers) as probe:
            known = self._known(header.path)
            measured = known.model = known.model or probe.model()
            if self._budget is None:
                device = measured.offloads and settings.engine.gpu_layers != 0
                now = room(settings.memory.budget_mib, settings.memory.reserve_mib, device=device)
                self._budget = now if self._memory_bytes is None else supposed(self._memory_bytes, now)
            budget = bound(self._budget)
            shape = ModelShape(measured.train_context_tokens or header.context_tokens, measured.layers)
            sizes = self._sizes(probe, measured, known.layouts, header)
            chosen, kept_bytes = plan_keeping(shape, budget, wishes, kept_bytes, sizes)
            if kept_bytes:
                budget = budget.at_most(budget.bytes - kept_bytes)
            more = alternatives(shape, budget, wishes, chosen, sizes) if others else []
            return Planned(chosen, budget, measured.layers, kept_bytes, tuple(more))

    def _known(self, path: Path) -> _Known:
        found = path.stat()
        key = (path, found.st_mtime, found.st_size)
        if key not in self._files and len(self._files) >= _REMEMBERED:
            self._files.clear()
        return self._files.setdefault(key, _Known())

    def _sizes(
        self, probe: LayoutProbe, measured: Measured, known: dict[MeasureLayout, LaidOut | None], header: GgufHeader
    ) -> SizesOf:
        engine = self._settings.engine
        weights = WeightTable(header.block_bytes, header.input_bytes, header.output_bytes)

        def sizes_of(layout: Layout) -> tuple[Part, ...]:
            wish = MeasureLayout(
                slots=layout.slots,
                context_tokens=layout.context_tokens,
                pass_tokens=layout.pass_tokens,
                kv_type=layout.kv_type,
                unified=engine.kv_layout == "unified",
                flash_attention=engine.flash_attention,
            )
            if wish not in known:
                known[wish] = probe.layout(wish)
            laid_out = known[wish]
            if laid_out is None:
                raise LayoutRefused
            return parts(measured, weights, laid_out, layout)

        return sizes_of


def wishes_of(settings: Settings) -> Wishes:
    """What the operator fixed for the node's own model, and what the planner may choose."""
    engine = settings.engine
    return Wishes(
        slots=engine.slots or None,
        context_tokens=engine.context_tokens or None,
        kv_type=None if engine.kv_type == "auto" else engine.kv_type,
        gpu_layers=None if engine.gpu_layers < 0 else engine.gpu_layers,
        context_cap_tokens=engine.context_cap_tokens,
        pass_tokens=engine.pass_tokens,
        cache_bytes=settings.cache.host_mib << 20,
        flash_attention=engine.flash_attention != "off",
    )


_FURTHER_CACHE_SHARE = 4
_FURTHER_SLOTS = 4
_FURTHER_CONTEXT_TOKENS = 4096


def further_wishes(settings: Settings, slots: int, context_tokens: int) -> Wishes:
    """The same for a further model. What nobody fixed is modest, so that several have room: it promises nothing anyway."""
    own = wishes_of(settings)
    return replace(
        own,
        slots=slots or own.slots,
        most_slots=_FURTHER_SLOTS,
        context_tokens=context_tokens or own.context_tokens,
        context_cap_tokens=min(own.context_cap_tokens, _FURTHER_CONTEXT_TOKENS),
        cache_bytes=own.cache_bytes // _FURTHER_CACHE_SHARE,
    )
