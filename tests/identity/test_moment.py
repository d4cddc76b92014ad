"""What time it is, as far as a node can know, and when it renews."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.identity.moment import (
    RELEASED_S,
    Known,
    Life,
    believed_s,
    best_guess_s,
    floor_by_clock,
    has_no_idea,
    next_pause_s,
    pause_s,
)
from edge.telemetry.stamp import Stamp

NOW_S = RELEASED_S + 300 * 86_400.0
DAY_S = 86_400.0


def stamp(wall_s: float, *, synced: bool = True, mono_s: float = 100.0, boot: str = "k1") -> Stamp:
    return Stamp(int(wall_s * 1e9), int(mono_s * 1e9), boot, synced)


@pytest.mark.parametrize("wall_s", [0.0, RELEASED_S - 1, RELEASED_S + 14 * 365 * DAY_S])
def test_a_year_that_cannot_be_is_not_believed_whatever_the_kernel_says(wall_s: float) -> None:
    assert believed_s(stamp(wall_s), Known()) is None
    assert has_no_idea(stamp(wall_s), Known())


def test_a_clock_that_nobody_set_is_not_believed_but_guessed_by() -> None:
    assert believed_s(stamp(NOW_S), Known()) == NOW_S
    assert believed_s(stamp(NOW_S, synced=False), Known()) is None
    assert best_guess_s(stamp(NOW_S, synced=False), Known()) == NOW_S


def test_a_clock_before_the_floor_is_not_believed() -> None:
    known = Known().later(NOW_S)
    assert believed_s(stamp(NOW_S - DAY_S), known) is None
    assert best_guess_s(stamp(0.0, synced=False), known) == NOW_S


def test_the_fleets_word_serves_until_the_machine_starts_anew() -> None:
    known = Known().told(NOW_S, stamp(0.0, synced=False, mono_s=50))
    later = stamp(0.0, synced=False, mono_s=150)
    assert best_guess_s(later, known) == NOW_S + 100
    assert believed_s(later, known) is None, "it times renewals; it proves nothing"
    assert not has_no_idea(later, known)
    after_restart = stamp(0.0, synced=False, mono_s=5, boot="k2")
    assert has_no_idea(after_restart, known)
    assert best_guess_s(after_restart, known) == RELEASED_S


def test_a_floor_never_falls() -> None:
    assert Known().later(NOW_S).later(NOW_S - DAY_S).floor_s == NOW_S


@given(jitter=st.floats(0, 1), share=st.floats(0.1, 0.9))
def test_it_is_renewed_after_the_share_and_well_before_the_end(jitter: float, share: float) -> None:
    life = Life(NOW_S, NOW_S + 30 * DAY_S, share, jitter)
    assert NOW_S + 30 * DAY_S * share <= life.due_s <= NOW_S + 30 * DAY_S * (share + (1 - share) * 0.21)


def test_what_is_said_of_a_certificate_as_it_ages() -> None:
    life = Life(NOW_S, NOW_S + 30 * DAY_S, 2 / 3, 0.5)
    days = {1: "good", 20.5: "good", 21.5: "due", 26: "expiring", 30: "expired", 99: "expired"}
    assert {day: life.standing(NOW_S + day * DAY_S) for day in days} == days


def test_pauses_grow_have_jitter_and_shrink_when_the_end_is_near() -> None:
    life = Life(NOW_S, NOW_S + 30 * DAY_S, 2 / 3, 0)
    assert [pause_s(n, life, NOW_S, 0.5) for n in (1, 2, 3, 50)] == [60, 120, 240, 6 * 3600]
    assert pause_s(1, life, NOW_S, 0.0) < 60 < pause_s(1, life, NOW_S, 1.0)
    assert pause_s(50, life, NOW_S + 29 * DAY_S, 0.5) == 900


def test_a_clock_moves_the_floor_once_a_day_and_never_beyond_the_certificates_use() -> None:
    known, last_use_s = Known().later(NOW_S), NOW_S + 60 * DAY_S
    moved = floor_by_clock(stamp(NOW_S + 2 * DAY_S), known, last_use_s)
    assert moved is not None and moved.floor_s == NOW_S + 2 * DAY_S
    assert floor_by_clock(stamp(NOW_S + DAY_S / 2), known, last_use_s) is None
    assert floor_by_clock(stamp(NOW_S + 2 * DAY_S, synced=False), known, last_use_s) is None
    assert floor_by_clock(stamp(NOW_S + 7 * 365 * DAY_S), known, last_use_s) is None


@pytest.mark.parametrize("days", [1, 21, 29.99, 31, 999])
def test_after_a_success_that_was_none_there_is_a_pause_within_the_certificates_life(days: float) -> None:
    life = Life(NOW_S, NOW_S + 30 * DAY_S, 2 / 3, 0.5)
    for chance in (0.0, 1.0):
        pause = next_pause_s(life, NOW_S + days * DAY_S, chance)
        assert 45 <= pause <= 6 * 3600
        assert days > 30 or days * DAY_S + pause < 30 * DAY_S
