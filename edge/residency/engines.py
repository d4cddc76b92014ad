"""Owner of the engines' processes: brought up, watched, and ended once nobody needs them any more."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from edge.engine.counts import Counts
from edge.errors import EdgeError, EngineFault
from edge.machine import resident_bytes
from edge.residency.book import Instance
from edge.residency.model import Fitted, Spec, StartEngine, Version

log = logging.getLogger(__name__)

_LONGEST_SETTLE_S = 30.0
_ENDING = "end-engine"


class Keeper(Protocol):
    """Who is told what becomes of an engine."""

    def became_ready(self, instance: Instance) -> None:
        """It answers."""
        ...

    def failed_to_load(self, instance: Instance, error: EdgeError) -> None:
        """It will not; its memory is free."""
        ...

    def crashed(self, instance: Instance, cause: str, lived_s: float) -> None:
        """It has ended by itself; its memory is free."""
        ...

    def left(self) -> None:
        """One that was told to leave has ended."""
        ...


class Engines:
    """Every instance there is, from before its process starts until after it has ended."""

    def __init__(self, start: StartEngine, keeper: Keeper) -> None:
        self._start, self._keeper = start, keeper
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone: dict[str, Counts] = {}
        """What was counted by those that have ended, by model."""
        self.all: list[Instance] = []

    @property
    def bytes(self) -> int:
        """Room that they take."""
        return sum(instance.bytes for instance in self.all)

    def leaving(self, spec: Spec) -> list[Instance]:
        """Versions of a model that are to end, and have not yet."""
        return [i for i in self.all if i.version.spec is spec and i.state == "leaving"]

    def counts(self, model: str) -> Counts:
        """Totals of all engines that a model had since the node started."""
        live = (i.engine.counts for i in self.all if i.version.spec.name == model)
        return sum(live, self._gone.get(model, Counts()))

    def _ended(self, instance: Instance) -> None:
        """Its process has: it is none any more, what it counted stays."""
        name = instance.version.spec.name
        self._gone[name] = self._gone.get(name, Counts()) + instance.engine.counts
        self.all.remove(instance)

    def fixed_bytes(self, without: Instance | None) -> int:
        """Room of those that leave for nobody, one of them left out; of two versions of a model one leaves before long."""
        largest: dict[str, int] = {}
        for i in self.all:
            if i.version.spec.fixed and i.state != "leaving" and i is not without:
                name = i.version.spec.name
                largest[name] = max(largest.get(name, 0), i.bytes)
        return sum(largest.values())

    @property
    def restless(self) -> bool:
        """Some are about to end."""
        return any(i.state in ("draining", "leaving") for i in self.all)

    def begin(self, version: Version, fitted: Fitted) -> Instance:
        """Start an engine. The keeper hears how it goes."""
        now_s = time.monotonic()
        engine = self._start(fitted, version.spec.main)
        instance = Instance(next(self._numbers), version, engine, fitted.bytes, began_s=now_s, last_use_s=now_s)
        self.all.append(instance)
        self.spawn(self._live(instance), f"engine-{version.spec.name}")
        return instance

    def leave(self, instance: Instance) -> None:
        """It takes no more requests, and ends when its last answer has ended."""
        instance.state = "leaving"
        self.end_idle()

    def end_idle(self) -> None:
        """End those that are to leave and answer nobody any more."""
        for instance in self.all:
            if instance.state == "leaving" and not instance.busy and not instance.ending:
                instance.ending = True
                self.spawn(self._end(instance), _ENDING)

    async def stop(self) -> None:
        """End all at the same time."""
        ending = {task for task in self._tasks if task.get_name() == _ENDING}  # a stop that is cancelled stops nothing
        for task in self._tasks - ending:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(instance.engine.stop() for instance in self.all), return_exceptions=True)
        for instance in tuple(self.all):
            self._ended(instance)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task that ends with the pool."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)  # the loop itself keeps no reference to a task
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the pool of models failed", extra={"event": "bug"}, exc_info=error)

    async def _live(self, instance: Instance) -> None:
        engine, name = instance.engine, instance.version.spec.name
        try:
            await engine.start()
            await engine.wait_ready()
        except Exception as caught:
            error = as_edge_error(caught)
            await engine.stop()
            self._ended(instance)
            self._keeper.failed_to_load(instance, error)
            return
        ready_s = time.monotonic()
        if (pid := engine.status.pid) is not None:  # what was foreseen may be too little
            instance.bytes = max(instance.bytes, resident_bytes(pid))
        instance.state, instance.last_use_s = "serving", ready_s
        instance.settled_s = ready_s + min(ready_s - instance.began_s, _LONGEST_SETTLE_S)
        log.info("model loaded", extra={"event": "model_loaded", "model": name, "bytes": instance.bytes})
        self._keeper.became_ready(instance)
        if instance.version.spec.main:
            return  # it is started again by its client, in the room that it has
        cause = await engine.ended()
        if not instance.ending:
            instance.ending = True
            await engine.stop()
            self._ended(instance)
            self._keeper.crashed(instance, cause, time.monotonic() - ready_s)

    async def _end(self, instance: Instance) -> None:
        await instance.engine.stop()
        self._ended(instance)
        self._keeper.left()


def as_edge_error(error: Exception) -> EdgeError:
    """An error of our own becomes one that clients can be told: nobody waits for ever because of a bug."""
    if isinstance(error, EdgeError):
        return error
    log.error("the pool of models failed", extra={"event": "bug"}, exc_info=error)
    return EngineFault("the node met an error of its own while it loaded the model; its log says more")
