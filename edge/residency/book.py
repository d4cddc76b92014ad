"""What the pool keeps of each model: its versions in memory, who waits for it, and why it failed. Written by the pool alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edge.engine.port import EngineStatus
from edge.errors import EdgeError, from_code
from edge.residency.model import Fitted, LoadedEngine, ModelState, Spec, Standing, Unloaded, Version
from edge.residency.policy import Resident, State, Wish


@dataclass(slots=True, eq=False)
class Instance:
    """One loaded version."""

    id: int
    version: Version
    engine: LoadedEngine
    bytes: int
    began_s: float
    last_use_s: float
    state: State = "loading"
    leases: int = 0
    """Requests that were let in and are not in the engine yet, and calls that it does not count."""
    settled_s: float = 0.0
    ending: bool = False

    @property
    def busy(self) -> bool:
        """It answers somebody, or is about to."""
        return self.leases > 0 or self.engine.in_flight > 0

    @property
    def resident(self) -> Resident:
        """As the policy sees it."""
        spec = self.version.spec
        return Resident(
            self.id, spec.name, self.bytes, self.state, self.busy, spec.fixed, self.last_use_s, self.settled_s
        )


class Lease:
    """The right to use an engine: while it is held, the engine is not stopped. A context manager; given back once the request is
    in the engine, which counts it from there."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._held = True
        instance.leases += 1

    @property
    def engine(self) -> LoadedEngine:
        """The engine."""
        return self._instance.engine

    def release(self) -> None:
        """Give it back. Idempotent."""
        if self._held:
            self._held = False
            self._instance.leases -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded or kept. Nothing is tried before `until_s`; the same file, if it is to blame (`stamp`), not
    before `same_until_s`. Times are monotonic."""

    error: EdgeError
    until_s: float
    backoff_s: float = 0.0
    stamp: str = ""
    same_until_s: float = 0.0


@dataclass(slots=True, eq=False)
class Wanted:
    """A place in the line: a model that is to be loaded, and who waits for it."""

    model: Model
    keep: bool = False
    """It stays in the line although nobody waits: the fleet answered for it, or an operator wants it."""
    forced: bool = False
    """An operator asks: that the same file failed before does not count."""
    version: Version | None = None
    fitted: Fitted | None = None
    replaces: Instance | None = None
    instance: Instance | None = None
    """Once it is its turn."""
    waiters: list[asyncio.Future[Lease]] = field(default_factory=list)
    """Requests."""
    watchers: list[asyncio.Future[None]] = field(default_factory=list)
    """Operators, who want to know how it ends."""

    @property
    def wish(self) -> Wish:
        """As the policy sees it, once its memory is planned."""
        assert self.fitted is not None
        return Wish(self.model.spec.name, self.fitted.bytes, self.replaces.id if self.replaces is not None else None)


class Model:
    """What the pool keeps of one name."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.current: Instance | None = None
        """The version that answers, or whose last answers run because its room is wanted."""
        self.wanted: Wanted | None = None
        self.failure: Failure | None = None
        self.fallback: Version | None = None
        """What left for a version that is not ready yet: it is loaded again if that one fails."""
        self.found: Version | None = None
        self.was_ready = False
        self.loads = self.failures = 0
        self.unloads: Counter[Unloaded] = Counter()

    @property
    def serving(self) -> Instance | None:
        """The version that takes requests."""
        return self.current if self.current is not None and self.current.state == "serving" else None

    @property
    def shown(self) -> Instance | None:
        """What stands for the model: the version that answers, or else the one that is being loaded."""
        return self.current or (self.wanted.instance if self.wanted is not None else None)

    @property
    def returns(self) -> bool:
        """It is loaded again without being asked for."""
        return self.spec.fixed and self.was_ready

    def hopeless(self, now_s: float) -> EdgeError | None:
        """Why it is of no use to try now."""
        return self.failure.error if self.failure is not None and now_s < self.failure.until_s else None

    def tried(self, version: Version, now_s: float) -> EdgeError | None:
        """What happened when this very file was tried lately; None if it was not."""
        failure = self.failure
        if failure is None or failure.stamp != version.stamp or now_s >= failure.same_until_s:
            return None
        return failure.error

    def ready(self, instance: Instance) -> None:
        """It answers."""
        self.current, self.fallback, self.was_ready = instance, None, True
        self.loads += 1
        if self.failure is not None and self.failure.stamp in ("", instance.version.stamp):
            self.failure = None

    def absence(self) -> EngineStatus:
        """Why there is no engine."""
        if self.wanted is not None:
            said = "looking at the file" if self.wanted.fitted is None else "waiting for room"
            return EngineStatus("loading", said, 0.0, 0, None)
        if self.failure is not None:
            return EngineStatus("down", self.failure.error.message, 0.0, 0, None)
        return EngineStatus("stopped", "not loaded", 0.0, 0, None)

    def state(self, status: EngineStatus, resident: int | None, leaving: list[Instance], now_s: float) -> ModelState:
        """As people and programs see it."""
        shown = self.shown
        held = [*([shown] if shown is not None else []), *leaving]
        version = shown.version if shown is not None else self.found
        return ModelState(
            spec=self.spec,
            standing=self._standing(status, leaving),
            reason=status.reason,
            progress=status.progress if shown is not None else 0.0,
            facts=shown.engine.facts if shown is not None else None,
            version=version,
            bytes_planned=sum(i.bytes for i in held) if held else None,
            bytes_resident=resident,
            in_flight=sum(i.engine.in_flight for i in held),
            waiting=len(self.wanted.waiters) if self.wanted is not None else 0,
            idle_s=max(0.0, now_s - shown.last_use_s) if shown is not None and not shown.busy else None,
            replacing=self.serving is not None and self.wanted is not None,
            loads=self.loads,
            unloads=self.unloads.total(),
            failures=self.failures,
        )

    def _standing(self, status: EngineStatus, leaving: list[Instance]) -> Standing:
        if self.current is not None:
            if self.current.state != "serving":
                return "draining"
            return "ready" if status.phase == "ready" else "restarting"
        if self.wanted is not None:
            return "loading" if self.wanted.instance is not None else "waiting"
        if leaving:
            return "draining"
        return "failed" if self.failure is not None else "unloaded"


def again(error: EdgeError) -> EdgeError:
    """The same error as a new object: one that is raised again and again grows with every time."""
    fresh = from_code(error.code or "", error.message, param=error.param)
    fresh.retry_after_s = error.retry_after_s
    return fresh
