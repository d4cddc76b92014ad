"""Which engine a request gets, and the line of models that are to be loaded. The one owner of both; lives on the event loop.

`edge.residency.policy` decides who leaves and who comes; `edge.residency.engines` has the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge.engine.port import EngineStatus
from edge.errors import CannotUnload, DoesNotFit, EdgeError, EngineDown, ModelLoading, ModelNotFound, Overloaded
from edge.machine import resident_bytes
from edge.residency.engines import Engines, as_edge_error
from edge.residency.model import (
    Failure,
    Instance,
    Lease,
    LoadedEngine,
    Model,
    ModelState,
    Planner,
    Spec,
    StartEngine,
    Unloaded,
    Version,
    Wanted,
    again,
)
from edge.residency.policy import decide

log = logging.getLogger(__name__)

_TICK_S, _BUSY_TICK_S = 0.5, 0.02
_FIRST_BACKOFF_S = 0.2
_SAME_FILE_AGAIN_S = 300.0
"""A file that could not be loaded is left alone for so long, unless it changes or an operator asks: a try takes others' room."""
_STEADY_S = 60.0
"""An engine that lived so long is not known to fail: it is loaded again at once."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """`room_bytes` for all models together; `max_waiting` requests wait for one that is being loaded."""

    room_bytes: int
    max_waiting: int
    backoff_max_s: float


class Pool:
    """`start` once, `stop` once."""

    def __init__(self, specs: Sequence[Spec], planner: Planner, start: StartEngine, limits: PoolLimits) -> None:
        self._planner, self.limits = planner, limits
        self._models = {spec.name: Model(spec) for spec in specs}
        self._names = {name: spec.name for spec in specs for name in spec.names}
        self.main = next(spec.name for spec in specs if spec.main)
        self._engines = Engines(start, self)
        self._line: list[Wanted] = []
        self._stopping = False

    # --- what the front reads -----------------------------------------------------------------------------------------

    def find(self, name: str | None) -> str | None:
        """The model of that name or alias (None: the main one); None if there is none."""
        return self.main if name is None else self._names.get(name)

    def require(self, name: str | None) -> str:
        """The model of a name or alias (None: the main one). Raises ModelNotFound."""
        found = self.find(name)
        if found is None:
            here = ", ".join(map(repr, self._models))
            raise ModelNotFound(
                f"the model {(name or '')[:100]!r} is not served here; this node serves {here}", param="model"
            )
        return found

    def spec(self, name: str) -> Spec:
        """How a model is configured."""
        return self._models[name].spec

    @property
    def several(self) -> bool:
        """There are further models than the main one."""
        return len(self._models) > 1

    def engine(self, name: str) -> LoadedEngine | None:
        """The engine that answers for a model, or else the one that is being started; None if there is neither."""
        shown = self._models[name].shown
        return shown.engine if shown is not None else None

    def status(self, name: str) -> EngineStatus:
        """Where a model stands: as its engine says it, or in its place."""
        if (engine := self.engine(name)) is not None:
            return engine.status
        return self._models[name].absence()

    @property
    def planned_bytes(self) -> int:
        """Room that is taken."""
        return self._engines.bytes

    def waits(self, name: str) -> bool:
        """Whether requests wait for this model to be loaded. Not for the node's own before it was ready the first time."""
        model = self._models[name]
        return model.was_ready or not model.spec.main

    def states(self) -> Iterator[ModelState]:
        """All models, in the order of the settings."""
        return (self.state(name) for name in self._models)

    def unloads(self) -> Iterator[tuple[str, str, int]]:
        """(model, why, how often)."""
        for name, model in self._models.items():
            for why, count in model.unloads.items():
                yield name, why, count

    def state(self, name: str) -> ModelState:
        """One model."""
        model, status = self._models[name], self.status(name)
        leaving = [i for i in self._engines.all if i.version.spec is model.spec and i.state == "leaving"]
        resident = resident_bytes(status.pid) if status.pid is not None else None
        return model.state(status, resident, leaving, time.monotonic())

    # --- requests -----------------------------------------------------------------------------------------------------

    def lease(self, name: str) -> Lease:
        """The engine that takes requests for a model now. Raises ModelLoading if there is none now, or why there will be none."""
        model = self._models[name]
        if (instance := model.serving) is not None:
            instance.last_use_s = time.monotonic()
            return Lease(instance)
        self._require_hope(model)
        if self.waits(name):
            raise ModelLoading(f"the model {name!r} is not loaded at present; it will be, try again shortly")
        status = self.status(name)
        if status.phase == "loading":
            raise ModelLoading(f"the model is being loaded ({status.progress:.0%}); try again shortly")
        raise EngineDown(f"the engine is {status.phase}: {status.reason}")

    def want(self, name: str) -> None:
        """Load a model although nobody waits here. Nothing happens if it is loaded, or about to be, or known not to work."""
        model = self._models[name]
        if model.serving is None and model.hopeless(time.monotonic()) is None and not self._stopping:
            self._wanted(model).keep = True

    async def acquire(self, name: str, patience_s: float) -> Lease:
        """Wait until a model answers. Raises ModelLoading when that takes too long, Overloaded when too many wait, or why it
        cannot be loaded."""
        model = self._models[name]
        if model.serving is not None:
            return self.lease(name)
        self._require_hope(model)
        wanted = self._wanted(model)
        if len(wanted.waiters) >= self.limits.max_waiting:
            raise Overloaded(f"{len(wanted.waiters)} requests wait for the model {name!r} already; try again shortly")
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        wanted.waiters.append(future)
        try:
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            wanted.keep = True  # who comes back later finds it loaded, however busy the others are
            raise ModelLoading(
                f"the model {name!r} was not loaded within {patience_s:g} s (admission.load_wait_s); try again later"
            ) from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise
        finally:
            if future in wanted.waiters:
                wanted.waiters.remove(future)
            self._forget(wanted)

    def _require_hope(self, model: Model) -> None:
        """Raises why it is of no use to wait."""
        if model.wanted is None and (error := model.hopeless(time.monotonic())) is not None:
            raise again(error)

    # --- operators ----------------------------------------------------------------------------------------------------

    async def load(self, name: str, *, wait: bool = True) -> None:
        """Load a model, or its new version if its file has changed. Raises why it cannot be."""
        model = self._models[name]
        version = await self._planner.find(model.spec)
        coming = model.wanted
        if coming is not None and coming.version is not None and coming.version.stamp != version.stamp:
            with contextlib.suppress(EdgeError):  # what is being loaded is there no more
                await self._end_of(coming)
            coming = model.wanted
        if coming is None:
            if model.serving is not None and model.serving.version.stamp == version.stamp:
                return
            coming = self._wanted(model, replaces=model.current)
        coming.keep = coming.forced = True
        if wait:
            await self._end_of(coming)

    async def unload(self, name: str, *, wait: bool = True) -> None:
        """Unload a model once its last answer has ended. Raises CannotUnload if it stays loaded, or is being loaded."""
        model = self._models[name]
        if model.spec.fixed:
            why = "is the node's main model" if model.spec.main else f"is pinned (models.{name}.pinned)"
            raise CannotUnload(f"the model {name!r} {why}, so it stays loaded")
        if model.wanted is not None:
            if model.wanted.instance is not None:
                raise CannotUnload(f"the model {name!r} is being loaded; unload it when it is ready")
            self._conclude(model.wanted, ModelLoading(f"the model {name!r} was unloaded while it waited for room"))
        if (instance := model.current) is not None:
            self._leave(model, instance, "asked")
        while wait and any(i.version.spec is model.spec and i.state == "leaving" for i in self._engines.all):
            await asyncio.sleep(_BUSY_TICK_S)

    @staticmethod
    async def _end_of(wanted: Wanted) -> None:
        """Wait until it is loaded. Raises why it was not."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted.watchers.append(future)
        await future

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load the main model; returns at once. `wait_main` waits for the outcome."""
        self._wanted(self._models[self.main]).keep = True
        self._engines.spawn(self._keep_watch(), "pool-watch")

    async def wait_main(self) -> None:
        """Wait until the main model answers for the first time. Raises why it cannot."""
        model = self._models[self.main]
        if model.wanted is not None:
            await self._end_of(model.wanted)
        elif model.failure is not None and model.serving is None:
            raise again(model.failure.error)

    async def look_at_others(self) -> None:
        """Say which further models cannot be used, and begin to load those that are to be loaded at start."""
        for name, model in self._models.items():
            if model.spec.main:
                continue
            try:
                model.found = await self._planner.find(model.spec)
            except EdgeError as error:
                self._failed(model, Failure(error, time.monotonic()))
                continue
            if model.spec.preload:
                self.want(name)

    async def stop(self) -> None:
        """End all engines. Whoever waits is told so."""
        self._stopping = True
        for wanted in self._line.copy():
            self._conclude(wanted, EngineDown("the node is stopping"))
        await self._engines.stop()

    async def _keep_watch(self) -> None:
        """Idle time-outs, last answers that end, and what comes with time alone."""
        while True:
            try:
                self._look_around(time.monotonic())
            except Exception as error:  # the watch goes on, whatever happens
                log.error("the pool of models failed", extra={"event": "bug"}, exc_info=error)
            restless = self._line or any(i.state in ("draining", "leaving") for i in self._engines.all)
            await asyncio.sleep(_BUSY_TICK_S if restless else _TICK_S)

    def _look_around(self, now_s: float) -> None:
        for model in self._models.values():
            if (instance := model.serving) is not None:
                self._look_at(model, instance, now_s)
            elif model.returns and model.current is None and model.hopeless(now_s) is None:
                self._wanted(model).keep = True
        self._engines.end_idle()
        self._review()

    def _look_at(self, model: Model, instance: Instance, now_s: float) -> None:
        if instance.busy:
            instance.last_use_s = now_s
        elif 0 < model.spec.idle_s <= now_s - instance.last_use_s and model.wanted is None:
            self._leave(model, instance, "idle")

    # --- the line -----------------------------------------------------------------------------------------------------

    def _wanted(self, model: Model, *, replaces: Instance | None = None, version: Version | None = None) -> Wanted:
        """The model's place in the line; the last one if it has none. The main model goes first."""
        if model.wanted is None:
            model.wanted = wanted = Wanted(model.spec, replaces=replaces, version=version)
            self._line.append(wanted)
            self._line.sort(key=lambda w: not w.spec.main)
            self._engines.spawn(self._prepare(model, wanted), f"prepare-{model.spec.name}")
        return model.wanted

    async def _prepare(self, model: Model, wanted: Wanted) -> None:
        """Look at the file and plan its memory. Then it is its turn when there is room."""
        try:
            version = wanted.version or await self._planner.find(model.spec)
            model.found = wanted.version = version
            if not wanted.forced and not model.spec.main:
                model.require_untried(version, time.monotonic())
            fixed = sum(i.bytes for i in self._engines.all if i.version.spec.fixed and i is not wanted.replaces)
            wanted.fitted = await self._planner.fit(version, self.limits.room_bytes - fixed)
        except Exception as error:
            self._give_up(model, wanted, as_edge_error(error))
        self._review()

    def _review(self) -> None:
        """Decide anew and carry it out."""
        if self._stopping:
            return
        ripe = {w.spec.name: w for w in self._line if w.instance is None and w.fitted is not None}
        residents = [instance.resident for instance in self._engines.all]
        steps = decide(time.monotonic(), self.limits.room_bytes, residents, [w.wish for w in ripe.values()])
        for instance in self._engines.all.copy():
            model = self._models[instance.version.spec.name]
            if instance.id in steps.evict:
                self._leave(model, instance, "replaced" if _is_replaced(model, instance) else "room")
            elif instance.id in steps.drain:
                instance.state = "draining"
            elif instance.state == "draining":
                self._reopen(model, instance)
        for name in steps.impossible:
            self._give_up(self._models[name], ripe[name], self._no_room(ripe[name]))
        for name in steps.load:
            wanted = ripe[name]
            assert wanted.version is not None and wanted.fitted is not None
            wanted.instance = self._engines.begin(wanted.version, wanted.fitted)

    def _reopen(self, model: Model, instance: Instance) -> None:
        """Nobody wants its room any more: it takes requests again."""
        instance.state = "serving"
        wanted = model.wanted
        if wanted is None or wanted.instance is not None or wanted.replaces is instance or wanted.version is None:
            return
        if wanted.version.stamp == instance.version.stamp:
            self._conclude(wanted, None, instance)
        else:
            wanted.replaces = instance

    def _no_room(self, wanted: Wanted) -> DoesNotFit:
        assert wanted.fitted is not None
        fixed = sum(i.bytes for i in self._engines.all if i.version.spec.fixed and i is not wanted.replaces)
        return DoesNotFit.of(wanted.spec.name, wanted.fitted.bytes, self.limits.room_bytes - fixed)

    def _forget(self, wanted: Wanted) -> None:
        """If its last client has left, nobody else is to make room for it."""
        if not (wanted.waiters or wanted.watchers or wanted.keep or wanted.instance) and wanted in self._line:
            self._drop(wanted)
            self._review()

    def _drop(self, wanted: Wanted) -> None:
        if wanted in self._line:
            self._line.remove(wanted)
            self._models[wanted.spec.name].wanted = None

    def _conclude(self, wanted: Wanted, error: EdgeError | None, instance: Instance | None = None) -> None:
        """It is loaded, or will not be: tell all who wait. Each of them has a lease before anybody else decides anything."""
        self._drop(wanted)
        for waiter in [w for w in wanted.waiters if not w.done()]:
            if instance is not None:
                waiter.set_result(Lease(instance))
            elif error is not None:
                waiter.set_exception(again(error))
        for watcher in [w for w in wanted.watchers if not w.done()]:
            if error is None:
                watcher.set_result(None)
            else:
                watcher.set_exception(again(error))

    def _leave(self, model: Model, instance: Instance, why: Unloaded) -> None:
        if model.current is instance:
            model.current = None
        if _is_replaced(model, instance):
            model.fallback = instance.version
        model.unloads[why] += 1
        log.info("model leaves", extra={"event": "model_leaves", "model": model.spec.name, "reason": why})
        self._engines.leave(instance)

    # --- what becomes of engines --------------------------------------------------------------------------------------

    def became_ready(self, instance: Instance) -> None:
        """A version answers: it takes the requests, and the one before it leaves."""
        model = self._models[instance.version.spec.name]
        wanted, old = model.wanted, model.current
        model.ready(instance)
        if wanted is not None and wanted.instance is instance:
            self._conclude(wanted, None, instance)
        if old is not None:
            self._leave(model, old, "replaced")
        self._review()

    def failed_to_load(self, instance: Instance, error: EdgeError) -> None:
        """A version cannot be loaded. What is loaded stays."""
        model = self._models[instance.version.spec.name]
        if model.wanted is not None and model.wanted.instance is instance:
            self._give_up(model, model.wanted, error, instance.version.stamp)
        self._review()

    def crashed(self, instance: Instance, cause: str, lived_s: float) -> None:
        """An engine ended by itself. The next request for it brings it back."""
        model = self._models[instance.version.spec.name]
        if model.current is instance:
            model.current = None
        model.unloads["crashed"] += 1
        pause_s = self._pause_s(model) if lived_s < _STEADY_S else 0.0
        error = EngineDown(f"the engine of {model.spec.name!r} failed: {cause}; try again shortly")
        self._failed(model, Failure(error, time.monotonic() + pause_s, backoff_s=pause_s))
        self._review()

    def left(self) -> None:
        """Room is free."""
        self._review()

    def _give_up(self, model: Model, wanted: Wanted, error: EdgeError, stamp: str = "") -> None:
        """It cannot be loaded. What left for it comes back, if its file is still there."""
        pause_s = self._pause_s(model)
        until_s = time.monotonic() + (_SAME_FILE_AGAIN_S if stamp and not model.returns else pause_s)
        self._failed(model, Failure(error, until_s, stamp, pause_s))
        self._conclude(wanted, error)
        old, model.fallback = model.fallback, None
        if old is not None and model.current is None and not self._stopping and old.intact:
            log.warning("back to the version before", extra={"event": "model_returns", "model": model.spec.name})
            self._wanted(model, version=old).keep = True

    def _pause_s(self, model: Model) -> float:
        before_s = model.failure.backoff_s if model.failure is not None else 0.0
        return min(max(_FIRST_BACKOFF_S, before_s * 2), self.limits.backoff_max_s)

    @staticmethod
    def _failed(model: Model, failure: Failure) -> None:
        said = model.failure.error.message if model.failure is not None else ""
        model.failure = failure
        model.failures += 1
        if failure.error.message != said:  # the same once
            fields = {"event": "model_failed", "model": model.spec.name, "reason": failure.error.message}
            log.error("model cannot be used", extra=fields)


def _is_replaced(model: Model, instance: Instance) -> bool:
    return model.wanted is not None and model.wanted.replaces is instance
