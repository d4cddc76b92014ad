"""From settings to what an engine child is told: the model's file, a layout that fits into memory, every `auto` decided, and the
targets less what happens outside the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec

from edge.engine.supervised import EngineLimits
from edge.errors import EdgeError, ModelUnusable
from edge.fitting import Fitter, Planned, further_wishes, wishes_of
from edge.machine import usable_cores
from edge.memory.layout import Layout, Wishes
from edge.memory.sizes import tensor_bytes
from edge.messages import Load, Prompt
from edge.onnx.messages import LoadTensors, Looking, Reading, Task
from edge.pinned import read_pinned
from edge.registry.manifest import READING, TOKENIZER, Encoder, Manifest
from edge.registry.resolve import Found, Registry, ResolvedModel, ResolvedTensors
from edge.residency import Fitted, Spec, Version, stamp_of
from edge.settings import Engine, Settings

log = logging.getLogger(__name__)

_MARGIN = 0.1
"""Part of each objective that is kept back for what no prediction sees."""
_FRONT_S = 0.003
"""What the front adds to the time to the first token while it has little to do, on a small box (docs/bench.md)."""
_USUAL_OVERLAP = 0.45
PIXEL_BYTES = 9
"""Of a picture in memory while it is made smaller, measured: one that lets light through is there twice. WebP's decoder alone
takes twice as much, which is not planned for the few that are sent."""
_USUAL_TOKENS = 512
"""What encoders read at least."""
_MODEST_BYTES = 256 << 20
"""What a further model takes beside its weights when it is laid out modestly, about: the node's own leaves that much."""


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
        pinned=pinned_prompts(settings, home),
    )


def pinned_prompts(settings: Settings, home: Path) -> list[Prompt]:
    """The file of pinned prompts, if there is one. Raises ConfigurationError."""
    return read_pinned(home / settings.cache.pinned_file) if settings.cache.pinned_file else []


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


def tensor_load(
    model: ResolvedTensors, settings: Settings, limit_bytes: int, *, context_tokens: int = 0
) -> LoadTensors:
    """What a tensor child is told to load. `context_tokens`: of texts, at most; 0: as long as the model reads."""
    onnx = settings.onnx
    on_cpu = model.header is not None and settings.engine.gpu_layers == 0
    return LoadTensors(
        path=str(model.path),
        task=cast(Task, model.task),
        reading=_reading(model, context_tokens) if model.task in READING else None,
        provider="cpu" if on_cpu else onnx.provider,
        threads=onnx.threads or usable_cores(),
        most_rows=onnx.most_rows,
        slo_s=onnx.slo_ms / 1000 * (1 - _MARGIN) - _FRONT_S,
        limit_bytes=limit_bytes,
        heartbeat_s=settings.engine.heartbeat_s,
        background=settings.admission.mode != "off",
        runtime="onnxruntime" if model.header is None else "libllama",
        fixed_threads=onnx.threads > 0,
        weights_bytes=model.file_bytes,
        pass_limit_s=onnx.pass_limit_s,
        looking=_looking(model.manifest, settings) if model.manifest is not None else None,
    )


def _looking(manifest: Manifest, settings: Settings) -> Looking | None:
    detector = manifest.detector
    if detector is None:
        return None
    one_stage = detector.layout == "yolo"
    return Looking(
        labels=detector.labels,
        layout=detector.layout,
        height=detector.size[0],
        width=detector.size[1],
        fit=detector.fit,
        mean=detector.mean,
        std=detector.std,
        scores=detector.scores or ("probabilities" if one_stage else "sigmoid"),
        boxes=detector.boxes,
        threshold=detector.threshold,
        overlap=detector.overlap or (_USUAL_OVERLAP if one_stage else 1.0),
        scores_output=detector.scores_output,
        boxes_output=detector.boxes_output,
        most_pixels=_most_pixels(settings),
    )


def _most_pixels(settings: Settings) -> int:
    return int(settings.onnx.most_picture_mpx * 1e6)


def _reading(model: ResolvedTensors, context_tokens: int) -> Reading:
    """What a file's header leaves open is shortened where there is no memory for all of it; what an operator fixed is not."""
    manifest, header = model.manifest, model.header
    encoder = (manifest.encoder if manifest is not None else None) or Encoder()
    known = [manifest.context_tokens if manifest is not None else 0, header.context_tokens if header is not None else 0]
    longest = next((length for length in known if length), _USUAL_TOKENS)
    most = min(longest, context_tokens or longest)
    return Reading(
        tokenizer=str(model.files.get(TOKENIZER, "")),
        max_tokens=most,
        least_tokens=most if header is None or context_tokens else min(most, _USUAL_TOKENS),
        pooling=encoder.pooling or ("none" if header is None else "file"),
        normalise=encoder.normalise,
        output=encoder.output,
        query_prompt=encoder.query_prompt,
        document_prompt=encoder.document_prompt,
        dimensions=encoder.dimensions,
        labels=encoder.labels,
        multi_label=encoder.multi_label,
    )


