"""Which rows the next forward passes compute, so that what was promised is kept. Pure: time comes in as an argument.

Continuous batching with chunked prefill (Sarathi-Serve, OSDI'24), but the chunk's size is not a constant: it is the largest
whose predicted time fits before the running streams' next deadline. The loop runs one pass at a time and asks again: a prompt
pass while there is time for one, else a decode pass. Admitted requests go first, by deadline; the others run in the gaps,
oldest first, those of a key that had less lately before those of one that had more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.engine.admission import Bounds, Capacity, Targets, Verdict, Wish, admits, capacity, judge
from edge.engine.foresight import PASS_SHARE, Foresight, Start
from edge.engine.line import Line
from edge.engine.prefix import LEAST_SHARED_TOKENS, PrefixCache
from edge.engine.seating import Placement, Seating
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.slots import SlotPool
from edge.engine.steps import TILE_ROWS, StepModel

FIXED_CHUNK = 64
"""Prompt tokens in a pass beside running streams where no targets are kept (mode off, or a model too slow for them)."""
STARVED_S = 5.0
"""When streams that were admitted have kept a prompt from being read for so long, nobody is admitted until it is."""
_SHORT_PROMPT = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, start+count) of a sequence. `last`: the prompt ends here, so its logits are wanted."""

    sequence: Sequence
    start: int
    count: int
    last: bool


