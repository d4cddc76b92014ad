"""Who has had more than a fair share lately, in seconds of the engine's time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engine.fairness import KeyAccounts


def test_a_key_is_charged_for_its_work_alone() -> None:
    accounts = KeyAccounts()
    accounts.charge("a", 2.0, 0.0)
    accounts.charge("a", 1.0, 0.0)
    assert accounts.used_s("a", 0.0) == 3.0
    assert accounts.used_s("b", 0.0) == 0.0


def test_the_past_is_forgiven_by_half_every_twenty_seconds() -> None:
    accounts = KeyAccounts()
    accounts.charge("a", 4.0, 0.0)
    assert accounts.used_s("a", 20.0) == pytest.approx(2.0)
    accounts.charge("a", 1.0, 40.0)
    assert accounts.used_s("a", 40.0) == pytest.approx(2.0)


def test_excess_is_counted_from_the_least_served_rival() -> None:
    accounts = KeyAccounts()
    accounts.charge("a", 4.0, 0.0)
    accounts.charge("b", 1.0, 0.0)
    assert accounts.excess_s("a", ["a", "b"], 0.0) == 3.0
    assert accounts.excess_s("a", ["a", "b", "new"], 0.0) == 4.0
    assert accounts.excess_s("b", ["a", "b"], 0.0) == 0.0
    assert accounts.excess_s("b", [], 0.0) == 1.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.floats(0, 100)), max_size=20))
def test_the_least_served_key_has_no_excess_and_no_key_a_negative_one(work: list[tuple[str, float, float]]) -> None:
    accounts, now_s = KeyAccounts(), 0.0
    for key, seconds, pause_s in work:
        now_s += pause_s
        accounts.charge(key, seconds, now_s)
    excess = {key: accounts.excess_s(key, "abc", now_s) for key in "abc"}
    assert min(excess.values()) == 0.0
