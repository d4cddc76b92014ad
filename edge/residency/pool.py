"""Which engine a request gets, and the line of models that are to be loaded. The one owner of both; lives on the event loop.

`edge.residency.policy` decides who leaves and who comes; `edge.residency.engines` has the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edge.errors import CannotUnload, DoesNotFit, EdgeError, EngineDown, ModelLoading, Overloaded
from edge.residency.book import Failure, Instance, Lease, Model, Wanted, again
from edge.residency.engines import Engines, as_edge_error
from edge.residency.line import Line, end_of
from edge.residency.model import Planner, Spec, StartEngine, Unloaded, Version
from edge.residency.policy import decide
from edge.residency.roster import Roster

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
        self._engines = Engines(start, self)
        self._line = Line()
        self.roster = Roster(specs, self._engines)
        self._stopping = False

    @property
    def planned_bytes(self) -> int:
        """Room that is taken."""
        return self._engines.bytes

    # --- requests -----------------------------------------------------------------------------------------------------

    def lease(self, name: str) -> Lease:
        """The engine that takes requests for a model now. Raises ModelLoading if there is none now, or why there will be none."""
        model = self.roster[name]
        if (instance := model.serving) is not None:
            instance.last_use_s = time.monotonic()
            return Lease(instance)
        self._require_hope(model)
        if self.roster.waits(name):
            raise ModelLoading(f"the model {name!r} is not loaded at present; it will be, try again shortly")
        status = self.roster.status(name)
        if status.phase == "loading":
            raise ModelLoading(f"the model is being loaded ({status.progress:.0%}); try again shortly")
        raise EngineDown(f"the engine is {status.phase}: {status.reason}")

    def want(self, name: str) -> None:
        """Load a model although nobody waits here. Nothing happens if it is loaded, or about to be, or known not to work."""
        model = self.roster[name]
        if model.serving is None and model.hopeless(time.monotonic()) is None and not self._stopping:
            self._wanted(model).keep = True

    async def acquire(self, name: str, patience_s: float) -> Lease:
        """Wait until a model answers. Raises ModelLoading when that takes too long, Overloaded when too many wait, or why it
        cannot be loaded."""
        model = self.roster[name]
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
            if (
                lease := _arrived(future)
            ) is not None:  # at the same moment; a lease that nobody has would never be given back
                return lease
            wanted.keep = True  # who comes back later finds it loaded, however busy the others are
            raise ModelLoading(
                f"the model {name!r} was not loaded within {patience_s:g} s (admission.load_wait_s); try again later"
            ) from None
        except asyncio.CancelledError:
            if (lease := _arrived(future)) is not None:
                lease.release()
            raise
        finally:
            if future in wanted.waiters:
                wanted.waiters.remove(future)
            if self._line.forget(wanted):
                self._review()

    def _require_hope(self, model: Model) -> None:
        """Raises why it is of no use to wait."""
        if model.wanted is None and (error := model.hopeless(time.monotonic())) is not None:
            raise again(error)

    # --- operators ----------------------------------------------------------------------------------------------------

    async def load(self, name: str, *, wait: bool = True) -> None:
        """Load a model, or its new version if its file has changed. Raises why it cannot be."""
        model = self.roster[name]
        try:
            version = await self._planner.find(model.spec)
        except EdgeError as error:
            self._failed(model, Failure(error, time.monotonic()))
            raise
        coming = model.wanted
        if coming is not None and coming.version is not None and coming.version.stamp != version.stamp:
            with contextlib.suppress(EdgeError):  # what is being loaded is there no more
                await end_of(coming)
            coming = model.wanted
        if coming is None:
            if model.serving is not None and model.serving.version.stamp == version.stamp:
                return
            changed = model.current is not None and model.current.version.stamp != version.stamp
            coming = self._wanted(model, replaces=model.current if changed else None)
        coming.keep = coming.forced = True
        if wait:
            await end_of(coming)

    async def unload(self, name: str, *, wait: bool = True) -> None:
        """Unload a model once its last answer has ended. Raises CannotUnload if it stays loaded, or is being loaded."""
        model = self.roster[name]
        if model.spec.fixed:
            why = "is the node's main model" if model.spec.main else f"is pinned (models.{name}.pinned)"
            raise CannotUnload(f"the model {name!r} {why}, so it stays loaded")
        if model.wanted is not None:
            if model.wanted.instance is not None:
                raise CannotUnload(f"the model {name!r} is being loaded; unload it when it is ready")
            self._line.conclude(model.wanted, ModelLoading(f"the model {name!r} was unloaded while it waited for room"))
        if (instance := model.current) is not None:
            self._leave(model, instance, "asked")
        while wait and self._engines.leaving(model.spec):
            await asyncio.sleep(_BUSY_TICK_S)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load the main model; returns at once. `wait_main` waits for the outcome."""
        self._wanted(self.roster[self.roster.main]).keep = True
        self._engines.spawn(self._keep_watch(), "pool-watch")

    async def wait_main(self) -> None:
        """Wait until the main model answers for the first time. Raises why it cannot."""
        model = self.roster[self.roster.main]
        if model.wanted is not None:
            await end_of(model.wanted)
        elif model.failure is not None and model.serving is None:
            raise again(model.failure.error)

    async def look_at_others(self) -> None:
        """Say which further models cannot be used, and begin to load those that are to be loaded at start."""
        for model in self.roster:
            if model.spec.main:
                continue
            try:
                model.found = await self._planner.find(model.spec)
            except EdgeError as error:
                self._failed(model, Failure(error, time.monotonic()))
                continue
            if model.spec.preload:
                self.want(model.spec.name)

    async def stop(self) -> None:
        """End all engines. Whoever waits is told so."""
        self._stopping = True
        self._line.disband(EngineDown("the node is stopping"))
        await self._engines.stop()

    def kill(self) -> None:
        """A stop under way waits no longer for what engines still have to write."""
        for instance in self._engines.all:
            if (pid := instance.engine.status.pid) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def _keep_watch(self) -> None:
        """Idle time-outs, last answers that end, and what comes with time alone."""
        while True:
            try:
                self._look_around(time.monotonic())
            except Exception as error:  # the watch goes on, whatever happens
                log.error("the pool of models failed", extra={"event": "bug"}, exc_info=error)
            await asyncio.sleep(_BUSY_TICK_S if self._line or self._engines.restless else _TICK_S)

    def _look_around(self, now_s: float) -> None:
        for model in self.roster:
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
        """The model's place in the line; a new one if it has none."""
        if (wanted := model.wanted) is None:
            wanted = self._line.add(model, replaces=replaces, version=version)
            self._engines.spawn(self._prepare(model, wanted), f"prepare-{model.spec.name}")
        return wanted

    async def _prepare(self, model: Model, wanted: Wanted) -> None:
        """Look at the file and plan its memory. Then it is its turn when there is room."""
        try:
            version = wanted.version or await self._planner.find(model.spec)
            model.found = wanted.version = version
            known = model.tried(version, time.monotonic()) if not wanted.forced and not model.spec.main else None
            if known is not None:
                self._line.conclude(wanted, known)
            else:
                wanted.fitted = await self._planner.fit(version, self._room_for(wanted))
        except Exception as error:
            if model.wanted is wanted:
                self._give_up(model, wanted, as_edge_error(error))
        self._review()

    def _review(self) -> None:
        """Decide anew and carry it out."""
        if self._stopping:
            return
        for wanted in self._line.ripe().values():
            self._meet(wanted)
        ripe = self._line.ripe()
        residents = [instance.resident for instance in self._engines.all]
        steps = decide(time.monotonic(), self.limits.room_bytes, residents, [w.wish for w in ripe.values()])
        for instance in self._engines.all.copy():
            model = self.roster[instance.version.spec.name]
            if instance.id in steps.evict:
                self._leave(model, instance, "replaced" if _is_replaced(model, instance) else "room")
            elif instance.id in steps.drain:
                instance.state = "draining"
            elif instance.state == "draining":  # nobody wants its room any more
                instance.state = "serving"
                if (again_wanted := ripe.get(model.spec.name)) is not None:
                    self._meet(again_wanted)
        for name in steps.impossible:
            fitted = ripe[name].fitted
            assert fitted is not None
            error = DoesNotFit.of(name, fitted.bytes, self._room_for(ripe[name]))
            self._give_up(self.roster[name], ripe[name], error)
        for name in steps.load:
            wanted = ripe[name]
            assert wanted.version is not None and wanted.fitted is not None
            wanted.instance = self._engines.begin(wanted.version, wanted.fitted)

    def _meet(self, wanted: Wanted) -> None:
        """If the model serves again already, those who wait are served; if in another version, that is what is replaced."""
        here = wanted.model.serving
        if here is None or here is wanted.replaces or wanted.version is None:
            return
        if here.version.stamp == wanted.version.stamp:
            self._line.conclude(wanted, None, here)
        else:
            wanted.replaces = here

    def _room_for(self, wanted: Wanted) -> int:
        """What it could have if everything left that may."""
        return self.limits.room_bytes - self._engines.fixed_bytes(without=wanted.replaces)

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
        model = self.roster[instance.version.spec.name]
        wanted, old = model.wanted, model.current
        model.ready(instance)
        if wanted is not None and wanted.instance is instance:
            self._line.conclude(wanted, None, instance)
        if old is not None:
            self._leave(model, old, "replaced")
        self._review()

    def failed_to_load(self, instance: Instance, error: EdgeError) -> None:
        """A version cannot be loaded. What is loaded stays."""
        model = self.roster[instance.version.spec.name]
        if model.wanted is not None and model.wanted.instance is instance:
            self._give_up(model, model.wanted, error, instance.version.stamp)
        self._review()

    def crashed(self, instance: Instance, cause: str, lived_s: float) -> None:
        """An engine ended by itself. The next request for it brings it back."""
        model = self.roster[instance.version.spec.name]
        if model.current is instance:
            model.current = None
        model.unloads["crashed"] += 1
        pause_s = self._pause_s(model) if lived_s < _STEADY_S else 0.0
        error = EngineDown(f"the engine of {model.spec.name!r} failed: {cause}; try again shortly")
        self._failed(model, Failure(error, time.monotonic() + pause_s, pause_s))
        self._review()

    def left(self) -> None:
        """Room is free."""
        self._review()

    def _give_up(self, model: Model, wanted: Wanted, error: EdgeError, stamp: str = "") -> None:
        """It cannot be loaded. What left for it comes back, if its file is still there."""
        pause_s, now_s = self._pause_s(model), time.monotonic()
        self._failed(model, Failure(error, now_s + pause_s, pause_s, stamp, now_s + _SAME_FILE_AGAIN_S))
        self._line.conclude(wanted, error)
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


def _arrived(future: asyncio.Future[Lease]) -> Lease | None:
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()
