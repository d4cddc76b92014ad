"""What a node would promise on this machine, found out without serving: load the model, measure, ask, unload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.effective import Effective
from edge.engine.client import EngineClient
from edge.loading import engine_limits, load_message
from edge.logs import start_logging
from edge.machine import resident_bytes
from edge.messages import ModelFacts
from edge.registry.resolve import Registry, ResolvedModel, model_directories
from edge.settings import Slo

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Planned:
    """A model as it would be served. Sizes in bytes."""

    model: ResolvedModel
    facts: ModelFacts
    engine_bytes: int
    slo: Slo
    promises: bool


def plan(effective: Effective, on_check: Callable[[Path], None], on_load: Callable[[str, float], None]) -> Planned:
    """Load, measure and unload. Raises EdgeError when the model cannot be had."""
    settings = effective.settings
    start_logging("error", settings.log.format)
    registry = Registry(model_directories(effective.home), effective.home / "verified.json")
    model = registry.resolve(settings.model.name, on_check)
    return asyncio.run(_plan(effective, model, on_load))


async def _plan(effective: Effective, model: ResolvedModel, on_load: Callable[[str, float], None]) -> Planned:
    settings = effective.settings
    engine = EngineClient(load_message(model, settings, effective.home), engine_limits(settings.engine))
    await engine.start()
    try:
        ready = asyncio.create_task(engine.wait_ready(), name="wait-ready")
        while not (await asyncio.wait({ready}, timeout=_TICK_S))[0]:
            on_load(engine.status.reason, engine.status.progress)
        await ready
        facts, pid = engine.facts, engine.status.pid
        assert facts is not None and pid is not None
        return Planned(model, facts, resident_bytes(pid), settings.slo, settings.admission.mode != "off")
    finally:
        await engine.stop()
