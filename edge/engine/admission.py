"""Whether a request that arrives now will meet its targets, and those that were admitted before still theirs. Pure.

The coming steps are simulated by arithmetic: decode rows take their part of every interval between two tokens, prompts get
what is left, in the order of their deadlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge.engine.steps import StepModel
from edge.messages import LateReason

LEAST_PROMPT_SHARE = 0.1
"""Part of each interval that admission leaves for prompts: without it no new request could ever begin."""

_PROMPTS = (16, 64, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the engine promises: the configured objectives less what happens outside it. Seconds."""

    ttft_s: float
    itl_s: float
    promised: bool = True
    """False: all are served alike."""


class Prompt(NamedTuple):
    """A prompt that is still to compute: when its first token is due, its time, and how many of its answers have no slot."""

    deadline_s: float
    prompt_s: float
    seatless: int = 0


@dataclass(frozen=True, slots=True)
class Burden:
    """What was admitted before and is not done. Cells are counted as they will be at each answer's end."""

    rows: int
    cells: int
    prompts: Iterable[Prompt]
    free_slots: int
    endings_s: Sequence[float] = ()
    """From now on, when running answers will have ended at the latest and their slots are free, the soonest first."""
    spare_s: float = float("inf")
    """Until the running answers' next pass has to begin."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A request: answers, cells at their end, time of its prompt, and when its first token is due."""

    rows: int
    cells: int
    prompt_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty when the request is admitted. `ttft_s` from now on, `itl_s` at worst. `late_s`: from now on to the first
    token if it is not admitted; `hopeless`: an idle engine would not admit it either."""

    reason: LateReason | Literal[""]
    ttft_s: float
    itl_s: float
    late_s: float = 0.0
    declined: bool = False
    hopeless: bool = False
    cached_tokens: int = 0


def judge(now_s: float, wish: Wish, burden: Burden, steps: StepModel, targets: Targets) -> Verdict:
    """Simulate what comes if `wish` is admitted."""
    itl_s = steps.decode_s(burden.rows + wish.rows, burden.cells + wish.cells)
    decode_s = steps.decode_s(burden.rows, burden.cells) if burden.rows else 0.0
    room_s, pass_s = targets.itl_s - decode_s, steps.prompt_s(1, 0)
    if burden.rows and room_s < pass_s:  # beside these streams no prompt is read
        room_s = 0.0
    split_s = max(0.0, 2 * pass_s - steps.prompt_s(2, 0))
    pace = _Pace(targets.itl_s, room_s, min(burden.spare_s, room_s), pass_s, split_s)
    mine = Prompt(wish.deadline_s, wish.prompt_s, wish.rows)
    ttft_s, late, waits, work_s, needed = 0.0, False, False, 0.0, 0
    for prompt in sorted([*burden.prompts, mine]):
        needed += prompt.seatless
        if prompt.seatless and needed > burden.free_slots:
            slot_s = _slot_s(burden, needed)
            work_s = max(work_s, pace.work_by(slot_s))
            waits = waits or prompt is mine
        work_s += prompt.prompt_s
        done_s = pace.done_s(work_s)
        late = late or now_s + done_s > prompt.deadline_s
        if prompt is mine:
            ttft_s = done_s
    if itl_s > targets.itl_s * (1 - LEAST_PROMPT_SHARE):
        return Verdict("slo_itl", ttft_s, itl_s)
    if late:
        return Verdict("slots" if waits else "slo_ttft", ttft_s, itl_s)
    return Verdict("", ttft_s, itl_s)


def _slot_s(burden: Burden, needed: int) -> float:
    """When so many slots are free, counting those that are now."""
    number = needed - burden.free_slots - 1
    return burden.endings_s[number] if number < len(burden.endings_s) else float("inf")


@dataclass(frozen=True, slots=True)
class _Pace:
    """Prompts and decode passes take turns: of every interval between two tokens, prompts have `room_s`, and of the one that runs
    `spare_s`."""

    interval_s: float
    room_s: float
    spare_s: float
    pass_s: float
    """What the smallest pass takes."""
    split_s: float
    """How much more two passes take than one with the same tokens."""

    def done_s(self, work_s: float) -> float:
        """When so much prompt time is done."""
        if self.room_s <= 0.0 or work_s == float("inf"):
            return float("inf")
        if work_s <= self.spare_s:
            return work_s
        decode_s = self.interval_s - self.room_s
        left_s = work_s - max(0.0, self.spare_s - self.split_s if self.spare_s >= self.pass_s else 0.0)
        return self.spare_s + decode_s + left_s + int(left_s / self.room_s) * decode_s

    def work_by(self, at_s: float) -> float:
        """How much prompt time has passed by then."""
        if self.room_s <= 0.0 or at_s == float("inf"):
            return float("inf")
        whole, rest_s = divmod(at_s, self.interval_s)
        return whole * self.room_s + min(rest_s, self.room_s)


class Bounds(NamedTuple):
    """What an idle node admits: tokens of a new prompt, and answers at a time, half-way through their context."""

    tokens: int
    streams: int


def admits(steps: StepModel, targets: Targets, *, slots: int, context_tokens: int, chunk: int) -> Bounds:
    """The bounds, as passes of `chunk` prompt tokens are predicted now."""
    low, high = 0, context_tokens
    while high - low > 1:
        middle = (low + high) // 2
        fits = steps.whole_prompt_s(middle, 0, chunk) <= targets.ttft_s
        low, high = (middle, high) if fits else (low, middle)
    depth, usable_s = context_tokens // 2, targets.itl_s * (1 - LEAST_PROMPT_SHARE)
    streams = (n for n in range(slots, 0, -1) if steps.decode_s(n, n * depth) <= usable_s)
    return Bounds(low, next(streams, 0))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an idle node admits, and the times behind it. Pairs are (new tokens, seconds) and (answers, seconds), answers half-way
    through a context."""

    bounds: Bounds
    prompt_s: list[tuple[int, float]]
    pass_s: list[tuple[int, float]]


def capacity(steps: StepModel, targets: Targets, *, slots: int, context_tokens: int, chunk: int) -> Capacity:
    """What an idle node admits within its targets, in passes of `chunk` prompt tokens."""
    bounds = admits(steps, targets, slots=slots, context_tokens=context_tokens, chunk=chunk)
    sizes = [n for n in _PROMPTS if n <= context_tokens]
    depth = context_tokens // 2
    passes = [(n, steps.decode_s(n, n * depth)) for n in range(1, slots + 1)]
    return Capacity(
        bounds=bounds,
        prompt_s=[(n, steps.whole_prompt_s(n, 0, chunk)) for n in sizes],
        pass_s=[(n, pass_s) for n, pass_s in passes if n & (n - 1) == 0 or n == slots],
    )
