"""Whether a request that arrives now will meet its targets, and those that were admitted before still theirs. Pure.

The coming steps are simulated by arithmetic: decode rows take their part of every interval between two tokens, prompts get
what is left, in the order of their deadlines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Burden:
    """What was admitted before and is not done. Cells are counted as they will be at each answer's end."""

    rows: int
    cells: int
    prompts_s: Iterable[tuple[float, float]]
    """(deadline, prompt time still to come) of each request whose first token is due."""
    free_slots: int


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
    rows, cells = burden.rows + wish.rows, burden.cells + wish.cells
    itl_s = steps.decode_s(rows, cells)
    room_s = targets.itl_s - steps.decode_s(burden.rows, burden.cells) if burden.rows else targets.itl_s
    queue = sorted([*burden.prompts_s, (wish.deadline_s, wish.prompt_s)])
    ttft_s, late = 0.0, False
    for (deadline_s, _), done_s in zip(queue, _finish_times(queue, room_s, targets.itl_s), strict=True):
        late = late or now_s + done_s > deadline_s
        if deadline_s == wish.deadline_s:
            ttft_s = done_s
    if burden.free_slots < wish.rows:
        return Verdict("slots", ttft_s, itl_s)
    if itl_s > targets.itl_s * (1 - LEAST_PROMPT_SHARE):
        return Verdict("slo_itl", ttft_s, itl_s)
    return Verdict("slo_ttft" if late else "", ttft_s, itl_s)


def _finish_times(queue: list[tuple[float, float]], room_s: float, interval_s: float) -> Iterable[float]:
    """When each prompt is done, if every interval has `room_s` for prompts and decode rows take the rest of it."""
    work_s = 0.0
    for _, prompt_s in queue:
        work_s += prompt_s
        if room_s <= 0.0:
            yield float("inf")
        else:
            yield work_s + int(work_s / room_s) * (interval_s - room_s)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an idle node admits. Pairs are (new tokens, seconds) and (answers, seconds), answers half-way through a context."""

    tokens: int
    streams: int
    prompt_s: list[tuple[int, float]]
    pass_s: list[tuple[int, float]]


def capacity(steps: StepModel, targets: Targets, *, slots: int, context_tokens: int, chunk: int) -> Capacity:
    """What an idle node admits within its targets, in passes of `chunk` prompt tokens."""
    low, high = 0, context_tokens
    while high - low > 1:
        middle = (low + high) // 2
        fits = steps.whole_prompt_s(middle, 0, chunk) <= targets.ttft_s
        low, high = (middle, high) if fits else (low, middle)
    sizes = [n for n in _PROMPTS if n <= context_tokens]
    depth = context_tokens // 2
    passes = [(n, steps.decode_s(n, n * depth)) for n in range(1, slots + 1)]
    usable_s = targets.itl_s * (1 - LEAST_PROMPT_SHARE)
    return Capacity(
        tokens=low,
        streams=max((n for n, pass_s in passes if pass_s <= usable_s), default=0),
        prompt_s=[(n, steps.whole_prompt_s(n, 0, chunk)) for n in sizes],
        pass_s=[(n, pass_s) for n, pass_s in passes if n & (n - 1) == 0 or n == slots],
    )
