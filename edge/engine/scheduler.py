"""Which rows the next forward passes compute, so that what was promised is kept. Pure: time comes in as an argument.

Continuous batching with chunked prefill (Sarathi-Serve, OSDI'24), but the chunk's size is not a constant: it is the largest
whose predicted time fits before the running streams' next deadline. The loop runs one pass at a time and asks again: a prompt
pass while there is time for one, else a decode pass. Admitted requests go first, by deadline; the others run in the gaps,
oldest first, those of a key that had less lately before those of one that had more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from edge.engine.admission import Burden, Targets, Verdict, Wish, capacity, judge
from edge.engine.fairness import KeyAccounts
from edge.engine.prefix import LEAST_SHARED_TOKENS, Match, Prefix, PrefixCache
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.slots import SlotPool
from edge.engine.steps import TILE_ROWS, StepModel

FIXED_CHUNK = 64
"""Prompt tokens in a pass beside running streams where no targets are kept (mode off, or a model too slow for them)."""
PASS_SHARE = 0.4
"""A prompt pass for a request that was not admitted takes at most this share of the ITL target, or as long as a tile's rows
take: whoever arrives meanwhile has to wait for it, but in smaller passes it would take several times as long."""
_PATIENCE_PER_PROMPT = 2.0
_LARGEST_HANDICAP_S = 5.0
_KEPT_TOKENS = 64
"""An idle slot's prefix with more tokens of its own than this is worth a copy before it is overwritten."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, start+count) of a sequence. `last`: the prompt ends here, so its logits are wanted."""

    sequence: Sequence
    start: int
    count: int
    last: bool


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


