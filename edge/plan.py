"""How a model would be laid out on this machine, and, if wanted, what a node would promise with it. Nothing is served."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.effective import Effective
from edge.engine.client import EngineClient
from edge.errors import ModelUnusable
from edge.fitting import Fitter, Planned, wishes_of
from edge.loading import SettingsPlanner, engine_limits, load_message, specs
from edge.logs import start_logging
from edge.machine import resident_bytes
from edge.messages import ModelFacts
from edge.registry.fetch import Patience
from edge.registry.gguf import read_header
from edge.registry.remote import sparse_copy
from edge.registry.resolve import OnChecksum, Registry, ResolvedModel
from edge.registry.source import shown

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Promise:
    """What a loaded and measured model says of itself. Sizes in bytes."""

    facts: ModelFacts
    engine_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A model as it would be served."""

    model: ResolvedModel
    where: str
    """Its file, on this machine or elsewhere; for people."""
    planned: Planned
    promise: Promise | None


def plan(
    effective: Effective,
    memory_bytes: int | None,
    on_check: OnChecksum,
    on_load: Callable[[str, float], None] | None,
) -> Answer:
    """Lay a model out in this machine's memory, or in `memory_bytes` of it. With `on_load` it is loaded, measured and unloaded
    too. Raises DoesNotFit with the nearest thing that would fit, EdgeError when the model cannot be had."""
    settings = effective.settings
    start_logging("error", settings.log.format)
    registry = Registry.at(effective.home)
    elsewhere = registry.elsewhere(settings.model.name)
    if elsewhere is not None and on_load is not None:
        name = shown(settings.model.name)
        raise ModelUnusable(f"{name} is not on this machine, so it cannot be measured: `edge models pull {name}`")
    with _looked_at(registry, settings.model.name, elsewhere, on_check) as model:
        planned = _planned(effective, registry, model, Fitter(settings, memory_bytes))
        promise = None if on_load is None else asyncio.run(_promise(effective, model, planned, on_load))
    where = shown(elsewhere) if elsewhere is not None else str(model.path)
    return Answer(model, where, planned, promise)


def _planned(effective: Effective, registry: Registry, model: ResolvedModel, fitter: Fitter) -> Planned:
    """The layout as `edge serve` would choose it."""
    settings = effective.settings
    further = specs(settings, settings.model.served_name)[1:]
    planner = SettingsPlanner(settings, effective.home, registry, fitter, further)
    kept_bytes = asyncio.run(planner.kept_for_others())
    return fitter.fit(model.header, wishes_of(settings), kept_bytes=kept_bytes, others=True)


@contextlib.contextmanager
def _looked_at(registry: Registry, name: str, elsewhere: str | None, on_check: OnChecksum) -> Iterator[ResolvedModel]:
    """A model of this machine, or the header of one that lies elsewhere, in a file as long as the whole."""
    if elsewhere is None:
        yield registry.resolve(name, on_check)
        return
    with tempfile.TemporaryDirectory(prefix="edge-plan-") as place:
        path = sparse_copy(elsewhere, Path(place), Patience(tries=3))
        header = read_header(path)
        if header.reads is not None:
            raise ModelUnusable(
                f"{shown(name)} is for {header.reads}: its memory follows from its size, and layouts are planned for models that "
                "write text"
            )
        yield ResolvedModel(path.stem if name == elsewhere else name, path, header, None)


async def _promise(
    effective: Effective, model: ResolvedModel, planned: Planned, on_load: Callable[[str, float], None]
) -> Promise:
    settings = effective.settings
    load = load_message(model, planned.plan.layout, settings, effective.home)
    engine = EngineClient(load, engine_limits(settings.engine))
    await engine.start()
    try:
        ready = asyncio.create_task(engine.wait_ready(), name="wait-ready")
        while not (await asyncio.wait({ready}, timeout=_TICK_S))[0]:
            on_load(engine.status.reason, engine.status.progress)
        await ready
        facts, pid = engine.facts, engine.status.pid
        assert facts is not None and pid is not None
        return Promise(facts, resident_bytes(pid))
    finally:
        await engine.stop()
