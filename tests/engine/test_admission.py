"""Admission by simulation: what it lets in meets the targets by its own account, and more load never helps anybody."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engine.admission import LEAST_PROMPT_SHARE, Burden, Prompt, Targets, Wish, admits, capacity, judge
from edge.engine.prefix import PrefixCache
from edge.engine.scheduler import Scheduler
from edge.engine.steps import StepModel, StepTable
from tests.engine.test_scheduler import make_request

TARGETS = Targets(0.050, 0.050)
STEPS = StepModel(StepTable([(1, 0.002), (8, 0.016)], [(1, 0.002), (64, 0.016), (256, 0.060)], 2e-6, [(1, 1e-7)], 0.0))
IDLE = Burden(rows=0, cells=0, prompts=[], free_slots=8)
NOW_S = 100.0

pending = st.builds(Prompt, st.floats(NOW_S - 0.01, NOW_S + 0.1), st.floats(0, 0.05), st.integers(0, 2))
prompts = st.lists(pending, max_size=6)
burdens = st.builds(
    Burden,
    rows=st.integers(0, 8),
    cells=st.integers(0, 8000),
    prompts=prompts,
    free_slots=st.integers(0, 8),
    endings_s=st.lists(st.floats(0, 0.2), max_size=8).map(sorted),
)
wishes = st.builds(
    Wish,
    rows=st.integers(1, 4),
    cells=st.integers(0, 4000),
    prompt_s=st.floats(0, 0.08),
    deadline_s=st.floats(NOW_S, NOW_S + 0.06),
)


def wish(**changes: Any) -> Wish:
    return replace(Wish(rows=1, cells=100, prompt_s=0.010, deadline_s=NOW_S + 0.050), **changes)


def reason(asked: Wish, burden: Burden) -> str:
    return judge(NOW_S, asked, burden, STEPS, TARGETS).reason


def test_an_idle_node_admits_what_fits() -> None:
    assert reason(wish(), IDLE) == ""
    assert reason(wish(prompt_s=0.049), IDLE) == ""
    assert reason(wish(prompt_s=0.051), IDLE) == "slo_ttft"


def test_time_that_has_passed_already_counts() -> None:
    assert reason(wish(deadline_s=NOW_S + 0.009), IDLE) == "slo_ttft"


def test_nobody_is_admitted_without_a_slot() -> None:
    assert reason(wish(), replace(IDLE, free_slots=0)) == "slots"
    assert reason(wish(rows=3), replace(IDLE, free_slots=2)) == "slots"


def test_who_gets_a_slot_in_time_from_an_answer_that_ends_is_admitted() -> None:
    full = replace(IDLE, rows=4, cells=100, free_slots=0)
    assert reason(wish(), replace(full, endings_s=[0.020])) == ""
    assert reason(wish(), replace(full, endings_s=[0.045])) == "slots"
    assert reason(wish(rows=2), replace(full, endings_s=[0.020])) == "slots"
    assert reason(wish(rows=2), replace(full, endings_s=[0.020, 0.021])) == ""
    before = [Prompt(NOW_S + 0.040, 0.001, seatless=1)]
    assert reason(wish(), replace(full, endings_s=[0.020], prompts=before)) == "slots", "another waits for it"


def test_nobody_is_admitted_who_would_slow_the_running_streams_too_much() -> None:
    assert reason(wish(), replace(IDLE, rows=7, cells=2000)) == ""
    assert reason(wish(), replace(IDLE, rows=7, cells=20_000)) == "slo_itl"


def test_nobody_is_admitted_who_would_make_an_admitted_prompt_late() -> None:
    waiting = replace(IDLE, rows=1, prompts=[Prompt(NOW_S + 0.045, 0.040)])
    assert reason(wish(prompt_s=0.002), waiting) == ""
    assert reason(wish(prompt_s=0.010, deadline_s=NOW_S + 0.03), waiting) == "slo_ttft"


def test_a_prompt_beside_streams_has_only_the_time_that_they_leave() -> None:
    streams = replace(IDLE, rows=4, cells=10_000)  # a pass of 28 ms: 22 ms of every 50 are left
    assert reason(wish(prompt_s=0.020), streams) == ""
    assert reason(wish(prompt_s=0.024), streams) == "slo_ttft"
    assert reason(wish(prompt_s=0.024), IDLE) == ""


@given(wishes, burdens)
def test_what_is_admitted_fits_by_the_simulation_that_admitted_it(asked: Wish, burden: Burden) -> None:
    verdict = judge(NOW_S, asked, burden, STEPS, TARGETS)
    if not verdict.reason:
        assert NOW_S + verdict.ttft_s <= asked.deadline_s
        assert verdict.itl_s <= TARGETS.itl_s * (1 - LEAST_PROMPT_SHARE)
        assert burden.free_slots + len(burden.endings_s) >= asked.rows
        assert verdict.ttft_s >= asked.prompt_s


@given(wishes, burdens, st.integers(0, 3), st.integers(0, 2000), prompts, st.integers(0, 3))
def test_more_load_never_turns_a_refusal_into_an_admission(
    asked: Wish, burden: Burden, rows: int, cells: int, more: list[Prompt], taken: int
) -> None:
    heavier = Burden(
        burden.rows + rows,
        burden.cells + cells,
        [*burden.prompts, *more],
        max(0, burden.free_slots - taken),
        burden.endings_s,
    )
    if reason(asked, burden):
        assert reason(asked, heavier)


@given(wishes, burdens, st.integers(0, 2), st.integers(0, 2000), st.floats(0, 0.05))
def test_asking_for_more_never_turns_a_refusal_into_an_admission(
    asked: Wish, burden: Burden, rows: int, cells: int, prompt_s: float
) -> None:
    larger = Wish(asked.rows + rows, asked.cells + cells, asked.prompt_s + prompt_s, asked.deadline_s)
    if reason(asked, burden):
        assert reason(larger, burden)


def test_capacity_is_what_fits_the_targets() -> None:
    found = capacity(STEPS, TARGETS, slots=8, context_tokens=2048, chunk=64)
    tokens, streams = found.bounds
    assert STEPS.whole_prompt_s(tokens, 0, 64) <= TARGETS.ttft_s < STEPS.whole_prompt_s(tokens + 1, 0, 64)
    usable_s = TARGETS.itl_s * (1 - LEAST_PROMPT_SHARE)
    assert STEPS.decode_s(streams, streams * 1024) <= usable_s
    assert streams == 8 or STEPS.decode_s(streams + 1, (streams + 1) * 1024) > usable_s


@pytest.mark.parametrize("context_tokens", [64, 2048])
def test_capacity_knows_the_context_and_a_model_too_slow_for_anything(context_tokens: int) -> None:
    fast = StepModel(StepTable([(1, 1e-5)], [(1, 1e-5)], 0.0, [], 0.0))
    slow = StepModel(StepTable([(1, 0.2)], [(1, 0.2)], 0.0, [], 0.0))
    found = capacity(fast, TARGETS, slots=3, context_tokens=context_tokens, chunk=64)
    assert found.bounds == (context_tokens - 1, 3)
    assert [n for n, _ in found.prompt_s] == [n for n in (16, 64, 256, 512, 1024, 2048) if n <= context_tokens]
    assert [n for n, _ in found.pass_s] == [1, 2, 3]
    found = capacity(slow, TARGETS, slots=3, context_tokens=context_tokens, chunk=64)
    assert found.bounds == (0, 0)


def test_an_idle_engine_admits_prompts_up_to_its_capacity_and_no_longer_ones() -> None:
    scheduler = Scheduler(
        slots=8,
        steps=STEPS,
        cache=PrefixCache(cap_bytes=0, isolated=False),
        targets=TARGETS,
        chunk_tokens=256,
        copies_sequences=True,
        cell_bytes=1,
    )
    tokens = scheduler.admits(2048).tokens
    assert 1 < tokens < 2047
    assert not scheduler.judge(make_request(1, tokens, limit=1, at_s=NOW_S), NOW_S).reason
    assert scheduler.judge(make_request(1, tokens + 1, limit=1, at_s=NOW_S), NOW_S).reason == "slo_ttft"


def test_bounds_follow_what_passes_take_lately() -> None:
    steps = StepModel(STEPS.table)
    bounds = {"slots": 8, "context_tokens": 2048, "chunk": 64}
    before = admits(steps, TARGETS, **bounds)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(20):
            steps.observe("prompt", rows, 0, 2 * steps.raw_s("prompt", rows, 0))
            steps.observe("decode", rows, 0, 3 * steps.raw_s("decode", rows, 0))
    after = admits(steps, TARGETS, **bounds)
    assert 0 < after.tokens < 0.6 * before.tokens and after.streams < before.streams
