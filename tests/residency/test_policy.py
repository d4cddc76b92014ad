"""Who stays, who leaves, who comes: single decisions, and long random lives of a node."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.residency.policy import Resident, Steps, Wish, decide

ROOM = 100


def resident(number: int, size: int, **fields: Any) -> Resident:
    given: dict[str, Any] = {"state": "serving", "busy": False, "fixed": False, "last_use_s": 0.0, "settled_s": 0.0}
    return Resident(number, f"m{number}", size, **{**given, **fields})


def test_what_fits_is_loaded_and_nobody_leaves() -> None:
    assert decide(9.0, ROOM, [resident(1, 60)], [Wish("a", 40)]) == Steps(load=("a",))


def test_the_least_recently_used_leaves_and_no_more_than_needed() -> None:
    residents = [resident(1, 40, last_use_s=3.0), resident(2, 20, last_use_s=1.0), resident(3, 40, last_use_s=2.0)]
    assert decide(9.0, ROOM, residents, [Wish("a", 20)]) == Steps(evict=frozenset({2}))
    assert decide(9.0, ROOM, residents, [Wish("a", 60)]) == Steps(evict=frozenset({2, 3}))


def test_one_that_a_larger_one_makes_needless_stays() -> None:
    residents = [resident(1, 10, last_use_s=1.0), resident(2, 90, last_use_s=2.0)]
    assert decide(9.0, ROOM, residents, [Wish("a", 50)]) == Steps(evict=frozenset({2}))


def test_a_busy_one_drains_and_an_idle_one_goes_first() -> None:
    residents = [resident(1, 50, busy=True, last_use_s=1.0), resident(2, 50, last_use_s=8.0)]
    assert decide(9.0, ROOM, residents, [Wish("a", 50)]) == Steps(evict=frozenset({2}))
    assert decide(9.0, ROOM, residents, [Wish("a", 100)]) == Steps(evict=frozenset({2}), drain=frozenset({1}))


def test_one_that_was_just_loaded_is_let_be_while_it_answers() -> None:
    busy = [resident(1, 100, busy=True, settled_s=12.0)]
    assert decide(9.0, ROOM, busy, [Wish("a", 50)]) == Steps()
    assert decide(12.0, ROOM, busy, [Wish("a", 50)]) == Steps(drain=frozenset({1}))
    assert decide(9.0, ROOM, [replace(busy[0], busy=False)], [Wish("a", 50)]) == Steps(evict=frozenset({1}))


def test_of_busy_ones_the_one_that_has_been_there_longest_drains() -> None:
    residents = [resident(1, 50, busy=True, settled_s=5.0), resident(2, 50, busy=True, settled_s=4.0)]
    assert decide(9.0, ROOM, residents, [Wish("a", 50)]) == Steps(drain=frozenset({2}))


def test_pinned_ones_stay_and_what_cannot_fit_beside_them_is_said() -> None:
    residents = [resident(1, 60, fixed=True), resident(2, 40)]
    assert decide(9.0, ROOM, residents, [Wish("a", 41)]) == Steps(impossible=("a",))
    assert decide(9.0, ROOM, residents, [Wish("a", 40)]) == Steps(evict=frozenset({2}))


def test_room_that_comes_free_anyway_costs_nobody_his_place() -> None:
    residents = [resident(1, 50, state="leaving", busy=True), resident(2, 50)]
    assert decide(9.0, ROOM, residents, [Wish("a", 50)]) == Steps()


def test_only_the_first_in_the_line_makes_others_leave() -> None:
    residents = [resident(1, 50, busy=True, last_use_s=1.0), resident(2, 50, busy=True, last_use_s=2.0)]
    steps = decide(9.0, ROOM, residents, [Wish("a", 50), Wish("b", 50)])
    assert len(steps.drain) == 1


def test_a_small_one_goes_past_if_it_takes_nothing_from_those_ahead() -> None:
    residents = [resident(1, 70, busy=True)]
    assert decide(9.0, ROOM, residents, [Wish("a", 90), Wish("b", 10)]).load == ("b",)
    assert decide(9.0, ROOM, residents, [Wish("a", 90), Wish("b", 11)]).load == ()


def test_one_that_drains_goes_on_draining_and_serves_again_when_its_room_is_not_wanted() -> None:
    residents = [resident(1, 50, busy=True, state="draining", settled_s=9.0), resident(2, 50, busy=True)]
    assert decide(9.0, ROOM, residents, [Wish("a", 50)]).drain == {1}
    assert decide(9.0, ROOM, residents, []).drain == frozenset()
    assert decide(9.0, ROOM, residents, [Wish("m1", 50)]) == Steps(), (
        "it is wanted itself: it does not leave for itself"
    )


def test_a_new_version_stands_beside_the_old_one_if_others_can_leave() -> None:
    old, other = resident(1, 50, fixed=True), resident(2, 50, busy=True)
    assert decide(9.0, ROOM, [old, other], [Wish("m1", 50, replaces=1)]) == Steps(drain=frozenset({2}))
    assert decide(9.0, ROOM, [old], [Wish("m1", 50, replaces=1)]) == Steps(load=("m1",))


def test_without_room_for_both_the_old_version_leaves_first_even_if_it_is_pinned() -> None:
    old, pinned = resident(1, 50, fixed=True, busy=True), resident(2, 50, fixed=True)
    assert decide(9.0, ROOM, [old, pinned], [Wish("m1", 50, replaces=1)]) == Steps(drain=frozenset({1}))
    assert decide(9.0, ROOM, [old, pinned], [Wish("m1", 51, replaces=1)]) == Steps(impossible=("m1",))


def test_while_a_version_replaces_another_nothing_is_called_impossible_and_nobody_leaves_in_vain() -> None:
    old, new = resident(1, 40, fixed=True), replace(resident(2, 40, fixed=True, state="loading"), model="m1")
    other = resident(3, 20)
    assert decide(9.0, ROOM, [old, new, other], [Wish("a", 60)]) == Steps()
    assert decide(9.0, ROOM, [old, new, other], [Wish("a", 61)]) == Steps(impossible=("a",))
    assert decide(
        9.0, ROOM, [replace(old, state="leaving"), replace(new, state="serving"), other], [Wish("a", 60)]
    ) == (Steps(evict=frozenset({3})))


def test_if_more_was_taken_than_foreseen_somebody_leaves() -> None:
    residents = [resident(1, 60, fixed=True), resident(2, 30, last_use_s=1.0), resident(3, 20, last_use_s=2.0)]
    assert decide(9.0, ROOM, residents, []).evict == {2}


# --- long lives -------------------------------------------------------------------------------------------------------


@dataclass
class Loaded:
    """A resident of the simulated node; `streams` end when the test says so."""

    resident: Resident
    loads_for: int = 1
    streams: int = 0


@dataclass
class Asked:
    wish: Wish
    waiting: int = 1
    order: int = field(default=0)


class Node(RuleBasedStateMachine):
    """A node that does what `decide` says, under clients that do what they like."""

    MODELS = ("a", "b", "c", "d", "e")

    @initialize(
        sizes=st.lists(st.integers(1, 60), min_size=5, max_size=5),
        fixed=st.lists(st.booleans(), min_size=5, max_size=5),
    )
    def begin(self, sizes: list[int], fixed: list[bool]) -> None:
        self.now_s = 0.0
        self.sizes = dict(zip(self.MODELS, sizes, strict=True))
        self.fixed = {m for m, is_fixed in zip(self.MODELS, fixed, strict=True) if is_fixed}
        self.loaded: list[Loaded] = []
        self.line: list[Asked] = []
        self.served = self.refused = self.numbers = 0

    def _serving(self, model: str) -> Loaded | None:
        return next((x for x in self.loaded if x.resident.model == model and x.resident.state == "serving"), None)

    @rule(model=st.sampled_from(MODELS))
    def request(self, model: str) -> None:
        self.now_s += 0.1
        if (here := self._serving(model)) is not None:
            here.streams += 1
            here.resident = replace(here.resident, last_use_s=self.now_s)
        elif (asked := next((a for a in self.line if a.wish.model == model), None)) is not None:
            asked.waiting += 1
        elif not any(x.resident.model == model and x.resident.state == "loading" for x in self.loaded):
            self.line.append(Asked(Wish(model, self.sizes[model])))
        self.review()

    @rule(model=st.sampled_from(MODELS))
    def one_stream_ends(self, model: str) -> None:
        for x in self.loaded:
            if x.resident.model == model and x.streams:
                x.streams -= 1
                break
        self.settle()

    @rule(model=st.sampled_from(MODELS))
    def everybody_waiting_leaves(self, model: str) -> None:
        self.line = [a for a in self.line if a.wish.model != model]
        self.review()

    @rule()
    def time_passes(self) -> None:
        self.now_s += 1.0
        self.settle()

    def settle(self) -> None:
        """Loads end, and those who left are gone."""
        self.loaded = [x for x in self.loaded if x.resident.state != "leaving" or x.streams]
        for x in self.loaded:
            if x.resident.state == "loading":
                x.streams += x.loads_for
                self.served += x.loads_for
                x.resident = replace(x.resident, state="serving", last_use_s=self.now_s, settled_s=self.now_s + 0.5)
        self.review()

    def review(self) -> None:
        seen = [replace(x.resident, busy=x.streams > 0) for x in self.loaded]
        steps = decide(self.now_s, ROOM, seen, [a.wish for a in self.line])
        for x in self.loaded.copy():
            r = x.resident
            if r.id in steps.evict:
                assert not x.streams and not r.fixed and r.state in ("serving", "draining"), "cut, or pinned"
                x.resident = replace(r, state="leaving")
            elif r.id in steps.drain:
                assert x.streams and not r.fixed and r.state in ("serving", "draining")
                x.resident = replace(r, state="draining")
            elif r.state == "draining":
                x.resident = replace(r, state="serving")
                mine = [a for a in self.line if a.wish.model == r.model]
                x.streams += sum(a.waiting for a in mine)
                self.served += sum(a.waiting for a in mine)
                self.line = [a for a in self.line if a not in mine]
        for model in steps.impossible:
            pinned = sum(x.resident.bytes for x in self.loaded if x.resident.fixed)
            assert self.sizes[model] + pinned > ROOM
            self.refused += sum(a.waiting for a in self.line if a.wish.model == model)
            self.line = [a for a in self.line if a.wish.model != model]
        for model in steps.load:
            (asked,) = [a for a in self.line if a.wish.model == model]
            self.line.remove(asked)
            self.numbers += 1
            fixed = model in self.fixed
            new = Resident(self.numbers, model, self.sizes[model], "loading", False, fixed, self.now_s, self.now_s)
            self.loaded.append(Loaded(new, asked.waiting))

    @invariant()
    def never_over_the_room(self) -> None:
        assert sum(x.resident.bytes for x in getattr(self, "loaded", [])) <= ROOM

    @invariant()
    def nobody_drains_for_nothing(self) -> None:
        if not getattr(self, "line", []):
            assert not [x for x in getattr(self, "loaded", []) if x.resident.state == "draining"]

    def teardown(self) -> None:
        """When streams end, everybody in the line is served or told that it cannot be; also those who came last."""
        if not hasattr(self, "line"):
            return
        for _ in range(8 * len(self.MODELS)):
            if not self.line:
                break
            for x in self.loaded:
                x.streams = max(0, x.streams - 1) if x.resident.state == "serving" else 0
            self.now_s += 1.0
            self.settle()
            for model in self.MODELS:  # the load goes on all the time: for what is loaded there are always new requests
                if (here := self._serving(model)) is not None:
                    here.streams += 1
        assert not self.line, "somebody starves"


TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
