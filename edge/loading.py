"""From settings to what an engine child is told: the model's file, a layout that fits into memory, every `auto` decided, and the
targets less what happens outside the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge.engine.client import EngineLimits
from edge.engine.probe import LayoutProbe
from edge.machine import usable_cores
from edge.memory.budget import room
from edge.memory.planner import (
    Budget,
    Layout,
    LayoutRefused,
    ModelShape,
    Part,
    Plan,
    SizesOf,
    Wishes,
    alternatives,
    plan,
)
from edge.memory.sizes import WeightTable, parts
from edge.messages import LaidOut, Load, Measured, MeasureLayout
from edge.pinned import read_pinned
from edge.registry.gguf import GgufHeader
from edge.registry.resolve import ResolvedModel
from edge.settings import Engine, Settings

_MARGIN = 0.1
"""Part of each objective that is kept back for what no prediction sees."""
_LESS = 0.85
"""A layout that ran out of memory is followed by one of at most this part of its size."""
_FRONT_S = 0.003
"""What the front adds to the time to the first token while it has little to do, on a small box (docs/bench.md)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A layout of one model that fits, the memory it was fitted into, and other layouts that would fit."""

    plan: Plan
    budget: Budget
    shape: ModelShape
    others: tuple[Plan, ...] = ()


class Fitter:
    """Fits models into the memory of this node. Blocks while it measures: half a second for most models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def room(self, *, device: bool) -> Budget:
        """Room for models as things are now."""
        memory = self._settings.memory
        return room(memory.budget_mib, memory.reserve_mib, device=device and self._settings.engine.gpu_layers != 0)

    def fit(
        self,
        header: GgufHeader,
        wishes: Wishes,
        *,
        at_most_bytes: int | None = None,
        budget: Budget | None = None,
        others: bool = False,
    ) -> Planned:
        """The best layout. `at_most_bytes`: room for this model where that is less than there is; `budget`: instead of what is
        found here. Raises DoesNotFit with the nearest thing that would fit, ModelUnusable if the library refuses the file."""
        with LayoutProbe(header.path, cores=usable_cores(), gpu_layers=self._settings.engine.gpu_layers) as probe:
            measured = probe.model()
            shape = ModelShape(measured.train_context_tokens or header.context_tokens, measured.layers)
            found = _at_most(budget or self.room(device=measured.offloads), at_most_bytes)
            sizes = self._sizes(probe, measured, header)
            chosen = plan(shape, found, wishes, sizes)
            more = alternatives(shape, found, wishes, chosen, sizes) if others else []
            return Planned(chosen, found, shape, tuple(more))

    def less(self, header: GgufHeader, wishes: Wishes, failed: Planned) -> Planned:
        """The best layout that takes clearly less than one that ran out of memory. Raises DoesNotFit."""
        budget = failed.budget
        most = failed.plan.total_bytes if budget.device_bytes is None or budget.unified else failed.plan.device_bytes
        return self.fit(header, wishes, at_most_bytes=int(most * _LESS))

    def _sizes(self, probe: LayoutProbe, measured: Measured, header: GgufHeader) -> SizesOf:
        engine = self._settings.engine
        weights = WeightTable(header.block_bytes, header.input_bytes, header.output_bytes)
        known: dict[MeasureLayout, LaidOut | None] = {}

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


def _at_most(budget: Budget, bytes_: int | None) -> Budget:
    if bytes_ is None:
        return budget
    if budget.device_bytes is None or budget.unified:
        return replace(budget, host_bytes=min(budget.host_bytes, bytes_))
    return replace(budget, device_bytes=min(budget.device_bytes, bytes_))


def wishes_of(settings: Settings) -> Wishes:
    """What the operator fixed, and what the planner may choose."""
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


def load_message(model: ResolvedModel, layout: Layout, settings: Settings, home: Path) -> Load:
    """What the engine child is told to load, with every `auto` decided. Raises ConfigurationError."""
    engine, slo = settings.engine, settings.slo
    return Load(
        path=str(model.path),
        slots=layout.slots,
        context_tokens=layout.context_tokens,
        pass_tokens=layout.pass_tokens,
        threads=engine.threads,
        cores=usable_cores(),
        gpu_layers=layout.gpu_layers,
        kv_layout="streams" if engine.kv_layout == "auto" else engine.kv_layout,
        kv_type=layout.kv_type,
        flash_attention=engine.flash_attention,
        heartbeat_s=engine.heartbeat_s,
        ttft_target_s=slo.ttft_ms / 1000 * (1 - _MARGIN) - _FRONT_S,
        itl_target_s=slo.itl_ms / 1000 * (1 - _MARGIN),
        promises=settings.admission.mode != "off",
        cache_bytes=layout.cache_bytes,
        kept_bytes=settings.cache.kept_mib << 20,
        isolate_keys=settings.cache.isolate_keys,
        state_directory=str(home / "engine"),
        pinned=read_pinned(home / settings.cache.pinned_file) if settings.cache.pinned_file else [],
    )


def engine_limits(settings: Engine) -> EngineLimits:
    """The engine client's patience."""
    return EngineLimits(
        max_waiting=settings.max_waiting,
        wedge_timeout_s=settings.wedge_timeout_s,
        load_timeout_s=settings.load_timeout_s,
        restart_backoff_max_s=settings.restart_backoff_max_s,
    )
