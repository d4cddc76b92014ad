"""Where a request goes: every rule by itself, and that none is ever broken."""

from hypothesis import given
from hypothesis import strategies as st

from edge.admission.policy import Ask, Decision, Fleet, Late, at_the_door, may_leave, when_late

ASK = Ask("default", "auto", handed_on=False)
LOCAL_ONLY = Ask("default", "local-only", handed_on=False)
QUICK, SLOW = Fleet(True, 0.2, ""), Fleet(True, 5.0, "")
OPEN = Fleet(False, 0.0, "breaker_open")
LATE = Late("slots", 1.0, hopeless=False)


def test_what_the_engine_can_take_stays_here_however_quick_the_fleet_is() -> None:
    assert at_the_door(ASK, "fleet", Fleet(True, 0.0, ""), None) == Decision("local", "")


def test_what_the_engine_cannot_take_goes_to_the_fleet_or_nowhere() -> None:
    assert at_the_door(ASK, "fleet", SLOW, "engine_down") == Decision("fleet", "engine_down")
    assert at_the_door(ASK, "fleet", OPEN, "loading") == Decision("refuse", "loading", "breaker_open")
    assert at_the_door(LOCAL_ONLY, "fleet", QUICK, "queue_full") == Decision("refuse", "queue_full", "policy")
    assert at_the_door(ASK, "best-effort", None, "draining") == Decision("refuse", "draining")


def test_a_late_request_goes_where_it_is_answered_sooner() -> None:
    assert when_late(ASK, "fleet", "best-effort", QUICK, LATE) == Decision("fleet", "slots")
    assert when_late(ASK, "fleet", "best-effort", SLOW, LATE) == Decision("late", "slots")


def test_fleet_ok_leaves_as_soon_as_it_would_be_late() -> None:
    eager = Ask("default", "fleet-ok", handed_on=False)
    assert when_late(eager, "fleet", "best-effort", SLOW, LATE).route == "fleet"


def test_too_long_a_queue_sends_away_whatever_the_fleet_takes() -> None:
    assert when_late(ASK, "fleet", "best-effort", SLOW, Late("wait", 30.0, hopeless=False)) == Decision("fleet", "wait")
    assert when_late(ASK, "best-effort", "best-effort", None, Late("wait", 30.0, hopeless=False)).route == "refuse"


def test_without_a_fleet_the_mode_decides() -> None:
    assert when_late(ASK, "best-effort", "best-effort", None, LATE).route == "late"
    assert when_late(ASK, "strict", "best-effort", None, LATE).route == "refuse"
    assert when_late(ASK, "fleet", "strict", OPEN, LATE) == Decision("refuse", "slots", "breaker_open")
    assert when_late(ASK, "fleet", "best-effort", OPEN, LATE) == Decision("late", "slots", "breaker_open")


def test_flex_asks_for_no_promise_so_strict_lets_it_wait() -> None:
    flex = Ask("flex", "auto", handed_on=False)
    assert when_late(flex, "strict", "strict", None, Late("flex", 1.0, hopeless=False)).route == "late"


TIERS = st.sampled_from(["priority", "default", "flex"])
ASKS = st.builds(Ask, TIERS, st.sampled_from(["auto", "local-only", "fleet-ok"]), st.booleans())
FLEETS = st.none() | st.sampled_from([QUICK, SLOW, OPEN, Fleet(False, 0.0, "bytes_cap")])
MODES = st.sampled_from(["fleet", "best-effort", "strict", "off"])
LATES = st.builds(
    Late, st.sampled_from(["slots", "slo_itl", "slo_ttft", "flex", "wait"]), st.floats(0, 60), st.booleans()
)
OBSTACLES = st.none() | st.sampled_from(["loading", "draining", "engine_down", "queue_full", "model_not_here"])


@given(ASKS, MODES, st.sampled_from(["best-effort", "strict"]), FLEETS, LATES, OBSTACLES)
def test_what_must_stay_stays_and_nobody_is_sent_where_nobody_answers(
    ask, mode, offline, fleet, late, obstacle
) -> None:
    decisions = [at_the_door(ask, mode, fleet, obstacle), when_late(ask, mode, offline, fleet, late)]
    for decision in decisions:
        if decision.route == "fleet":
            assert mode == "fleet" and ask.policy != "local-only" and not ask.handed_on
            assert fleet is not None and fleet.available
        if decision.route in ("late", "refuse", "fleet"):
            assert decision.reason
    assert (may_leave(ask, mode, fleet) is None) == any(
        d.route == "fleet" for d in [at_the_door(ask, mode, fleet, "engine_down")]
    )
