"""A request in the engine, and the answers (sequences) that it asks for. Plain state: no clock, no native call."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.messages import FinishReason, Submit

if TYPE_CHECKING:
    from edge.engine.prefix import Prefix
    from edge.engine.writer import AnswerWriter


class Phase(enum.Enum):
    """Where a sequence stands. FOLLOWING: it holds a slot, and another answer computes (part of) its prompt."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    FOLLOWING = enum.auto()
    DECODE = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True, eq=False, repr=False)  # an error that shows one must not show a prompt
class Sequence:
    """One answer. Written by the scheduler (phase, slot, cursor, generated, times) and by nobody else."""

    request: Request
    index: int
    writer: AnswerWriter
    phase: Phase = Phase.WAITING
    slot: int = -1
    cursor: int = 0
    """Prompt tokens whose cells are computed."""
    generated: int = 0
    last_token: int = -1
    emitted_s: float = 0.0
    """When its last token was drawn."""
    prefix: Prefix | None = None
    """The cache's record of its slot while its prompt is computed and its answer runs."""
    awaits: Prefix | None = None
    """FOLLOWING: the prompt of another request that is being computed and begins alike; None: of a sibling."""
    awaited_tokens: int = 0
    finish: FinishReason | None = None

    @property
    def position(self) -> int:
        """Position of the next row: where `last_token` goes in decode."""
        return self.cursor + self.generated - 1

    @property
    def cells(self) -> int:
        """Cells that it holds."""
        return self.cursor + max(0, self.generated - 1)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens still to compute."""
        return len(self.request.tokens) - self.cursor


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One Submit, tokenised and checked. Written by the loop (times) and the scheduler (through its sequences)."""

    work: Submit
    tokens: Items[int]
    limit: int
    """Most tokens that each answer may have: asked for, and held by the context."""
    received_s: float
    """When the child read it."""
    arrived_s: float
    """When the front had read it: the promise counts from here."""
    admitted: bool = False
    """Both targets will be met, so it goes before those of which that is not certain. Decided once, on arrival."""
    prompt_s: float = 0.0
    """What its prompt takes where nothing of it is known."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed for it."""
    sequences: list[Sequence] = field(default_factory=list)
    started_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    @property
    def id(self) -> int:
        """The front's number for it."""
        return self.work.request_id

    @property
    def open(self) -> bool:
        """Whether some answer is not done yet."""
        return any(s.phase is not Phase.DONE for s in self.sequences)
