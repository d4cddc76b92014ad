"""From settings to what an engine child is told: the model's file, every `auto` decided, and the targets less what happens
outside the engine."""

from __future__ import annotations

from pathlib import Path

from edge.engine.client import EngineLimits
from edge.machine import usable_cores
from edge.messages import Load
from edge.pinned import read_pinned
from edge.registry.resolve import ResolvedModel
from edge.settings import Engine, Settings

_MARGIN = 0.1
"""Part of each objective that is kept back for what no prediction sees."""
_FRONT_S = 0.003
"""What the front adds to the time to the first token while it has little to do, on a small box (docs/bench.md)."""


def load_message(model: ResolvedModel, settings: Settings, home: Path) -> Load:
    """What the engine child is told to load, with every `auto` decided. Raises ConfigurationError."""
    engine, slo = settings.engine, settings.slo
    return Load(
        path=str(model.path),
        slots=engine.slots,
        context_tokens=engine.context_tokens,
        context_cap_tokens=engine.context_cap_tokens,
        pass_tokens=engine.pass_tokens,
        threads=engine.threads,
        cores=usable_cores(),
        gpu_layers=engine.gpu_layers,
        kv_layout="streams" if engine.kv_layout == "auto" else engine.kv_layout,
        kv_type=engine.kv_type,
        flash_attention=engine.flash_attention,
        heartbeat_s=engine.heartbeat_s,
        ttft_target_s=slo.ttft_ms / 1000 * (1 - _MARGIN) - _FRONT_S,
        itl_target_s=slo.itl_ms / 1000 * (1 - _MARGIN),
        promises=settings.admission.mode != "off",
        cache_bytes=settings.cache.host_mib << 20,
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
