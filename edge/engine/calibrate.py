"""How many CPU threads a step should use: measured at load on the real context, judged by the slow steps, not the mean.

A small model gains nothing from a second thread and loses much when somebody else wants that core: every operator ends in a
barrier that waits for a thread which may not be running (docs/adr/0002-threads-on-small-boxes.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edge.engine.llama.context import Context
from edge.engine.threads import fewest_worth

CALIBRATION_CHUNK = 64
"""Prompt tokens of the passes by which threads are judged."""
_ROUNDS = 15
_BUDGET_S = 1.5
_LEAST_ROUNDS = 3
_HOPELESS = 4
"""Threads whose first step takes this many times longer than one thread's are not tried again: the cores are taken."""
_LARGE_STEP_S = 0.25
"""A model this slow on all cores is no question: it takes them all."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads for a step of decode rows, and for one of prompt tokens."""

    decode: int
    prefill: int


def thread_candidates(cores: int) -> list[int]:
    """Thread counts that are worth a trial on this many cores."""
    return sorted({1, max(1, cores - 1), cores})


def choose_threads(context: Context, cores: int, chunk_tokens: int) -> Threads:
    """Measure decode steps and prompt chunks in free slots with 1, cores-1 and cores threads. Takes at most about 3 s."""
    candidates = thread_candidates(cores)
    if len(candidates) == 1:
        return Threads(cores, cores)
    rows = min(4, context.shape.slots)
    slots = list(range(rows))

    def decode() -> None:
        context.forward([0] * rows, [0] * rows, slots, [True] * rows)
        for slot in slots:
            context.forget(slot)

    def prefill() -> None:
        context.forward([0] * chunk_tokens, range(chunk_tokens), [0] * chunk_tokens, [False] * chunk_tokens)
        context.forget(0)

    return Threads(_fewest(context, candidates, decode), _fewest(context, candidates, prefill))


def _fewest(context: Context, candidates: list[int], step: Callable[[], None]) -> int:
    """The fewest threads that are worth it, by the 90th percentile of steps taken in turns."""
    times: dict[int, list[float]] = {n: [] for n in candidates}
    deadline = time.monotonic() + _BUDGET_S
    for number in range(_ROUNDS):
        for threads in list(times):
            times[threads].append(_timed(context, threads, step))
        if number == 0:
            if times[candidates[-1]][0] > _LARGE_STEP_S and times[candidates[0]][0] > _LARGE_STEP_S:
                return candidates[-1]
            times = {n: [] for n, taken in times.items() if taken[0] < times[1][0] * _HOPELESS}  # graphs were built
        elif number >= _LEAST_ROUNDS and time.monotonic() > deadline:
            break
    return fewest_worth({n: sorted(taken)[len(taken) * 9 // 10] for n, taken in times.items()})


def _timed(context: Context, threads: int, step: Callable[[], None]) -> float:
    context.use_threads(threads)
    begun = time.monotonic()
    step()
    return time.monotonic() - begun
