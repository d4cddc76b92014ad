"""From settings to what an engine child is told: the model's file, every `auto` decided, and the targets less what happens
outside the engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec

from edge.engine.client import EngineLimits
from edge.errors import ConfigurationError, DoesNotFit, ModelUnusable
from edge.machine import memory_available_bytes, usable_cores
from edge.messages import Load
from edge.pinned import read_pinned
from edge.registry.gguf import GgufHeader
from edge.registry.resolve import Registry, ResolvedModel
from edge.residency import Fitted, Spec, Version, stamp_of
from edge.settings import Engine, Settings

_MARGIN = 0.1
"""Part of each objective that is kept back for what no prediction sees."""
_FRONT_S = 0.003
"""What the front adds to the time to the first token while it has little to do, on a small box (docs/bench.md)."""
_PROCESS_BYTES = 128 << 20
"""What an engine's process takes beside weights, attention memory and saved beginnings: the interpreter, compute buffers."""
_FURTHER_CACHE_SHARE = 4
"""A further model may save a quarter of what the main one may."""
_KEPT_BACK_SHARE = 0.1
"""Part of the memory that is left for the front and for everybody else on the machine."""


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


def specs(settings: Settings, main_name: str) -> list[Spec]:
    """All models of the settings, the node's own first."""
    model = settings.model
    main = Spec(main_name, model.name, model.aliases, main=True, pinned=True, preload=True)
    return [
        main,
        *(
            Spec(
                name,
                further.source or name,
                further.aliases,
                pinned=further.pinned,
                preload=further.preload,
                idle_s=further.idle_s,
                slots=further.slots,
                context_tokens=further.context_tokens,
            )
            for name, further in settings.models.items()
        ),
    ]


def room_bytes(settings: Settings) -> int:
    """Memory for all models together."""
    if settings.memory.budget_mib:
        return settings.memory.budget_mib << 20
    available = memory_available_bytes()
    if available is None:
        raise ConfigurationError("this machine does not say how much memory it has; set memory.budget_mib")
    return int(available * (1 - _KEPT_BACK_SHARE))


class SettingsPlanner:
    """Finds models through the registry and plans them by the settings. Implements `edge.residency.Planner`."""

    def __init__(self, settings: Settings, home: Path, registry: Registry) -> None:
        self._settings, self._home, self._registry = settings, home, registry

    async def find(self, spec: Spec) -> Version:
        """The file as it is now; a checksum that is not known yet is computed in a thread. Raises ModelUnusable."""
        try:
            model = await asyncio.to_thread(self._registry.resolve, spec.source)
            model = replace(
                model, path=model.path.resolve()
            )  # behind a link that is set anew the old version is still there
            return Version(spec, model, stamp_of(model), int(model.path.stat().st_mtime))
        except OSError as error:
            raise ModelUnusable(f"the file of model {spec.name!r} cannot be read: {error.strerror or error}") from None

    async def fit(self, version: Version, room_bytes: int) -> Fitted:
        """As the settings have it, with less memory for saved beginnings where only that is too much. Raises DoesNotFit."""
        spec, load = version.spec, load_message(version.model, self._settings, self._home)
        if not spec.main:
            load = _further(load, spec)
        needed = estimated_bytes(version.model.header, load)
        if (over := needed - room_bytes) > load.cache_bytes:
            raise DoesNotFit.of(spec.name, needed - load.cache_bytes, room_bytes)
        if over > 0:
            load = msgspec.structs.replace(load, cache_bytes=load.cache_bytes - over)
        return Fitted(load, min(needed, room_bytes))


def _further(load: Load, spec: Spec) -> Load:
    """As a model is loaded that stands beside the main one: it promises nothing where that one does, and stays behind it."""
    return msgspec.structs.replace(
        load,
        slots=spec.slots or load.slots,
        context_tokens=spec.context_tokens or load.context_tokens,
        promises=False,
        background=load.promises,
        cache_bytes=load.cache_bytes // _FURTHER_CACHE_SHARE,
        kept_bytes=0,
        pinned=[],
        state_directory=str(Path(load.state_directory) / "further"),  # each clears up what others have kept
    )


def estimated_bytes(header: GgufHeader, load: Load) -> int:
    """The most memory that an engine takes, from the file's header: weights, attention memory, saved beginnings, the process."""
    context = load.context_tokens or min(header.context_tokens or load.context_cap_tokens, load.context_cap_tokens)
    per_token = header.kv_token_bytes if load.kv_type == "f16" else header.kv_token_bytes * 34 // 64
    return header.file_bytes + per_token * context * load.slots + load.cache_bytes + _PROCESS_BYTES
