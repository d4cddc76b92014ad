"""Who gets which slot, and which known cells it begins with. Pure: the loop moves the cells and reports back.

A slot whose answer has ended keeps its cells until somebody needs it. Whoever comes next takes the slot whose content is worth
least, or the one that holds the beginning of its own prompt. A beginning that another answer is computing is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from edge.engine.backlog import Backlog
from edge.engine.line import Line
from edge.engine.prefix import Match, Prefix, PrefixCache
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.slots import SlotPool
from edge.engine.steps import StepModel
from edge.messages import Tier

_KEPT_TOKENS = 64
"""An idle slot's prefix with more tokens of its own than this is worth a copy before it is overwritten."""
_USUAL_TOKENS = 128
_LATE_SHARE = 4
"""One slot in so many stays free for requests that can be admitted, and one in so many at most is taken by others while such
run."""

_PASSED_BY: dict[Tier, frozenset[Tier]] = {
    "priority": frozenset(("default", "flex")),
    "default": frozenset(("flex",)),
    "flex": frozenset(),
}
"""Whom a late request overtakes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A sequence gets a slot, or what it waited for is ready. The loop makes it so and reports to `placed`."""

    sequence: Sequence
    slot: int
    how: Literal["cold", "stay", "copy"]
    """cold: nothing is known. stay: the slot's own cells are the beginning. copy: another prefix's cells are."""
    source: Prefix | None = None
    tokens: int = 0
    """How many cells are taken over."""
    save_resident: bool = False
    """What lies in the slot is worth a copy first."""


