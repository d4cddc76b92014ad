"""The seam between two servers' parts of one answer, however the second part is cut and whatever the second server understood."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api.seam import Seam
from edge.errors import FleetUnavailable

SENT = "The pump was started by the first shift,"
REST = " and it ran all night."
CUTS = st.lists(st.integers(0, 80), max_size=8)


def joined(seam: Seam, text: str, cuts: list[int]) -> str:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    return "".join(seam.feed(text[a:b]) for a, b in itertools.pairwise(bounds)) + seam.end()


@given(CUTS)
def test_a_continuation_is_sent_as_it_is(cuts: list[int]) -> None:
    assert joined(Seam(SENT, anew=False), REST, cuts) == REST


@given(CUTS, st.booleans())
def test_a_repetition_is_left_out_whether_it_was_asked_for_or_not(cuts: list[int], anew: bool) -> None:
    seam = Seam(SENT, anew=anew)
    assert joined(seam, SENT + REST, cuts) == REST
    assert seam.repeated


@given(CUTS)
def test_a_continuation_may_begin_a_little_like_the_answer(cuts: list[int]) -> None:
    assert joined(Seam(SENT, anew=False), "The pump stopped.", cuts) == "The pump stopped."
    assert joined(Seam(SENT, anew=False), "The pump", cuts) == "The pump"


@given(CUTS)
def test_another_answer_and_a_shorter_one_are_errors(cuts: list[int]) -> None:
    for text, anew in (
        ("The pump was started now", False),
        ("Nothing.", True),
        ("The pump was star", False),
        ("The", True),
    ):
        with pytest.raises(FleetUnavailable):
            joined(Seam(SENT, anew=anew), text, cuts)


@given(CUTS, st.sampled_from(["\n", " ", "\n\n", "\n  "]))
def test_white_space_that_was_not_given_comes_once(cuts: list[int], tail: str) -> None:
    assert joined(Seam(SENT + tail, anew=False, tail=tail), tail + "- two", cuts) == "- two"
    assert joined(Seam(SENT + tail, anew=False, tail=tail), "- two", cuts) == "- two"
    assert joined(Seam(SENT + tail, anew=False, tail=tail), SENT + tail + "- two", cuts) == "- two"


def test_where_nothing_was_sent_all_of_it_is() -> None:
    assert joined(Seam("", anew=True), REST, [3]) == REST
