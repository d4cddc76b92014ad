"""What the pool knows of a model: as it is configured, as a file, and as a loaded version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from edge.engine.port import Engine
from edge.messages import Load, ModelFacts
from edge.onnx.client import TensorClient
from edge.onnx.messages import LoadTensors, TensorFacts
from edge.registry.resolve import Found

Standing = Literal["ready", "restarting", "loading", "waiting", "draining", "unloaded", "failed"]
"""Of a model: it answers; its engine died and starts anew; it is being loaded; it waits for room; its last answers run; it is not
in memory; it cannot be used, or could not when it was last tried."""
Unloaded = Literal["asked", "idle", "room", "replaced", "crashed"]
"""Why one left."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A model as it is configured. `source`: a manifest's name or a path. 0 in `slots` and `context_tokens`: found out."""

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    main: bool = False
    """The node's own: loaded at start, the one that may promise something, never made to leave for another."""
    pinned: bool = False
    preload: bool = False
    idle_s: float = 0.0
    """Unloaded after so long without a request; 0: never."""
    slots: int = 0
    context_tokens: int = 0

    @property
    def fixed(self) -> bool:
        """It never leaves for another model."""
        return self.main or self.pinned

    @property
    def names(self) -> tuple[str, ...]:
        """All that clients may call it."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Version:
    """The file behind a model's name at one time. `stamp` is another when the file is another."""

    spec: Spec
    model: Found
    stamp: str
    modified: int
    """Unix time of the file."""

    @property
    def intact(self) -> bool:
        """Its file is still what it was."""
        try:
            return stamp_of(self.model) == self.stamp
        except OSError:
            return False


def stamp_of(model: Found) -> str:
    """Tells a file from what lay there before, without reading it. Raises OSError."""
    found = model.path.stat()
    known = model.manifest.sha256 if model.manifest is not None else ""
    return f"{model.path} {found.st_size} {found.st_mtime_ns} {found.st_ino} {known}"


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a version is to be loaded, and the most memory that it will take then."""

    load: Load | LoadTensors
    bytes: int
    smaller: Callable[[], Awaitable[Load | None]] | None = None
    """Gives a load that takes less, each time that it is called; None when there is none."""


class Planner(Protocol):
    """From a name to what is loaded."""

    async def find(self, spec: Spec) -> Version:
        """The file as it is now. Raises ModelUnusable, ConfigurationError."""
        ...

    async def fit(self, version: Version, room_bytes: int) -> Fitted:
        """How to load it in at most `room_bytes`. Raises DoesNotFit."""
        ...


class LanguageEngine(Engine, Protocol):
    """A language model's engine as its owner handles it."""

    async def start(self) -> None:
        """Begin to load; returns at once."""
        ...

    async def wait_ready(self) -> ModelFacts:
        """Raises ModelUnusable."""
        ...

    async def ended(self) -> str:
        """Wait until the engine is down for good; returns why. One that restarts itself never is."""
        ...

    async def stop(self) -> None:
        """End it. Its memory is free afterwards."""
        ...


LoadedEngine = LanguageEngine | TensorClient

StartEngine = Callable[[Fitted, bool], LoadedEngine]
"""(what to load, whether it restarts itself) -> an engine that is not started yet."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model as people and programs see it. Sizes in bytes; None where nothing is loaded."""

    spec: Spec
    standing: Standing
    reason: str
    progress: float
    facts: ModelFacts | TensorFacts | None
    version: Version | None
    """The one that is loaded, else the one that was last looked at."""
    bytes_planned: int | None
    bytes_resident: int | None
    in_flight: int
    waiting: int
    """Requests that wait for it to be loaded."""
    idle_s: float | None
    """Since its last request; None while it has some."""
    replacing: bool
    """A new version is on its way while the old one answers."""
    loads: int
    unloads: int
    failures: int