class Seating:
    """Owner of the queue and of the slots. `reserves`: some slots are kept free for requests that can be admitted."""

    def __init__(
        self,
        *,
        slots: int,
        steps: StepModel,
        cache: PrefixCache,
        line: Line,
        chunk_tokens: int,
        copies_sequences: bool,
        reserves: bool,
        cell_bytes: int,
    ) -> None:
        self.slots = SlotPool(slots)
        self.cache = cache
        self._steps = steps
        self._line = line
        self._chunk_tokens = chunk_tokens
        self._copies_sequences = copies_sequences
        self.reserves = reserves
        self._cell_bytes = cell_bytes
        self._waiting: deque[Sequence] = deque()
        self._backlog = Backlog()
        self.held: Sequence | None = None
        """Whose known cells there was no time to bring back, when a placement was last asked for."""

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return self.slots.size - self.slots.free

    def present(self) -> Iterator[Sequence]:
        """All sequences: those that wait, then those with a slot."""
        yield from self._waiting
        yield from self.slots.holders()

    def in_phase(self, phase: Phase) -> list[Sequence]:
        """Sequences with a slot that stand there."""
        return [s for s in self.slots.holders() if s.phase is phase]

    def queue(self, request: Request) -> None:
        """Its answers wait for slots from now on."""
        request.prompt_s = self._recompute_s(len(request.tokens))
        self._waiting.extend(request.sequences)

    def match(self, request: Request) -> Match | None:
        """What is known of a request's prompt."""
        return self.cache.match(request.tokens, request.work.key) if request.work.cache else None

    def prompt_left(self, sequence: Sequence) -> tuple[int, int]:
        """(prompt tokens still to compute for a sequence that does not decode yet, tokens before them)."""
        if sequence.phase is Phase.PREFILL:
            cursor = sequence.cursor
        elif sequence.awaits is not None:
            cursor = sequence.awaited_tokens
        else:
            match = self.match(sequence.request)
            cursor = match.usable if match is not None else 0
        return len(sequence.request.tokens) - cursor, cursor

    def wait_s(self, token_s: float, tier: Tier = "default") -> float:
        """How long one more answer that is not admitted would wait for a slot. What those ahead of it ask for, at `token_s` a
        token, is the guess until it was seen how fast they go."""
        passed = _PASSED_BY[tier]
        ahead = [s for s in self._waiting if not s.request.admitted and s.request.work.tier not in passed]
        if not ahead and self._may_seat_late(self.slots.free):
            return 0.0
        late = [s for s in self.slots.holders() if not s.request.admitted]
        work_s = sum(s.request.prompt_s + _expected_tokens(s) * token_s for s in ahead)
        work_s += sum((_expected_tokens(s) - s.generated) * token_s for s in late or self.slots.holders())
        seats = max(1, len(late))
        return self._backlog.wait_s(len(ahead) + 1, work_s / seats / (len(ahead) + 1))

    # --- seating ------------------------------------------------------------------------------------------------------

    def next_placement(self, now_s: float, spare_s: Callable[[], float]) -> Placement | None:
        """The next sequence to get a slot or the cells it waits for; None if there is none now. Ask again after `placed`.
        One that was not admitted waits (`held`) while its cells take longer to bring than `spare_s`, which is asked for then
        only: most passes place nobody."""
        self.held = None
        for sequence in self.slots.holders():
            if sequence.phase is Phase.FOLLOWING and sequence.awaits is not None and self._is_ready(sequence):
                placement = self._placement(sequence, self.match(sequence.request), [sequence.slot])
                if not self._is_held(placement, spare_s):
                    return placement
        free = self.slots.free_slots()
        while free and (next_one := self._next_in_line(now_s, len(free))) is not None:
            left = self.waiting - 1
            seat = self._seat(next_one, free)
            if seat is not None and self._is_held(seat, spare_s):
                return None
            if not next_one.request.admitted:
                self._backlog.seated(now_s, left=left)
            if seat is not None:
                return seat
            free = self.slots.free_slots()
        return None

    def _is_held(self, placement: Placement, spare_s: Callable[[], float]) -> bool:
        if placement.sequence.request.admitted or self.copy_s(placement) <= spare_s():
            return False
        self.held = placement.sequence
        return True

    def copy_s(self, placement: Placement) -> float:
        """Time to bring the cells of a placement; of a prefix that has no copy outside the slots one is made first."""
        source = placement.source
        if placement.how != "copy" or source is None:
            return 0.0
        if source.saved_tokens >= placement.tokens:
            return self._steps.restore_s(source.saved_bytes)
        size_bytes = source.computed * self._cell_bytes
        return self._steps.save_s(size_bytes) + self._steps.restore_s(size_bytes)

    def _next_in_line(self, now_s: float, free: int) -> Sequence | None:
        candidates = [s for s in self._waiting if s.request.admitted]
        if not candidates and self._may_seat_late(free):
            candidates = list(self._waiting)
        return self._line.first(candidates, self.present(), now_s) if candidates else None

    def placed(self, placement: Placement, tokens: int) -> None:
        """A placement was made; `tokens` cells were taken over."""
        sequence = placement.sequence
        if sequence.slot < 0:
            self._waiting.remove(sequence)
            self.slots.take(sequence, placement.slot)
        sequence.phase, sequence.awaits = Phase.PREFILL, None
        sequence.cursor = tokens
        request = sequence.request
        self._occupy(sequence)
        if sequence.index == 0:
            request.cached_tokens = tokens
        if placement.source is not None and tokens:
            self.cache.used(placement.source, self._recompute_s(tokens))

    def siblings_ready(self, leader: Sequence) -> list[Sequence]:
        """The leader's prompt is computed: its siblings decode from now on, with copies of its cells."""
        siblings = [s for s in leader.request.sequences if s.phase is Phase.FOLLOWING and s.awaits is None]
        for sibling in siblings:
            sibling.cursor = leader.cursor
            sibling.phase = Phase.DECODE
            self.cache.vacate(sibling.slot)
            self._occupy(sibling)
        return siblings

    def end(self, sequence: Sequence) -> int | None:
        """Take a sequence out, whatever its phase. Returns the slot whose cells are to be freed, None if it held
        none or if they are kept for the next."""
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        known, phase = self._known_tokens(sequence), sequence.phase
        sequence.phase = Phase.DONE
        if phase is Phase.PREFILL or sequence.awaits is not None:
            self._elect(sequence)
        slot = self.slots.release(sequence)
        if slot is None:
            return None
        if phase is Phase.FOLLOWING and self.cache.resident(slot) is not None:
            return None  # it never touched what lies there
        return None if self.cache.leave(slot, known, self._recompute_s(len(known))) else slot

    # --- parts --------------------------------------------------------------------------------------------------------

    def _occupy(self, sequence: Sequence) -> None:
        request = sequence.request
        if request.work.cache:
            sequence.prefix = self.cache.occupy(
                sequence.slot,
                request.tokens,
                request.work.key,
                computed=sequence.cursor,
                recompute_s=request.prompt_s,
            )

    def _recompute_s(self, tokens: int) -> float:
        return self._steps.whole_prompt_s(tokens, 0, self._chunk_tokens, safe=False) if tokens else 0.0

    def _known_tokens(self, sequence: Sequence) -> list[int]:
        """Tokens that have cells in a sequence's slot."""
        if sequence.prefix is None:
            return []
        if sequence.phase is Phase.DECODE:
            return [*sequence.request.tokens, *sequence.writer.tokens][: sequence.cells]
        return list(sequence.request.tokens[: sequence.cursor])

    def _may_seat_late(self, free: int) -> bool:
        """Some slots stay free for requests that can be admitted, more of them while such run."""
        if not self.reserves or self.slots.size == 1:
            return True
        share = max(1, self.slots.size // _LATE_SHARE)
        late = sum(not s.request.admitted for s in self.slots.holders())
        return free > share and (late == self.running or late < share)

    def _seat(self, sequence: Sequence, free: list[int]) -> Placement | None:
        """A placement into one of the free slots; None if the sequence got one and waits there for another's cells."""
        request = sequence.request
        if self._has_leader(sequence):
            self._follow(sequence, self._cheapest(free), None, 0)
            return None
        match = self.match(request)
        usable = match.usable if match is not None else 0
        ahead = self.cache.in_the_making(request.tokens, request.work.key, usable) if request.work.cache else None
        if ahead is not None and self._worth_waiting(sequence, ahead):
            self._follow(sequence, self._cheapest(free), ahead.prefix, ahead.matched)
            return None
        return self._placement(sequence, match, free)

    def _placement(self, sequence: Sequence, match: Match | None, free: list[int]) -> Placement:
        if match is None:
            slot = self._cheapest(free)
            return Placement(sequence, slot, "cold", save_resident=self._worth_saving(slot))
        source, tokens = match.prefix, self._steps.best_start(len(sequence.request.tokens), match.usable)
        if not source.live and source.slot in free and source.computed >= tokens:
            others = [slot for slot in free if slot != source.slot]
            own = source.computed - match.usable
            if own < _KEPT_TOKENS or source.saved_tokens >= source.computed or not others:
                return Placement(sequence, source.slot, "stay", source, tokens)
            free = others
        slot = self._cheapest(free)
        return Placement(sequence, slot, "copy", source, tokens, save_resident=self._worth_saving(slot))

    def _follow(self, sequence: Sequence, slot: int, awaits: Prefix | None, tokens: int) -> None:
        """Wait in a slot for cells that another answer computes. The slot's own cells stay until they come."""
        self._waiting.remove(sequence)
        self.slots.take(sequence, slot)
        sequence.phase, sequence.awaits, sequence.awaited_tokens = Phase.FOLLOWING, awaits, tokens

    def _has_leader(self, sequence: Sequence) -> bool:
        return self._copies_sequences and any(s.phase is Phase.PREFILL for s in sequence.request.sequences)

    def _worth_waiting(self, sequence: Sequence, ahead: Match) -> bool:
        """Never for an answer that is computed in the gaps, if the one who would wait was admitted."""
        if not sequence.request.admitted:
            return True
        leader = next((s for s in self.slots.holders() if s.prefix is ahead.prefix), None)
        return leader is not None and leader.request.admitted

    def _is_ready(self, sequence: Sequence) -> bool:
        awaited = sequence.awaits
        assert awaited is not None
        return not awaited.live or awaited.computed >= min(sequence.awaited_tokens, len(awaited.tokens))

    def _cheapest(self, free: list[int]) -> int:
        """The free slot whose content is least worth keeping."""

        def worth(slot: int) -> tuple[int, float]:
            resident = self.cache.resident(slot)
            if resident is None:
                return 0, 0.0
            return (1 if resident.saved_tokens >= resident.computed else 2), resident.worth

        return min(free, key=worth)

    def _worth_saving(self, slot: int) -> bool:
        resident = self.cache.resident(slot)
        if resident is None or resident.live or resident.saved_tokens >= resident.computed:
            return False
        return self.cache.own_tokens(resident) >= _KEPT_TOKENS

    def _elect(self, gone: Sequence) -> None:
        """The leader is gone before its prompt was done: its first sibling computes the prompt instead."""
        for sibling in gone.request.sequences:
            if sibling.phase is Phase.FOLLOWING and sibling.awaits is None:
                # What the leader had computed, if that is kept, is the beginning; else there is none.
                sibling.awaits = gone.prefix or gone.awaits or Prefix((), "")
                return


def _expected_tokens(sequence: Sequence) -> int:
    """How long its answer may become; without a wish of its own, as long as most are."""
    asked = sequence.request.work.max_tokens
    return max(sequence.generated, min(sequence.request.limit, asked or _USUAL_TOKENS))
