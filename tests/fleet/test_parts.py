"""Breaker, running figures, caps and the cutting of events: pure, with time as an argument."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.fleet.breaker import FAILURES, Breaker
from edge.fleet.events import MAX_EVENT_BYTES, BadStream, EventCutter
from edge.fleet.learned import FIRST_GUESS_S, Learned
from edge.fleet.limits import HourlyCap, RetryBudget


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(0.0)
        breaker.failed("no answer")
    return breaker


def test_a_breaker_opens_after_three_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed("no answer")
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed("no answer")
    assert breaker.allows(0.0)
    breaker.failed("no answer")
    assert not breaker.allows(1e9) and (breaker.state, breaker.reason) == ("open", "no answer")


def test_after_a_good_probe_one_request_goes_on_trial_and_decides() -> None:
    for outcome in ("well", "ill"):
        breaker = opened()
        breaker.probed(True)
        assert breaker.allows(1.0)
        breaker.sent(1.0)
        assert not breaker.allows(2.0), "one at a time"
        if outcome == "well":
            breaker.succeeded()
            assert breaker.state == "closed" and breaker.allows(2.0)
        else:
            breaker.failed("again")
            assert breaker.state == "open" and not breaker.allows(2.0)


def test_a_trial_whose_caller_went_away_or_that_nobody_reported_on_blocks_no_further_one() -> None:
    breaker = opened()
    breaker.probed(True)
    breaker.sent(1.0)
    breaker.released()
    assert breaker.allows(1.0)
    breaker.sent(1.0)
    assert breaker.allows(100.0)


def test_a_failed_probe_opens_at_once_and_a_good_one_closes_what_only_probes_had_opened() -> None:
    breaker = Breaker()
    breaker.probed(False, "500")
    breaker.probed(False, "500")
    assert not breaker.allows(0.0)
    breaker.probed(True)
    assert breaker.state == "closed"
    breaker = opened()
    breaker.probed(False, "500")
    breaker.probed(True)
    assert breaker.state == "half-open"


def test_an_upstream_that_asks_for_time_gets_it_and_counts_as_well() -> None:
    breaker = Breaker()
    breaker.busy(5.0)
    assert not breaker.allows(4.9) and breaker.allows(5.0) and breaker.state == "closed"


def test_expected_times_follow_what_is_seen_and_forget_it() -> None:
    learned = Learned()
    assert learned.ttft_s(0.0) == FIRST_GUESS_S
    for number in range(30):
        learned.answered(2.0, float(number))
    assert 1.9 < learned.ttft_s(29.0) < 3.0
    assert learned.ttft_s(30.0 + 600) < 2 * FIRST_GUESS_S
    learned.failed()
    assert 0.1 < learned.error_share < 0.3


def test_an_hour_ends() -> None:
    cap = HourlyCap(100)
    for second in range(10):
        cap.spend(9, float(second))
    assert cap.left(9.0)
    cap.spend(11, 10.0)
    assert not cap.left(10.0) and not cap.left(3599.0)
    assert cap.left(3600.5) and cap.spent(10_000.0) == 0
    assert HourlyCap(0).left(0.0)


def test_retries_stay_a_share_of_requests() -> None:
    budget = RetryBudget(0.2)
    while budget.take():
        pass
    for _ in range(100):
        budget.asked()
    assert sum(budget.take() for _ in range(100)) in (9, 10)


EVENTS = [b'data: {"choices":[{"delta":{"content":"a\\n\\nb"}}]}', b": ping", b'data: {"usage":{}}', b"data: [DONE]"]


@given(cuts=st.lists(st.integers(0, 200), max_size=8), ends=st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_events_are_the_same_however_their_bytes_are_cut(cuts: list[int], ends: bytes) -> None:
    data = b"".join(event + ends for event in EVENTS)
    bounds = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    cutter = EventCutter()
    found = [e for a, b in itertools.pairwise(bounds) for e in cutter.feed(data[a:b])]
    assert [e.body for e in found] == [{"choices": [{"delta": {"content": "a\n\nb"}}]}, {"usage": {}}, None]
    assert [e.has_content for e in found] == [True, False, False]


@pytest.mark.parametrize("data", [b"data: {]\n\n", b"data: 7\n\n", b'data: {"x": 1}\n\n', b"x" * (MAX_EVENT_BYTES + 1)])
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(BadStream):
        list(EventCutter().feed(data))
