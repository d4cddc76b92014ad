"""What the front sees of an engine: the boundary behind which `edge.engine.client` (or a hand-written fake) stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from edge.engine.counts import Counts
from edge.errors import Declined
from edge.messages import Finished, FirstToken, ModelFacts, Offer, Prompt, Stats, Submit, Token, Tokenized

EnginePhase = Literal["loading", "ready", "down", "stopped"]

StreamEvent = Offer | FirstToken | Token | Finished


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Where the engine stands, for health, metrics and people. `reason` is a sentence, empty when ready."""

    phase: EnginePhase
    reason: str
    progress: float
    """Loading progress, 0..1."""
    restarts: int
    pid: int | None
    reduced: int = 0
    """How often the engine ran out of memory and went on with a smaller layout."""


class EngineStream(Protocol):
    """One request's events: an Offer, a FirstToken, Tokens, and last a Finished. A failure is raised as an
    EdgeError."""

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Yield events until and including Finished. Raises EdgeError once, then the stream is over."""
        ...

    def abort(self) -> None:
        """Give the request up. Idempotent; harmless after the end. Slot and cells are free within one step."""
        ...


class Engine(Protocol):
    """A language model's engine child as its owner in the front sees it."""

    kind: Literal["language"]

    @property
    def status(self) -> EngineStatus:
        """Current phase and why."""
        ...

    @property
    def facts(self) -> ModelFacts | None:
        """Facts of the loaded model; kept while the child restarts, None before the first load."""
        ...

    @property
    def stats(self) -> Stats | None:
        """Last statistics, None while no child is ready."""
        ...

    @property
    def patience_s(self) -> float:
        """How long it may be silent before it is replaced. A large model on a slow box takes that long for honest work."""
        ...

    @property
    def counts(self) -> Counts:
        """Totals of all children that it had."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests submitted and without terminal reply."""
        ...

    @property
    def full(self) -> Declined | None:
        """Why the engine declined a request for want of slots, as long as no answer has ended since: it would decline the
        next one too. None if it is not known to be full."""
        ...

    def require_room(self) -> None:
        """Raises EngineDown, ModelLoading or Overloaded if a request submitted now would be refused."""
        ...

    def submit(self, work: Submit) -> EngineStream:
        """Start a request; `work.request_id` is ignored and assigned. Raises EngineDown, ModelLoading or Overloaded."""
        ...

    async def tokenize(self, prompt: Prompt, *, add_special: bool = True, pieces: bool = False) -> Tokenized:
        """Tokens of a prompt, and their bytes if `pieces`. Raises EdgeError."""
        ...

    async def detokenize(self, tokens: list[int]) -> str:
        """Text of tokens. Raises EdgeError."""
        ...
