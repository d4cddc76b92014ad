"""The step model: what it reads from a table, and what it learns from passes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.engine.steps import CHUNKS, TILE_ROWS, Kind, StepModel, StepTable

TABLE = StepTable(
    decode=[(1, 0.002), (4, 0.005), (8, 0.013)],
    prompt=[(1, 0.002), (16, 0.005), (64, 0.011), (256, 0.035)],
    decode_cell_s=1e-6,
    prompt_cell_s=[(1, 3e-7), (64, 1e-7)],
    restore_byte_s=1e-9,
)


def near(seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-9)


def test_times_lie_on_lines_between_measured_points_and_beyond_the_last_in_proportion() -> None:
    steps = StepModel(TABLE)
    assert steps.decode_s(1, 0) == near(0.002)
    assert steps.decode_s(2, 0) == near(0.003)
    assert steps.decode_s(6, 0) == near(0.009)
    assert steps.decode_s(16, 0) == near(0.026)
    assert steps.prompt_s(512, 0) == near(0.070)


def test_depth_costs_each_row_less_in_passes_that_fill_a_tile() -> None:
    steps = StepModel(TABLE)
    assert steps.decode_s(4, 1000) == near(0.005 + 0.001)
    assert steps.prompt_s(16, 1000) == near(0.005 + 16 * 1000 * 3e-7)
    assert steps.prompt_s(64, 1000) == near(0.011 + 64 * 1000 * 1e-7)


def test_a_table_without_costs_of_depth_has_none() -> None:
    flat = StepTable(TABLE.decode, TABLE.prompt, 0.0, [], 0.0)
    assert StepModel(flat).prompt_s(64, 100_000) == near(0.011)
    assert StepModel(flat).restore_s(1 << 30) == 0.0


def test_a_whole_prompt_is_the_sum_of_its_passes() -> None:
    steps = StepModel(TABLE)
    assert steps.whole_prompt_s(0, 10, 64) == 0.0
    assert steps.whole_prompt_s(64, 0, 64) == near(steps.prompt_s(64, 0))
    assert steps.whole_prompt_s(128 + 16, 0, 64) == near(
        steps.prompt_s(64, 0) + steps.prompt_s(64, 64) + steps.prompt_s(16, 128)
    )


def test_a_few_odd_passes_change_nothing_and_many_do() -> None:
    steps = StepModel(TABLE)
    for _ in range(7):
        steps.observe("decode", 1, 0, 0.020)
    assert steps.decode_s(1, 0) == near(0.002)
    steps.observe("decode", 1, 0, 0.020)
    assert steps.decode_s(1, 0) == near(0.016), "a ratio counts as 8 at most"


def test_a_promise_rests_on_slow_passes_and_an_estimate_on_the_median() -> None:
    steps = StepModel(TABLE)
    for number in range(100):
        steps.observe("prompt", 64, 0, 0.011 * (3 if number % 10 == 0 else 1))
    assert steps.prompt_s(64, 0) == near(0.033)
    assert steps.prompt_s(64, 0, safe=False) == near(0.011)


def test_what_passes_of_one_size_and_kind_took_says_nothing_of_others() -> None:
    steps = StepModel(TABLE)
    for _ in range(20):
        steps.observe("prompt", 64, 0, 0.022)
    assert steps.prompt_s(64, 0) == near(0.022)
    assert steps.prompt_s(16, 0) == near(0.005)
    assert steps.decode_s(4, 0) == near(0.005)


def test_a_slow_time_is_forgotten_when_it_is_over() -> None:
    steps = StepModel(TABLE)
    for factor in (4, 1):
        for _ in range(200):
            steps.observe("decode", 1, 0, 0.002 * factor)
    assert steps.decode_s(1, 0) == near(0.002)


def test_passes_far_slower_than_the_table_say_so() -> None:
    steps = StepModel(TABLE)
    assert not steps.strained("decode", 1)
    for _ in range(20):
        steps.observe("decode", 1, 0, 0.004)
    assert steps.strained("decode", 1) and not steps.strained("prompt", 1)


def test_rescaled_passes_are_judged_by_the_new_time_from_then_on() -> None:
    steps = StepModel(TABLE)
    for _ in range(20):
        steps.observe("prompt", 16, 0, 0.010)
    steps.rescale("prompt", 1.4)
    assert steps.prompt_s(16, 0) == near(0.007)
    assert steps.raw_s("prompt", 16, 0) == near(0.007)
    assert steps.decode_s(1, 0) == near(0.002)
    assert not steps.strained("prompt", 16)
    for _ in range(20):
        steps.observe("prompt", 16, 0, 0.007)
    assert steps.prompt_s(16, 0) == near(0.007)


def test_the_next_start_gets_the_times_as_they_turned_out() -> None:
    steps = StepModel(TABLE)
    for _ in range(20):
        steps.observe("decode", 1, 0, 0.003)
    steps.rescale("prompt", 2.0)
    again = StepModel(steps.corrected())
    assert again.decode_s(1, 0) == near(0.003)
    assert again.prompt_s(64, 0) == near(0.022)


def test_the_last_pass_of_a_prompt_is_left_a_tile() -> None:
    steps = StepModel(TABLE)
    budget_s = steps.prompt_s(128, 0)
    assert steps.largest_chunk(budget_s, 0, 130, 256) == 130 - TILE_ROWS
    assert steps.largest_chunk(budget_s, 0, 128 + TILE_ROWS, 256) == 128
    assert steps.largest_chunk(1.0, 0, 130, 256) == 130, "all of it fits in one pass"


PASSES = st.lists(st.tuples(st.sampled_from(["decode", "prompt"]), st.sampled_from(CHUNKS), st.floats(0.3, 6)))


@example(0.019, 0, 130, 256, [("prompt", 64, 6.0)])
@given(st.floats(0, 0.2), st.integers(0, 4000), st.integers(1, 1500), st.integers(1, 512), PASSES)
def test_no_chunk_takes_longer_than_its_budget(
    budget_s: float, start: int, wanted: int, most: int, passes: list[tuple[Kind, int, float]]
) -> None:
    steps = StepModel(TABLE)
    for kind, rows, factor in passes:
        for _ in range(8):
            steps.observe(kind, rows, 0, steps.raw_s(kind, rows, 0) * factor)
    count = steps.largest_chunk(budget_s, start, wanted, most)
    assert 0 <= count <= min(wanted, most)
    if count:
        assert steps.prompt_s(count, start) <= budget_s
    else:
        assert all(steps.prompt_s(n, start) > budget_s for n in CHUNKS if n < wanted and n <= most)


@given(st.integers(1, 4000), st.integers(0, 4000))
def test_a_prompt_begins_where_it_is_done_first_and_never_behind_what_is_known(tokens: int, known: int) -> None:
    known = min(known, tokens - 1)
    steps = StepModel(TABLE)
    start = steps.best_start(tokens, known)
    assert 0 <= start <= known
    assert steps.prompt_s(tokens - start, start, safe=False) <= steps.prompt_s(tokens - known, known, safe=False)


def test_a_few_known_tokens_are_computed_again_where_that_fills_a_tile_and_is_faster() -> None:
    assert StepModel(TABLE).best_start(2000, 1970) == 2000 - TILE_ROWS
    assert StepModel(TABLE).best_start(2000, 1999) == 1999, "one row alone is faster still"
    assert StepModel(TABLE).best_start(2000, 500) == 500


def test_when_the_clocks_change_old_passes_are_forgotten_as_new_ones_come() -> None:
    steps = StepModel(TABLE)
    for _ in range(128):
        steps.observe("decode", 1, 0, 0.008)
    assert steps.decode_s(1, 0) == near(0.008)
    steps.clocks_changed()
    assert steps.decode_s(1, 0) == near(0.008), "until something is known of the new speed the old one holds"
    for _ in range(8):
        steps.observe("decode", 1, 0, 0.002)
    assert steps.decode_s(1, 0) == near(0.002), "eight passes, and not 128"


def test_a_slowdown_is_seen_sooner_once_the_clocks_are_known_to_have_changed() -> None:
    slow, told = StepModel(TABLE), StepModel(TABLE)
    for steps in (slow, told):
        for _ in range(128):
            steps.observe("decode", 1, 0, 0.002)
    told.clocks_changed()
    for steps in (slow, told):
        for _ in range(5):
            steps.observe("decode", 1, 0, 0.006)
    assert slow.decode_s(1, 0, safe=False) == near(0.002)
    assert told.decode_s(1, 0, safe=False) == near(0.006)


def test_clocks_that_change_again_at_once_keep_what_little_is_known() -> None:
    steps = StepModel(TABLE)
    for _ in range(8):
        steps.observe("decode", 1, 0, 0.008)
    for _ in range(3):
        steps.clocks_changed()
        steps.observe("decode", 1, 0, 0.008)
    assert steps.decode_s(1, 0) == near(0.008)


def test_a_table_that_was_measured_beside_others_is_put_right_by_an_idle_engine() -> None:
    model = StepModel(TABLE)
    before_s = model.decode_s(1, 0)
    for ratio in (0.5, 0.4, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5):
        model.proved("decode", ratio)
    assert model.decode_s(1, 0) == before_s, "one of them took as long as the table says"
    for _ in range(4):
        model.proved("decode", 0.5)
    assert model.decode_s(1, 0) == pytest.approx(before_s * 0.5)


def test_slow_times_that_are_doubted_fade_to_what_passes_take_now_and_no_further() -> None:
    model = StepModel(TABLE)
    for _ in range(200):
        model.observe("prompt", 10, 0, model.raw_s("prompt", 10, 0) * 3)
        model.observe("decode", 1, 0, model.raw_s("decode", 1, 0) * 1.1)
    decode_s = model.decode_s(1, 0)
    for _ in range(50):
        model.doubt(1.5)
    assert model.prompt_s(10, 0) == pytest.approx(model.raw_s("prompt", 10, 0) * 1.5)
    assert model.decode_s(1, 0) == decode_s


def test_what_writing_tokens_takes_counts_for_each_row_and_an_interruption_for_little() -> None:
    model = StepModel(TABLE)
    plain_s = model.decode_s(8, 0)
    for _ in range(200):
        model.wrote(8, 8 * 0.0008)
    assert model.decode_s(8, 0) == pytest.approx(plain_s + 8 * 0.0008, rel=1e-3)
    model.wrote(1, 0.5)
    assert model.decode_s(8, 0) < plain_s + 8 * 0.0009
