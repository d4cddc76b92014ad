"""One model as one request finds it: its name, the engine that answers, and how it writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self

from edge.api.translate import Dialect
from edge.engine.port import Engine
from edge.messages import ModelFacts
from edge.onnx.client import TensorClient
from edge.onnx.messages import TensorFacts
from edge.residency import Lease

_DIALECTS = 32


@dataclass(frozen=True, slots=True)
class Served:
    """A version of a model that is not unloaded while this is held. A context manager: left once the work is in the engine."""

    name: str
    main: bool
    """The node's own model, the one whose times are promised."""
    lease: Lease
    engine: Engine
    """Who answers."""
    facts: ModelFacts

    @property
    def dialect(self) -> Dialect:
        """How the model writes."""
        return _dialect(self.facts.chat_template)

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls `system_fingerprint`."""
        return f"fp_{self.facts.digest}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lease.release()


@dataclass(frozen=True, slots=True)
class ServedTensors:
    """The same of a model that answers with numbers. Left once it has answered."""

    name: str
    lease: Lease
    engine: TensorClient
    facts: TensorFacts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lease.release()


@lru_cache(maxsize=_DIALECTS)
def _dialect(template: str) -> Dialect:
    """Found out once for each template."""
    return Dialect.of(template)
