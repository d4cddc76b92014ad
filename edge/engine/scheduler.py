"""Which rows the next forward passes compute. Pure: no clock, no native call; the loop carries the plan out.

Continuous batching with chunked prefill (Sarathi-Serve, OSDI'24): in each step every decoding sequence gets one row,
and
waiting prompts share a bounded number of tokens, oldest first, so that no prompt stalls a running stream for longer
than one chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.slots import SlotPool

IDLE_CHUNKS = 4
"""With no stream to delay, a step may hold this many chunks; more would make the next arrival wait for it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, start+count) of a sequence. `last`: the prompt ends here, so its logits are wanted."""

    sequence: Sequence
    start: int
    count: int
    last: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: a pass over `decode` (one row each), then one pass per chunk."""

    decode: tuple[Sequence, ...]
    prefill: tuple[Chunk, ...]

    def __bool__(self) -> bool:
        return bool(self.decode or self.prefill)


class Scheduler:
    """Owner of the queue, of the slots and of every sequence's phase."""

    def __init__(self, *, slots: int, chunk_tokens: int, copies_sequences: bool) -> None:
        self.slots = SlotPool(slots)
        self._chunk_tokens = chunk_tokens
        self._copies_sequences = copies_sequences
        self._waiting: deque[Sequence] = deque()

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return self.slots.size - self.slots.free

    @property
    def idle(self) -> bool:
        """Nothing to compute."""
        return not self._waiting and self.running == 0

    def add(self, request: Request) -> None:
        """Queue a request's answers, behind those that wait already."""
        self._waiting.extend(request.sequences)

    def plan(self) -> Plan:
        """Seat waiting sequences, then choose the rows of one step."""
        self._seat()
        seated = list(self.slots.holders())
        decode = tuple([s for s in seated if s.phase is Phase.DECODE])
        if len(decode) == len(seated):
            return Plan(decode, ())
        budget = self._chunk_tokens if decode else self._chunk_tokens * IDLE_CHUNKS
        chunks: list[Chunk] = []
        for sequence in sorted((s for s in seated if s.phase is Phase.PREFILL), key=_age):
            count = min(sequence.prompt_left, budget)
            if count == 0:
                break
            chunks.append(Chunk(sequence, sequence.cursor, count, last=count == sequence.prompt_left))
            budget -= count
        return Plan(decode, tuple(chunks))

    def prefilled(self, chunk: Chunk) -> list[Sequence]:
        """Note that a chunk was computed. Returns the sequences that follow its sequence and now want a copy of its
        cells.

        After the last chunk the sequence and its followers are decoding; their first token comes from the chunk's
        logits.
        """
        sequence = chunk.sequence
        sequence.cursor += chunk.count
        if not chunk.last:
            return []
        sequence.phase = Phase.DECODE
        followers = [s for s in sequence.request.sequences if s.phase is Phase.FOLLOWING]
        for follower in followers:
            follower.cursor = sequence.cursor
            follower.phase = Phase.DECODE
        return followers

    def sampled(self, sequence: Sequence, token: int) -> None:
        """Note the token that a decoding sequence drew; the next step computes its row."""
        sequence.last_token = token
        sequence.generated += 1

    def end(self, sequence: Sequence) -> int | None:
        """Take a sequence out, whatever its phase. Returns the slot whose cells are to be freed, None if it held
        none."""
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        leads = sequence.phase is Phase.PREFILL
        sequence.phase = Phase.DONE
        if leads:
            self._elect(sequence.request.sequences)
        return self.slots.release(sequence)

    def _seat(self) -> None:
        while self._waiting:
            slot = self.slots.take(self._waiting[0])
            if slot is None:
                return
            sequence = self._waiting.popleft()
            sequence.slot = slot
            sequence.phase = Phase.FOLLOWING if self._has_leader(sequence) else Phase.PREFILL

    def _has_leader(self, sequence: Sequence) -> bool:
        return self._copies_sequences and any(s.phase is Phase.PREFILL for s in sequence.request.sequences)

    @staticmethod
    def _elect(sequences: Iterable[Sequence]) -> None:
        """The leader is gone before its prompt was done: its first follower computes the prompt instead."""
        for sequence in sequences:
            if sequence.phase is Phase.FOLLOWING:
                sequence.phase = Phase.PREFILL
                return


def _age(sequence: Sequence) -> tuple[float, int]:
    return sequence.request.received_s, sequence.index
