"""A request in the engine, and the answers (sequences) that it asks for. Plain state: no clock, no native call."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.messages import FinishReason, Submit

if TYPE_CHECKING:
    from edge.engine.writer import AnswerWriter


class Phase(enum.Enum):
    """Where a sequence stands. FOLLOWING: its prompt is being computed by another answer of the same request."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    FOLLOWING = enum.auto()
    DECODE = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer. Written by the scheduler (phase, slot, cursor, generated) and by nobody else."""

    request: Request
    index: int
    writer: AnswerWriter
    phase: Phase = Phase.WAITING
    slot: int = -1
    cursor: int = 0
    """Prompt tokens whose cells are computed."""
    generated: int = 0
    last_token: int = -1
    finish: FinishReason | None = None

    @property
    def position(self) -> int:
        """Position of the next row: where `last_token` goes in decode."""
        return self.cursor + self.generated - 1

    @property
    def prompt_left(self) -> int:
        """Prompt tokens still to compute."""
        return len(self.request.tokens) - self.cursor


@dataclass(slots=True, eq=False)
class Request:
    """One Submit, tokenised and checked. Written by the loop (times) and the scheduler (through its sequences)."""

    work: Submit
    tokens: Items[int]
    limit: int
    """Most tokens that each answer may have: asked for, and held by the context."""
    received_s: float
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
