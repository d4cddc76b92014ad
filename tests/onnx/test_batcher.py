"""Which texts make the next pass."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from edge.onnx.batcher import ROW_BUCKETS, Batch, Batcher, Costs, Room, Row, Wait, length_bucket

COSTS = st.builds(Costs, st.floats(0, 0.005), st.floats(1e-7, 2e-4), st.floats(0, 1e-7), spans=st.booleans())
LENGTHS = st.lists(st.integers(1, 512).map(lambda n: length_bucket(n, 512)) | st.just(0), min_size=1, max_size=40)
STEPS = st.lists(st.tuples(LENGTHS, st.floats(0, 0.05)), min_size=1, max_size=8)


ALONE = Room(1, 4096)


def batcher(
    costs: Costs, *, slo_s: float = 0.05, most_rows: int = 32, most_cells: int = 4096, lanes: int = 1
) -> Batcher:
    return Batcher(costs, slo_s=slo_s, most_rows=most_rows, most_cells=most_cells, lanes=lanes)


def drained(queue: Batcher, now_s: float) -> list[tuple[float, Batch]]:
    """All passes until nothing is left; waits are waited."""
    passes = []
    for _ in range(10_000):
        step = queue.next(now_s)
        if isinstance(step, Wait):
            if step.until_s is None:
                return passes
            assert step.until_s > now_s, "a wait that is over already would spin"
            now_s = step.until_s
        else:
            passes.append((now_s, step))
    raise AssertionError("it never ends")


@given(COSTS, STEPS, st.integers(1, 32), st.integers(1, 20_000))
def test_every_text_is_computed_once_in_a_pass_that_holds_it(
    costs: Costs, steps: list[tuple[list[int], float]], most_rows: int, most_cells: int
) -> None:
    queue = batcher(costs, most_rows=most_rows, most_cells=most_cells)
    wanted, now_s, passes = set(), 0.0, []
    for number, (lengths, pause_s) in enumerate(steps):
        queue.add(number, lengths, now_s)
        wanted |= {(number, index) for index in range(len(lengths))}
        now_s += pause_s
        step = queue.next(now_s)
        passes += [step] if isinstance(step, Batch) else []
    passes += [batch for _, batch in drained(queue, now_s)]
    done = [(row.request_id, row.index) for batch in passes for row in batch.members]
    assert sorted(done) == sorted(wanted)
    for batch in passes:
        assert 1 <= len(batch.members) <= batch.rows and batch.rows in ROW_BUCKETS
        assert batch.length == max(row.length for row in batch.members)
        assert batch.rows == 1 or (batch.rows <= most_rows and batch.rows * batch.length <= most_cells)
        if batch.length == 0:
            assert len(batch.members) == 1, "tensors are a pass by themselves"
        else:
            assert min(row.length for row in batch.members) >= 0.5 * batch.length, (
                "no text is filled up with much nothing"
            )


@given(COSTS, LENGTHS)
def test_no_pass_but_a_single_text_takes_more_than_its_share_of_the_target(costs: Costs, lengths: list[int]) -> None:
    queue = batcher(costs)
    queue.add(1, lengths, 0.0)
    for _, batch in drained(queue, 0.0):
        most_s = 0.1 if batch.rows <= 4 else 0.03
        assert batch.rows == 1 or costs.pass_s(batch.rows, batch.length) <= most_s + 1e-9


@given(COSTS, STEPS)
def test_who_must_be_answered_first_is_in_the_next_pass(costs: Costs, steps: list[tuple[list[int], float]]) -> None:
    queue = batcher(costs)
    for number, (lengths, pause_s) in enumerate(steps):
        queue.add(number, lengths, number * pause_s)
    left: dict[tuple[int, int], Row] = {(row.request_id, row.index): row for row in queue.waiting}
    for _, batch in drained(queue, 1.0):
        first = min(left.values(), key=lambda row: (row.deadline_s, row.request_id, row.index))
        assert first in batch.members
        for row in batch.members:
            del left[row.request_id, row.index]


def test_a_sentence_overtakes_the_rest_of_a_long_list_and_the_list_is_not_starved() -> None:
    queue = batcher(Costs(0.0, 2e-4, 0.0))  # 16 tokens: 3.2 ms
    queue.add(1, [16] * 200, 0.0)
    queue.add(2, [16], 0.1)
    first = queue.next(0.1)
    assert isinstance(first, Batch) and {row.request_id for row in first.members} == {1}, (
        "the list waits longer than that"
    )
    order: list[int] = []
    now_s = 0.1
    for number in itertools.count(3):
        queue.add(number, [16] * 8, now_s)  # as much new work as there is time for
        step = queue.next(now_s)
        if isinstance(step, Wait):
            break
        order += [row.request_id for row in step.members]
        now_s += 0.026
        if order.count(1) >= 190:
            break
    assert 2 in order[:40]
    assert order.count(1) >= 190


def test_a_lone_client_is_never_made_to_wait_for_company() -> None:
    queue = batcher(Costs(0.001, 1e-5, 0.0))
    for number in range(20):
        queue.add(number, [16], float(number))
        assert isinstance(queue.next(float(number)), Batch)


def test_clients_that_come_together_are_gathered_within_the_slack() -> None:
    queue = batcher(Costs(0.004, 1e-4, 0.0))
    for number in range(4):
        queue.add(number, [16], 0.0)
    assert isinstance(queue.next(0.0), Batch)
    queue.add(10, [16], 1.0)
    step = queue.next(1.0)
    assert isinstance(step, Wait) and step.until_s is not None
    assert 1.0 < step.until_s < 1.0 + 0.05
    queue.add(11, [16], 1.0)
    queue.add(12, [16], 1.0)
    queue.add(13, [16], 1.0)
    step = queue.next(1.0)
    assert isinstance(step, Batch) and len(step.members) == 4


def test_what_nobody_waits_for_is_not_computed() -> None:
    queue = batcher(Costs(0.001, 1e-5, 0.0))
    queue.add(1, [16] * 5, 0.0)
    queue.add(2, [16], 0.0)
    queue.drop(1)
    assert [row.request_id for _, batch in drained(queue, 0.0) for row in batch.members] == [2]


@given(st.floats(1e-4, 0.01), st.floats(1e-6, 1e-4), st.floats(0, 1e-7), st.integers(2, 32))
def test_costs_are_found_again_from_three_passes(base_s: float, token_s: float, square_s: float, rows: int) -> None:
    true = Costs(base_s, token_s, square_s)
    found = Costs.measured(16, 256, rows, true.pass_s(1, 16), true.pass_s(rows, 16), true.pass_s(1, 256))
    for r, length in ((1, 16), (8, 64), (32, 128), (2, 256)):
        assert abs(found.pass_s(r, length) - true.pass_s(r, length)) <= 0.05 * true.pass_s(r, length) + 1e-6


def test_where_attention_spans_the_pass_texts_cost_as_much_as_one_of_their_length() -> None:
    costs = Costs(0.001, 1e-5, 1e-7, spans=True)
    assert costs.pass_s(8, 64) == costs.pass_s(1, 512) > Costs(0.001, 1e-5, 1e-7).pass_s(8, 64)


def test_passes_that_take_longer_than_foreseen_make_the_next_ones_smaller() -> None:
    costs = Costs(0.0, 1e-4, 0.0)
    queue = batcher(costs)
    assert queue.most_rows(16, ALONE) == 16
    for _ in range(50):
        costs.took(8, 16, 5 * 8 * 16 * 1e-4)
    assert queue.most_rows(16, ALONE) == 4, "but not so small that they do less in the same time"


@given(COSTS, LENGTHS, st.integers(1, 4), st.integers(512, 20_000), st.randoms(use_true_random=False))
def test_passes_that_run_together_have_memory_for_all_of_them_and_nothing_is_forgotten(
    costs: Costs, lengths: list[int], lanes: int, most_cells: int, chance: random.Random
) -> None:
    queue = batcher(costs, most_cells=most_cells, lanes=lanes)
    queue.add(1, lengths, 0.0)
    running: list[Batch] = []
    done = []
    while len(queue) or running:
        step = queue.next(1.0, len(running), sum(batch.rows * batch.length for batch in running))
        if isinstance(step, Batch) and not step.length:
            assert not running, "tensors have the model for themselves"
            done += [row.index for row in step.members]
        elif isinstance(step, Batch):
            running.append(step)
            assert len(running) <= lanes
            assert sum(batch.rows * batch.length for batch in running) <= most_cells
        else:
            assert running, "nothing runs, something waits, and nothing is begun"
            done += [row.index for row in running.pop(chance.randrange(len(running))).members]
    assert sorted(done) == list(range(len(lengths)))


def test_passes_that_share_the_processor_are_as_much_smaller() -> None:
    """Each takes twice as long beside another, and who comes then waits for one of them."""
    costs = Costs(0.0, 1e-4, 0.0)
    queue = batcher(costs, lanes=2)
    queue.add(1, [16] * 100, 0.0)
    first = queue.next(0.0)
    assert isinstance(first, Batch) and first.rows == 8
    second = queue.next(0.0, 1, first.rows * first.length)
    assert isinstance(second, Batch) and second.rows == 8
    assert queue.next(0.0, 2, 2 * first.rows * first.length) == Wait(None)


def test_what_one_pass_can_take_is_not_cut_in_two() -> None:
    queue = batcher(Costs(0.0, 1e-4, 0.0), lanes=2)
    queue.add(1, [16] * 16, 0.0)
    step = queue.next(0.0)
    assert isinstance(step, Batch) and step.rows == 16


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_lengths_are_filled_up_a_little_and_never_beyond_what_the_model_reads(tokens: int, most: int) -> None:
    tokens = min(tokens, most)
    bucket = length_bucket(tokens, most)
    assert tokens <= bucket <= most
    assert bucket <= max(tokens * 1.25, tokens + 8)
