"""All models by their names and aliases, and how each of them stands."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from edge.engine.counts import Counts
from edge.engine.port import EngineStatus
from edge.errors import ModelNotFound
from edge.machine import resident_bytes
from edge.residency.book import Model
from edge.residency.engines import Engines
from edge.residency.model import LanguageEngine, LoadedEngine, ModelState, Spec


class Roster:
    """Made once from the settings; what it holds of each model changes through the pool."""

    def __init__(self, specs: Sequence[Spec], engines: Engines) -> None:
        self._models = {spec.name: Model(spec) for spec in specs}
        self._names = {name: spec.name for spec in specs for name in spec.names}
        self._engines = engines
        self.main = next(spec.name for spec in specs if spec.main)

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def __iter__(self) -> Iterator[Model]:
        """In the order of the settings, the main one first."""
        return iter(self._models.values())

    @property
    def several(self) -> bool:
        """There are further models than the main one."""
        return len(self._models) > 1

    def find(self, name: str | None) -> str | None:
        """The model of that name or alias (None: the main one); None if there is none."""
        return self.main if name is None else self._names.get(name)

    def require(self, name: str | None) -> str:
        """The model of a name or alias (None: the main one). Raises ModelNotFound."""
        found = self.find(name)
        if found is None:
            here = ", ".join(map(repr, self._models))
            said = f"the model {(name or '')[:100]!r} is not served here; this node serves {here}"
            raise ModelNotFound(said, param="model")
        return found

    def engine(self, name: str) -> LoadedEngine | None:
        """The engine that answers for a model, or else the one that is being started; None if there is neither."""
        shown = self._models[name].shown
        return shown.engine if shown is not None else None

    @property
    def main_engine(self) -> LanguageEngine | None:
        """The node's own model's, which is always one that writes text."""
        engine = self.engine(self.main)
        return engine if engine is not None and engine.kind == "language" else None

    def status(self, name: str) -> EngineStatus:
        """Where a model stands: as its engine says it, or in its place."""
        engine = self.engine(name)
        return engine.status if engine is not None else self._models[name].absence()

    def counts(self, name: str) -> Counts:
        """What a model's engines have counted since the node started, those that have ended included."""
        return self._engines.counts(name)

    def waits(self, name: str) -> bool:
        """Whether requests wait for this model to be loaded. Not for the node's own before it was ready the first time."""
        model = self._models[name]
        return model.was_ready or not model.spec.main

    def state(self, name: str) -> ModelState:
        """One model."""
        model, status = self._models[name], self.status(name)
        resident = resident_bytes(status.pid) if status.pid is not None else None
        return model.state(status, resident, self._engines.leaving(model.spec), time.monotonic())

    def states(self) -> Iterator[ModelState]:
        """All models."""
        return (self.state(name) for name in self._models)

    def unloads(self) -> Iterator[tuple[str, str, int]]:
        """(model, why, how often)."""
        return ((name, why, count) for name, model in self._models.items() for why, count in model.unloads.items())