class Scheduler:
    """Owner of every sequence's phase, through its seating."""

    def __init__(
        self,
        *,
        slots: int,
        steps: StepModel,
        cache: PrefixCache,
        targets: Targets,
        chunk_tokens: int,
        copies_sequences: bool,
        cell_bytes: int,
    ) -> None:
        self.cache = cache
        self._steps = steps
        self._targets = targets
        self._chunk_tokens = chunk_tokens
        self._prompt_pass_since_decode = False
        self._busy_until_s, self._decodes = 0.0, False
        self._starving: tuple[Sequence, float] | None = None
        """A prompt for which there is no time between admitted streams' tokens, and since when."""
        self._held: tuple[Sequence, float] | None = None
        """One whose known cells there was no time to bring back, and since when."""
        self._declined_idle = False
        """Somebody was declined while there was nothing to compute."""
        self._keeps_targets = self._can_keep_targets()
        self._line = Line(targets)
        self._seating = Seating(
            slots=slots,
            steps=steps,
            cache=cache,
            line=self._line,
            chunk_tokens=chunk_tokens,
            copies_sequences=copies_sequences,
            reserves=self._keeps_targets,
            cell_bytes=cell_bytes,
        )
        self._foresight = Foresight(self._seating, self._line, steps, targets, chunk_tokens)

    @property
    def slots(self) -> SlotPool:
        """Who holds which slot; to read."""
        return self._seating.slots

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return self._seating.waiting

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return self._seating.running

    @property
    def idle(self) -> bool:
        """Nothing to compute."""
        return self.waiting == 0 and self.running == 0

    # --- arrival ------------------------------------------------------------------------------------------------------

    def add(self, request: Request, now_s: float) -> Verdict:
        """Decide whether a request is admitted, and queue its answers unless it is declined."""
        verdict = self.judge(request, now_s)
        if not verdict.declined:
            request.admitted = self._keeps_targets and not verdict.reason
            self._seating.queue(request)
        self._declined_idle |= verdict.declined and self.idle
        return verdict

    def judge(self, request: Request, now_s: float) -> Verdict:
        """What would become of a request that came now."""
        busy_s = max(0.0, self._busy_until_s - now_s)
        now_s += busy_s
        work = request.work
        start = self._foresight.start_of(request)
        prompt_s = self._foresight.prompt_s(request, start, self._foresight.pass_tokens())
        if not self._targets.promised:
            return Verdict("", busy_s + prompt_s, self._steps.decode_s(1, 0), cached_tokens=start.known)
        wish = self._foresight.wish(request, prompt_s)
        verdict = judge(now_s, wish, self._foresight.burden(self._spare_then_s(now_s)), self._steps, self._targets)
        reason = verdict.reason or ("flex" if work.tier == "flex" else "")
        if not reason and self._is_starving(now_s):
            reason = "slo_ttft"
        if not self._keeps_targets:
            reason = "slo_itl"
        late_s = busy_s + self._foresight.late_s(request, prompt_s) if reason else 0.0
        too_late = 0.0 < work.max_wait_s < late_s
        return replace(
            verdict,
            reason="wait" if reason and too_late else reason,
            ttft_s=busy_s + verdict.ttft_s,
            late_s=late_s,
            declined=bool(reason) and (too_late or work.late == "decline"),
            hopeless=bool(reason) and self._is_hopeless(request, start),
            cached_tokens=start.known,
        )

    def begins(self, until_s: float, *, decodes: bool) -> None:
        """A pass begins that is predicted to last until then: who arrives meanwhile waits for its end. `decodes`: running answers
        get a token by it."""
        self._busy_until_s, self._decodes = until_s, decodes

    def proved(self, now_s: float, ratio: float) -> None:
        """An idle engine has made a decode pass, in `ratio` times what the table says. What was learned under another load must
        not keep it from admitting anybody for ever."""
        self._steps.proved("decode", ratio)
        if self._declined_idle or not self.outlook(now_s)[0]:
            self._steps.doubt(ratio)
        self._declined_idle = False
        self._keeps_targets = self._seating.reserves = self._keeps_targets or self._can_keep_targets()

    def _can_keep_targets(self) -> bool:
        """A model whose single row takes longer than the target cannot, however little it does at a time."""
        return self._targets.promised and self._steps.decode_s(1, 0) <= self._targets.itl_s

    def outlook(self, now_s: float) -> tuple[bool, float]:
        """(whether a short prompt that came now would be admitted, seconds until its first token if it were not)."""
        if not self._keeps_targets:
            return False, self._seating.wait_s(self._foresight.token_s())
        prompt_s = self._steps.prompt_s(_SHORT_PROMPT, 0)
        wish = Wish(1, 2 * _SHORT_PROMPT, prompt_s, now_s + self._targets.ttft_s)
        burden = self._foresight.burden(self._spare_then_s(now_s))
        reason = judge(now_s, wish, burden, self._steps, self._targets).reason
        wait_s = self._seating.wait_s(self._foresight.token_s())
        return not reason and not self._is_starving(now_s), wait_s + self._foresight.stretched_s(prompt_s)

    def _is_hopeless(self, request: Request, start: Start) -> bool:
        """It would be late with nobody else here, in the passes of an idle engine, which are larger than those beside streams."""
        prompt_s = self._foresight.prompt_s(request, start, self._chunk_tokens)
        late = prompt_s > self._targets.ttft_s or len(request.sequences) > self.slots.size
        return late or not self._keeps_targets

    def _is_starving(self, now_s: float) -> bool:
        if self._held is not None and now_s - self._held[1] > STARVED_S:
            return self._held[0].phase in (Phase.WAITING, Phase.FOLLOWING)
        if self._starving is None:
            return False
        sequence, since_s = self._starving
        return sequence.phase is Phase.PREFILL and now_s - since_s > STARVED_S

    def _spare_then_s(self, now_s: float) -> float:
        """`Foresight.spare_s` at the end of the pass that runs, if one does: a new interval, if that gives running answers a
        token."""
        if self._decodes and now_s <= self._busy_until_s:
            return float("inf")
        return max(0.0, self._foresight.spare_s(now_s))

    def capacity(self, context_tokens: int) -> Capacity:
        """What is within the targets while nothing else runs, and the times behind it."""
        return capacity(
            self._steps, self._targets, slots=self.slots.size, context_tokens=context_tokens, chunk=self._chunk_tokens
        )

    def admits(self, context_tokens: int) -> Bounds:
        """What is within the targets while nothing else runs, as passes are predicted now."""
        return admits(
            self._steps, self._targets, slots=self.slots.size, context_tokens=context_tokens, chunk=self._chunk_tokens
        )

    # --- passes -------------------------------------------------------------------------------------------------------

    def decode_rows(self, now_s: float) -> tuple[Sequence, ...]:
        """Sequences whose next token this step computes: all that were admitted, and of the others what fits."""
        decoding = self._seating.in_phase(Phase.DECODE)
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
        for sequence in self._seating.present():
            if sequence.request.admitted and sequence.phase is not Phase.DECODE:
                end_s = min(end_s, self._line.due_s(sequence.request) - self._foresight.prompt_left_s(sequence))
        return end_s

    def next_placement(self, now_s: float) -> Placement | None:
        """The next sequence to get a slot or the cells it waits for; None if there is none now. Ask again after `placed`."""
        placement = self._seating.next_placement(now_s, lambda: self._foresight.spare_s(now_s))
        held = self._seating.held
        if held is None:
            self._held = None
        elif self._held is None or self._held[0] is not held:
            self._held = held, now_s
        return placement

    def has_time_to_save(self, size_bytes: int, now_s: float, placement: Placement | None = None) -> bool:
        """Whether what lies in a slot can be copied now, and kept, before a placement there, without making an admitted stream
        wait."""
        spare_s = self._foresight.spare_s(now_s) - (self._seating.copy_s(placement) if placement is not None else 0.0)
        return self._steps.save_s(size_bytes) <= spare_s and self.cache.has_room_for(size_bytes)

    def placed(self, placement: Placement, tokens: int) -> None:
        """A placement was made; `tokens` cells were taken over."""
        self._seating.placed(placement, tokens)

    def next_chunk(self, now_s: float) -> Chunk | None:
        """A prompt pass that there is time for now; None: decode first."""
        prompts = self._seating.in_phase(Phase.PREFILL)
        if not prompts:
            return None
        sequence = self._line.first(prompts, self._seating.present(), now_s)
        decoding = self._seating.in_phase(Phase.DECODE)
        if not self._keeps_targets:
            if decoding and self._prompt_pass_since_decode:
                return None
            most = min(FIXED_CHUNK, self._chunk_tokens) if decoding else self._chunk_tokens
            return _chunk(sequence, min(sequence.prompt_left, most))
        budget_s = self._prompt_budget_s(now_s, sequence, decoding)
        count = self._steps.largest_chunk(budget_s, sequence.cursor, sequence.prompt_left, self._chunk_tokens)
        if count == 0 and not decoding:  # not even one token fits: then time is no reason to wait
            count = min(sequence.prompt_left, LEAST_SHARED_TOKENS)
        if not sequence.request.admitted:
            waits = self._starving is not None and self._starving[0].phase is Phase.PREFILL
            self._starving = None if count else self._starving if waits else (sequence, now_s)
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
        return min(budget_s, self._foresight.spare_s(now_s))

    # --- results ------------------------------------------------------------------------------------------------------

    def prefilled(self, chunk: Chunk, now_s: float, took_s: float) -> list[Sequence]:
        """Note that a chunk was computed. Returns the siblings that now want a copy of its sequence's cells.

        After the last chunk the sequence and its siblings are decoding; their first token comes from the chunk's logits.
        """
        sequence = chunk.sequence
        self._line.charge(sequence.request, took_s, now_s)
        self._prompt_pass_since_decode = True
        sequence.cursor += chunk.count
        if sequence.prefix is not None:
            sequence.prefix.computed = sequence.cursor
        if not chunk.last:
            return []
        sequence.phase = Phase.DECODE
        return self._seating.siblings_ready(sequence)

    def decoded(self, rows: tuple[Sequence, ...], now_s: float, took_s: float) -> None:
        """Note that a decode pass was computed."""
        self._prompt_pass_since_decode = False
        for sequence in rows:
            self._line.charge(sequence.request, took_s / len(rows), now_s)

    def sampled(self, sequence: Sequence, token: int, now_s: float) -> None:
        """Note the token that a decoding sequence drew; the next step computes its row."""
        sequence.last_token = token
        sequence.generated += 1
        sequence.emitted_s = now_s

    def end(self, sequence: Sequence) -> int | None:
        """Take a sequence out, whatever its phase. Returns the slot whose cells are to be freed, None if it held
        none or if they are kept for the next."""
        return self._seating.end(sequence)


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(sequence, sequence.cursor, count, last=count == sequence.prompt_left)
