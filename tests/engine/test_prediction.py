"""How good the predictions behind admission are, on the scheduler itself in simulated time: what is admitted keeps its targets,
and what is turned away would not have."""

import copy
import itertools
import random
from collections.abc import Iterator

import pytest

from edge.engine.steps import StepTable
from tests.engine.test_scheduler import ITL_S, TABLE, TOKEN_S, TTFT_S, Machine, make_request

SLOTS, TOKENS = 8, 24
MARGIN = 1 / 0.9
"""What is promised lies so much above what the engine aims at (edge.loading)."""
ARRIVALS = 400
WORK_S = 0.0141
"""What one request of this mix takes of the engine where eight run together: so many seconds apart the box is just saturated."""


def arrivals(load: float, seed: int) -> Iterator[tuple[float, list[int]]]:
    """(time, prompt) of a mixed load: a shared beginning of 30 tokens, every fifth prompt is long."""
    chance, at_s = random.Random(seed), 0.0
    for number in range(ARRIVALS):
        at_s += chance.expovariate(load / WORK_S)
        own = 60 if number % 5 == 4 else chance.randrange(2, 14)
        yield at_s, [*range(30), *(1000 * (number + 1) + n for n in range(own))]


def kept(machine: Machine, number: int, arrived_s: float, margin: float = 1.0) -> bool:
    """Whether an answer came within both targets, widened by a margin."""
    times = machine.emitted[number]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return max((times[0] - arrived_s) / TTFT_S, *(gap / ITL_S for gap in gaps)) <= margin + 1e-9


def would_have_been_kept(
    machine: Machine, number: int, at_s: float, prompt: list[int], arrived: dict[int, float]
) -> bool:
    """The same moment once more, with the request admitted and nobody after it: are all promises kept?"""
    fork = copy.deepcopy(machine)
    request = make_request(number, prompt, limit=TOKENS, at_s=at_s)
    request.admitted = True
    fork.scheduler._seating.queue(request)
    fork.run()
    return all(kept(fork, n, s) for n, s in {**arrived, number: at_s}.items())


@pytest.mark.parametrize("load", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_predictions_hold_in_both_directions(load: float) -> None:
    machine = Machine(slots=SLOTS)
    prompts: dict[int, int] = {}
    arrived: dict[int, float] = {}
    away = wrongly = 0
    for number, (at_s, prompt) in enumerate(arrivals(load, seed=7), start=1):
        while machine.now_s < at_s and not machine.scheduler.idle:
            machine.step()
        machine.now_s = max(machine.now_s, at_s)
        request = machine.add(make_request(number, prompt, limit=TOKENS, at_s=at_s, late="decline"))
        prompts[number] = len(prompt) - 30  # the beginning is known
        if request.admitted:
            arrived[number] = at_s
        else:
            away += 1
            wrongly += would_have_been_kept(machine, number, at_s, prompt, arrived)
    machine.run()
    missed = [n for n, s in arrived.items() if not kept(machine, n, s, MARGIN)]
    assert len(missed) <= 0.01 * len(arrived), f"{len(missed)} of {len(arrived)} admitted missed their targets"
    assert wrongly <= max(1, 0.1 * away), f"{wrongly} of {away} turned away would have been in time"
    if load >= 2:
        own = sum(prompts[n] * TOKEN_S for n in arrived)
        ideal_s = own + len(arrived) * TOKENS * TABLE.decode[-1][1] / SLOTS
        assert ideal_s >= 0.9 * machine.now_s, "an ideal schedule would have served more than a ninth more of these"


@pytest.mark.parametrize("seed", range(40))
def test_promises_hold_on_any_machine_for_any_mix(seed: int) -> None:
    """Passes from very short ones to those that take most of an interval, targets from tight to wide, prompts of any length."""
    chance = random.Random(seed)
    row_s, more_s, token_s = chance.uniform(0.001, 0.04), chance.uniform(0.0002, 0.003), chance.uniform(0.0001, 0.002)
    pass_s = row_s * chance.uniform(0.8, 1.2)
    table = StepTable(
        [(1, row_s), (8, row_s + 7 * more_s)], [(1, pass_s), (1024, pass_s + 1023 * token_s)], 0.0, [], 0.0
    )
    ttft_s = chance.choice([0.05, 0.2, 0.5])
    machine = Machine(slots=chance.choice([2, 4, 8]), table=table, ttft_s=ttft_s)
    at_s, promised = 0.0, dict[int, float]()
    for number in range(1, 40):
        at_s += chance.expovariate(1 / chance.choice([0.02, 0.1, 0.3]))
        while machine.now_s < at_s and not machine.scheduler.idle:
            machine.step()
        machine.now_s = max(machine.now_s, at_s)
        prompt, answers, limit = chance.choice([3, 10, 40, 200]), chance.choice([1, 1, 1, 2]), chance.randrange(1, 40)
        request = machine.add(make_request(number, prompt, answers=answers, limit=limit, at_s=at_s))
        if request.admitted and answers == 1:
            promised[number] = at_s
    machine.run()
    for number, arrived_s in promised.items():
        times = machine.emitted[number]
        assert times[0] - arrived_s <= ttft_s * MARGIN
        assert all(b - a <= ITL_S * MARGIN for a, b in itertools.pairwise(times))