class Scheduler:
    """Owner of the queue, of the slots and of every sequence's phase."""

    def __init__(
        self,
        *,
        slots: int,
        steps: StepModel,
        cache: PrefixCache,
        targets: Targets,
        chunk_tokens: int,
        copies_sequences: bool,
    ) -> None:
        self.slots = SlotPool(slots)
        self.cache = cache
        self._steps = steps
        self._targets = targets
        self._chunk_tokens = chunk_tokens
        self._copies_sequences = copies_sequences
        self._waiting: deque[Sequence] = deque()
        self._accounts = KeyAccounts()
        self._prompt_pass_since_decode = False
        # A model whose single row takes longer than the target cannot keep it, however little it does at a time.
        self._keeps_targets = targets.mode != "off" and steps.decode_s(1, 0) <= targets.itl_s

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

    # --- arrival ------------------------------------------------------------------------------------------------------

    def add(self, request: Request, now_s: float) -> Verdict:
        """Queue a request's answers, and decide whether they are admitted."""
        verdict = self.judge(request, now_s)
        request.admitted = self._keeps_targets and not verdict.reason
        request.prompt_s = self._recompute_s(len(request.tokens))
        self._waiting.extend(request.sequences)
        return verdict

    def judge(self, request: Request, now_s: float) -> Verdict:
        """Whether a request that is not queued yet would meet the targets."""
        if not self._keeps_targets:
            return Verdict("", 0.0, self._steps.decode_s(1, 0))
        match = self._match(request)
        known = self._steps.best_start(len(request.tokens), match.usable) if match is not None else 0
        count = len(request.tokens) - known
        prompt_s = self._steps.whole_prompt_s(count, known, self._pass_tokens())
        if match is not None:
            prompt_s += self._steps.restore_s(match.prefix.saved_bytes)
        answers = len(request.sequences)
        wish = Wish(answers, self._final_cells(request) * answers, prompt_s, self._due_s(request))
        return judge(now_s, wish, self._burden(), self._steps, self._targets)

    def capacity(self, context_tokens: int) -> tuple[int, int]:
        """(new prompt tokens, streams) that are within the targets while nothing else runs, in the passes used here."""
        chunk = self._pass_tokens()
        return capacity(self._steps, self._targets, slots=self.slots.size, context_tokens=context_tokens, chunk=chunk)

    def _burden(self) -> Burden:
        admitted = [s for s in (*self._waiting, *self.slots.holders()) if s.request.admitted]
        prompts: dict[int, tuple[float, float]] = {}
        for sequence in admitted:
            if sequence.phase is not Phase.DECODE:
                prompts[sequence.request.id] = (self._due_s(sequence.request), self._prompt_left_s(sequence))
        seated = sum(s.slot >= 0 for s in admitted)
        others = self.running - seated
        return Burden(
            rows=len(admitted),
            cells=sum(self._final_cells(s.request) for s in admitted),
            prompts_s=prompts.values(),
            free_slots=self.slots.size - len(admitted) - others,
        )

    def _final_cells(self, request: Request) -> int:
        return len(request.tokens) + request.limit

    def _due_s(self, request: Request) -> float:
        return request.arrived_s + self._targets.ttft_s

    def _prompt_left_s(self, sequence: Sequence) -> float:
        if sequence.phase is Phase.PREFILL:
            cursor = sequence.cursor
        elif sequence.awaits is not None:
            cursor = sequence.awaited_tokens
        else:
            match = self._match(sequence.request)
            cursor = match.usable if match is not None else 0
        left = len(sequence.request.tokens) - cursor
        return self._steps.whole_prompt_s(left, cursor, self._pass_tokens())

    def _pass_tokens(self) -> int:
        """Prompt tokens of a pass that fits between two tokens of the streams that were admitted."""
        rows = [s for s in self.slots.holders() if s.request.admitted and s.phase is Phase.DECODE]
        if not rows:
            return self._chunk_tokens
        room_s = self._targets.itl_s - self._steps.decode_s(len(rows), sum(s.cells for s in rows))
        return max(1, self._steps.largest_chunk(room_s, 0, self._chunk_tokens, self._chunk_tokens))

    # --- passes -------------------------------------------------------------------------------------------------------

    def decode_rows(self, now_s: float) -> tuple[Sequence, ...]:
        """Sequences whose next token this step computes: all that were admitted, and of the others what fits."""
        decoding = [s for s in self.slots.holders() if s.phase is Phase.DECODE]
        if not self._keeps_targets:
            return tuple(decoding)
        admitted = [s for s in decoding if s.request.admitted]
        if len(admitted) == len(decoding):
            return tuple(admitted)
        late = sorted((s for s in decoding if not s.request.admitted), key=lambda s: s.emitted_s)
        end_s = self._latest_end_s(now_s, admitted)
        rows, cells = len(admitted), sum(s.cells for s in admitted)
        for sequence in late:
            rows, cells = rows + 1, cells + sequence.cells
            if now_s + self._steps.decode_s(rows, cells) > end_s and rows > 1:
                break
            admitted.append(sequence)
        return tuple(admitted)

    def _latest_end_s(self, now_s: float, admitted: list[Sequence]) -> float:
        """When a pass must be over that does more than the admitted need."""
        end_s = now_s + self._targets.itl_s
        for sequence in admitted:
            end_s = min(end_s, sequence.emitted_s + self._targets.itl_s)
        for sequence in (*self._waiting, *self.slots.holders()):
            if sequence.request.admitted and sequence.phase is not Phase.DECODE:
                end_s = min(end_s, self._due_s(sequence.request) - self._prompt_left_s(sequence))
        return end_s

    def next_placement(self, now_s: float) -> Placement | None:
        """The next sequence to get a slot or the cells it waits for; None if there is none now. Ask again after `placed`."""
        for sequence in self.slots.holders():
            if sequence.phase is Phase.FOLLOWING and sequence.awaits is not None and self._is_ready(sequence):
                return self._placement(sequence, self._match(sequence.request), [sequence.slot])
        free = self.slots.free_slots()
        while free and (next_one := self._next_in_line(now_s, len(free))) is not None:
            placement = self._seat(next_one, free)
            if placement is not None:
                return placement
            free = self.slots.free_slots()
        return None

    def _next_in_line(self, now_s: float, free: int) -> Sequence | None:
        admitted = [s for s in self._waiting if s.request.admitted]
        if admitted:
            return min(admitted, key=lambda s: self._urgency(s, now_s))
        if not self._waiting or not self._may_seat_late(free):
            return None
        return min(self._waiting, key=lambda s: self._urgency(s, now_s))

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

    def next_chunk(self, now_s: float) -> Chunk | None:
        """A prompt pass that there is time for now; None: decode first."""
        prompts = [s for s in self.slots.holders() if s.phase is Phase.PREFILL]
        if not prompts:
            return None
        sequence = min(prompts, key=lambda s: self._urgency(s, now_s)) if len(prompts) > 1 else prompts[0]
        decoding = [s for s in self.slots.holders() if s.phase is Phase.DECODE]
        if not self._keeps_targets:
            if decoding and self._prompt_pass_since_decode:
                return None
            return _chunk(sequence, min(sequence.prompt_left, FIXED_CHUNK if decoding else self._chunk_tokens))
        budget_s = self._prompt_budget_s(now_s, sequence, decoding)
        count = self._steps.largest_chunk(budget_s, sequence.cursor, sequence.prompt_left, self._chunk_tokens)
        if count == 0 and not decoding:  # not even one token fits: then time is no reason to wait
            count = min(sequence.prompt_left, LEAST_SHARED_TOKENS)
        return _chunk(sequence, count) if count else None

    def _prompt_budget_s(self, now_s: float, sequence: Sequence, decoding: list[Sequence]) -> float:
        """Time for a prompt pass of this sequence. One that was not admitted gets one pass for each decode pass, so that
        it does not slow running streams down to what was promised."""
        budget_s = float("inf")
        if not sequence.request.admitted:
            if decoding and self._prompt_pass_since_decode:
                return 0.0
            tile_s = self._steps.prompt_s(min(TILE_ROWS, self._chunk_tokens), sequence.cursor)
            budget_s = max(self._targets.itl_s * PASS_SHARE, tile_s)
        admitted = [s for s in decoding if s.request.admitted]
        if not admitted:
            return budget_s
        next_s = self._steps.decode_s(len(admitted), sum(s.cells for s in admitted))
        return min(budget_s, min(s.emitted_s for s in admitted) + self._targets.itl_s - next_s - now_s)

    # --- results ------------------------------------------------------------------------------------------------------

    def prefilled(self, chunk: Chunk, now_s: float, took_s: float) -> list[Sequence]:
        """Note that a chunk was computed. Returns the siblings that now want a copy of its sequence's cells.

        After the last chunk the sequence and its siblings are decoding; their first token comes from the chunk's logits.
        """
        sequence = chunk.sequence
        self._accounts.charge(sequence.request.work.key, took_s, now_s)
        self._prompt_pass_since_decode = True
        sequence.cursor += chunk.count
        if sequence.prefix is not None:
            sequence.prefix.computed = sequence.cursor
        if not chunk.last:
            return []
        sequence.phase = Phase.DECODE
        siblings = [s for s in sequence.request.sequences if s.phase is Phase.FOLLOWING and s.awaits is None]
        for sibling in siblings:
            sibling.cursor = sequence.cursor
            sibling.phase = Phase.DECODE
            self.cache.vacate(sibling.slot)
            self._occupy(sibling)
        return siblings

    def decoded(self, rows: tuple[Sequence, ...], now_s: float, took_s: float) -> None:
        """Note that a decode pass was computed."""
        self._prompt_pass_since_decode = False
        for sequence in rows:
            self._accounts.charge(sequence.request.work.key, took_s / len(rows), now_s)

    def sampled(self, sequence: Sequence, token: int, now_s: float) -> None:
        """Note the token that a decoding sequence drew; the next step computes its row."""
        sequence.last_token = token
        sequence.generated += 1
        sequence.emitted_s = now_s

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

    def _urgency(self, sequence: Sequence, now_s: float) -> tuple[bool, float, int]:
        """Sort key: admitted by deadline; others by age, with time for a longer prompt, behind keys that had less."""
        request = sequence.request
        if request.admitted:
            return False, self._due_s(request), sequence.index
        rivals = {s.request.work.key for s in self._waiting} | {s.request.work.key for s in self.slots.holders()}
        handicap_s = self._accounts.excess_s(request.work.key, rivals, now_s) if len(rivals) > 1 else 0.0
        due_s = request.arrived_s + _PATIENCE_PER_PROMPT * request.prompt_s + min(handicap_s, _LARGEST_HANDICAP_S)
        return True, due_s, sequence.index

    def _may_seat_late(self, free: int) -> bool:
        """Some slots stay free for requests that can be admitted, more of them while such run."""
        if not self._keeps_targets or self.slots.size == 1:
            return True
        kept = max(1, self.slots.size // 4)
        late = sum(not s.request.admitted for s in self.slots.holders())
        admitted = self.running - late
        return free > kept and (admitted == 0 or late < max(1, self.slots.size // 4))

    def _seat(self, sequence: Sequence, free: list[int]) -> Placement | None:
        """A placement into one of the free slots; None if the sequence got one and waits there for another's cells."""
        request = sequence.request
        if self._has_leader(sequence):
            self._follow(sequence, self._cheapest(free), None, 0)
            return None
        match = self._match(request)
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

    def _match(self, request: Request) -> Match | None:
        return self.cache.match(request.tokens, request.work.key) if request.work.cache else None

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


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(sequence, sequence.cursor, count, last=count == sequence.prompt_left)
