"""What is to come, from who sits where: how long prompts and answers that are here will take, what a new one would mean. Pure."""

from __future__ import annotations

from typing import NamedTuple

from edge.engine.admission import Burden, Prompt, Targets, Wish
from edge.engine.line import Line
from edge.engine.seating import Seating
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.steps import StepModel

PASS_SHARE = 0.4
"""A prompt pass for a request that was not admitted takes at most this share of the ITL target, or as long as a tile's rows
take: whoever arrives meanwhile has to wait for it, but in smaller passes it would take several times as long."""


class Start(NamedTuple):
    """How many of a prompt's tokens are known, and the time to bring them back."""

    known: int
    restore_s: float


class Foresight:
    """Reads the seating and the line, and changes neither."""

    def __init__(self, seating: Seating, line: Line, steps: StepModel, targets: Targets, chunk_tokens: int) -> None:
        self._seating, self._line = seating, line
        self._steps, self._targets, self._chunk_tokens = steps, targets, chunk_tokens

    def wish(self, request: Request, prompt_s: float) -> Wish:
        """What a request asks for whose prompt takes so long."""
        answers = len(request.sequences)
        return Wish(answers, _final_cells(request) * answers, prompt_s, self._line.due_s(request))

    def start_of(self, request: Request) -> Start:
        """Where the passes of its prompt will begin."""
        match = self._seating.match(request)
        if match is None:
            return Start(0, 0.0)
        known = self._steps.best_start(len(request.tokens), match.usable)
        return Start(known, self._steps.restore_s(match.prefix.saved_bytes))

    def prompt_s(self, request: Request, start: Start, pass_tokens: int) -> float:
        """Time of its prompt's passes, in passes of so many tokens."""
        left = len(request.tokens) - start.known
        return self._steps.whole_prompt_s(left, start.known, pass_tokens) + start.restore_s

    def late_s(self, request: Request, prompt_s: float) -> float:
        """Until the first token of an answer in the gaps: those ahead of it, then its own prompt, at a gap's pace."""
        reading_s = sum(
            self.prompt_left_s(s)
            for s in self._seating.slots.holders()
            if not s.request.admitted and s.phase is not Phase.DECODE
        )
        wait_s = self._seating.wait_s(self.token_s(), request.work.tier)
        return max(wait_s, self.stretched_s(reading_s)) + self.stretched_s(prompt_s) + self._until_read_s()

    def _until_read_s(self) -> float:
        """Until the streams have ended beside which no prompt is read, since a pass of it takes longer than they leave."""
        rows = [s for s in self._seating.in_phase(Phase.DECODE) if s.request.admitted]
        if not rows or self._steps.decode_s(len(rows), 0) + self._steps.prompt_s(1, 0) <= self._targets.itl_s:
            return 0.0
        return max(s.request.limit - s.generated for s in rows) * self._targets.itl_s

    def token_s(self) -> float:
        """Between two tokens of each answer, with as many of them as run now."""
        rows = self._seating.in_phase(Phase.DECODE)
        return self._steps.decode_s(max(1, len(rows)), sum(s.cells for s in rows), safe=False)

    def stretched_s(self, prompt_s: float) -> float:
        """Time of prompt passes that go in turns with the running streams' decode passes."""
        rows = self._seating.in_phase(Phase.DECODE)
        if not rows:
            return prompt_s
        pass_s = self._targets.itl_s * PASS_SHARE
        return prompt_s * (1 + self._steps.decode_s(len(rows), sum(s.cells for s in rows)) / pass_s)

    def burden(self, spare_s: float) -> Burden:
        """What is to be done when the pass that runs is over; the next one has to begin `spare_s` later."""
        admitted = [s for s in self._seating.present() if s.request.admitted]
        prompts: dict[int, Prompt] = {}
        for sequence in admitted:
            if sequence.phase is not Phase.DECODE:
                request = sequence.request
                seatless = prompts[request.id].seatless if request.id in prompts else 0
                seatless += sequence.slot < 0
                prompts[request.id] = Prompt(self._line.due_s(request), self.prompt_left_s(sequence), seatless)
        return Burden(
            rows=len(admitted),
            cells=sum(_final_cells(s.request) for s in admitted),
            prompts=prompts.values(),
            free_slots=self._seating.slots.free,
            endings_s=self._endings_s(sum(p.prompt_s for p in prompts.values())),
            spare_s=spare_s,
        )

    def _endings_s(self, prompt_s: float) -> list[float]:
        """When each running answer will have ended at the latest, if prompts take `prompt_s` in the meantime. Beside streams that
        were admitted the others have no certain end: they get a token when there is time."""
        rows = self._seating.in_phase(Phase.DECODE)
        if any(s.request.admitted for s in self._seating.present()):
            rows = [s for s in rows if s.request.admitted]
        seated = list(self._seating.slots.holders())
        pass_s = self._steps.decode_s(max(1, len(seated)), sum(_final_cells(s.request) for s in seated))
        late = self._seating.running > sum(s.request.admitted for s in self._seating.slots.holders())
        between_s = pass_s + (self._targets.itl_s * PASS_SHARE if late else 0.0)
        left = sorted(s.request.limit - s.generated for s in rows)
        return [min(n * self._targets.itl_s, prompt_s + n * between_s) for n in left]

    def prompt_left_s(self, sequence: Sequence) -> float:
        """Time of what is left of a prompt."""
        return self._steps.whole_prompt_s(*self._seating.prompt_left(sequence), self.pass_tokens())

    def pass_tokens(self) -> int:
        """Prompt tokens of a pass that fits between two tokens of the streams that were admitted, also of those that have yet to
        begin: a prompt that is read meanwhile is read beside them."""
        rows = [s for s in self._seating.present() if s.request.admitted]
        if not rows:
            return self._chunk_tokens
        room_s = self._targets.itl_s - self._steps.decode_s(len(rows), sum(s.cells for s in rows))
        return max(1, self._steps.largest_chunk(room_s, 0, self._chunk_tokens, self._chunk_tokens))

    def spare_s(self, now_s: float) -> float:
        """Until the next decode pass of the streams that were admitted has to begin; for ever if there are none."""
        admitted = [s for s in self._seating.in_phase(Phase.DECODE) if s.request.admitted]
        if not admitted:
            return float("inf")
        next_s = self._steps.decode_s(len(admitted), sum(s.cells for s in admitted))
        return min(s.emitted_s for s in admitted) + self._targets.itl_s - next_s - now_s


def _final_cells(request: Request) -> int:
    return len(request.tokens) + request.limit
