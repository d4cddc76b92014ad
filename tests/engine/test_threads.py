"""Thread counts judged while running: the fewest that do, whoever else wants the cores."""

from edge.engine.threads import ThreadChoice


def seen(choice: ThreadChoice, ratios: dict[int, float], times: int = 4) -> float | None:
    """Trials of every count by turns, then the decision."""
    for _ in range(times):
        for threads, ratio in ratios.items():
            choice.tried("decode", threads, ratio)
    return choice.decide("decode")


def test_a_thread_more_must_be_worth_a_core() -> None:
    choice = ThreadChoice(decode=1, prompt=1, candidates=[1, 2])
    assert seen(choice, {1: 1.0, 2: 0.9}) is None
    assert choice.of("decode") == 1
    choice = ThreadChoice(decode=1, prompt=1, candidates=[1, 2])
    assert seen(choice, {1: 1.0, 2: 0.6}) == 0.6
    assert choice.of("decode") == 2


def test_fewer_threads_are_taken_where_more_bring_little() -> None:
    choice = ThreadChoice(decode=2, prompt=2, candidates=[1, 2])
    assert seen(choice, {1: 1.1, 2: 1.0}) == 1.1
    assert choice.of("decode") == 1


def test_a_count_between_is_found_too() -> None:
    choice = ThreadChoice(decode=1, prompt=1, candidates=[1, 3, 4])
    assert seen(choice, {1: 1.0, 3: 0.4, 4: 0.39}) == 0.4
    assert choice.of("decode") == 3


def test_nothing_is_decided_before_every_count_was_tried_often_enough() -> None:
    choice = ThreadChoice(decode=2, prompt=2, candidates=[1, 2])
    assert seen(choice, {1: 0.1, 2: 1.0}, times=3) is None
    for _ in range(20):
        choice.tried("decode", 1, 0.1)
    assert choice.decide("decode") is None
    assert choice.of("decode") == 2


def test_one_slow_trial_decides_nothing() -> None:
    choice = ThreadChoice(decode=2, prompt=2, candidates=[1, 2])
    choice.tried("decode", 2, 20.0)
    assert seen(choice, {1: 1.6, 2: 1.0}, times=6) is None


def test_a_neighbour_that_comes_and_goes_is_followed() -> None:
    choice = ThreadChoice(decode=2, prompt=2, candidates=[1, 2])
    assert seen(choice, {1: 1.6, 2: 5.0}, times=8) == 1.6
    assert choice.of("decode") == 1
    assert seen(choice, {1: 1.0, 2: 0.6}, times=8) == 0.6
    assert choice.of("decode") == 2


def test_kinds_are_judged_apart() -> None:
    choice = ThreadChoice(decode=2, prompt=2, candidates=[1, 2])
    seen(choice, {1: 1.0, 2: 5.0})
    assert (choice.of("decode"), choice.of("prompt")) == (1, 2)
    assert choice.decide("prompt") is None


def test_passes_under_strain_try_the_other_counts_now_and_then() -> None:
    choice = ThreadChoice(decode=4, prompt=4, candidates=[1, 3, 4])
    used = [choice.for_pass("decode", strained=True) for _ in range(80)]
    assert set(used) == {1, 3, 4}
    assert used.count(4) == 60
    assert {choice.for_pass("decode", strained=False) for _ in range(20)} == {4}


def test_where_there_is_nothing_to_choose_nothing_is_tried() -> None:
    choice = ThreadChoice(decode=6, prompt=6, candidates=[6])
    assert {choice.for_pass("prompt", strained=True) for _ in range(20)} == {6}