class SettingsPlanner:
    """Finds models through the registry and fits them into memory as the settings say. Implements `edge.residency.Planner`."""

    def __init__(
        self, settings: Settings, home: Path, registry: Registry, fitter: Fitter, others: Sequence[Spec] = ()
    ) -> None:
        """`others`: models that the node's own leaves room for."""
        self._settings, self._home, self._registry, self._fitter = settings, home, registry, fitter
        self._others = others

    async def find(self, spec: Spec) -> Version:
        """The file as it is now; a checksum that is not known yet is computed in a thread. Raises ModelUnusable."""
        try:
            find = self._registry.resolve if spec.main else self._registry.find
            model: Found = await asyncio.to_thread(find, spec.source)
            model = replace(
                model, path=model.path.resolve()
            )  # behind a link that is set anew the old version is still there
            return Version(spec, model, stamp_of(model), int(model.path.stat().st_mtime))
        except OSError as error:
            raise ModelUnusable(f"the file of model {spec.name!r} cannot be read: {error.strerror or error}") from None

    async def fit(self, version: Version, room_bytes: int) -> Fitted:
        """The best layout within a room. Raises DoesNotFit, ModelUnusable, ConfigurationError."""
        if isinstance(version.model, ResolvedTensors):
            return self._fit_tensors(version.spec, version.model, room_bytes)
        return await self._fit_language(version, room_bytes)

    def _fit_tensors(self, spec: Spec, model: ResolvedTensors, room_bytes: int) -> Fitted:
        pieces = model.header.vocabulary if model.header is not None else 0
        looks = model.task == "detection"
        picture_bytes = _most_pixels(self._settings) * PIXEL_BYTES if looks else 0
        planned_bytes = tensor_bytes(
            spec.name, model.file_bytes, room_bytes, pieces=pieces, further_bytes=picture_bytes
        )
        load = tensor_load(model, self._settings, planned_bytes, context_tokens=spec.context_tokens)
        return Fitted(load, planned_bytes)

    async def _fit_language(self, version: Version, room_bytes: int) -> Fitted:
        kept_bytes = await self.kept_for_others() if version.spec.main else 0
        header, wishes = _language(version).header, self._wishes(version.spec)
        try:
            planned = await asyncio.to_thread(
                self._fitter.fit, header, wishes, at_most_bytes=max(0, room_bytes), kept_bytes=kept_bytes
            )
        except OSError as error:
            name = version.spec.name
            raise ModelUnusable(f"the file of model {name!r} cannot be read: {error.strerror or error}") from None
        return Fitted(self._load(version, planned), planned.bytes, self._smaller(version, planned))

    def _smaller(self, version: Version, planned: Planned) -> Callable[[], Awaitable[Load | None]]:
        """Gives a smaller load each time it is called, None when there is none."""

        async def smaller() -> Load | None:
            nonlocal planned
            wishes = self._wishes(version.spec)
            try:
                planned = await asyncio.to_thread(self._fitter.less, _language(version).header, wishes, planned)
            except (EdgeError, OSError) as error:
                log.error("no smaller layout", extra={"event": "no_smaller_layout", "reason": str(error)})
                return None
            return self._load(version, planned)

        return smaller

    async def kept_for_others(self) -> int:
        """Room for those that stay, and for the largest of those that come and go."""
        stay, largest = 0, 0
        for spec in self._others:
            try:
                needs = _file_bytes((await self.find(spec)).model) + _MODEST_BYTES
            except EdgeError:
                continue
            if spec.fixed:
                stay += needs
            else:
                largest = max(largest, needs)
        return stay + largest

    def _wishes(self, spec: Spec) -> Wishes:
        return (
            wishes_of(self._settings) if spec.main else further_wishes(self._settings, spec.slots, spec.context_tokens)
        )

    def _load(self, version: Version, planned: Planned) -> Load:
        load = load_message(_language(version), planned.plan.layout, self._settings, self._home)
        return load if version.spec.main else _further(load)


def _language(version: Version) -> ResolvedModel:
    assert isinstance(version.model, ResolvedModel)
    return version.model


def _file_bytes(model: Found) -> int:
    return model.header.file_bytes if isinstance(model, ResolvedModel) else model.file_bytes


def _further(load: Load) -> Load:
    """As a model is loaded that stands beside the main one: it promises nothing where that one does, and stays behind it."""
    return msgspec.structs.replace(
        load,
        promises=False,
        background=load.promises,
        kept_bytes=0,
        pinned=[],
        state_directory=str(Path(load.state_directory) / "further"),  # each clears up what others have kept
    )
