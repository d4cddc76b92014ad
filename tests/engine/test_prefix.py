"""The prefix cache: what it finds, for whom, what it keeps under its cap, and what it gives up first."""

from dataclasses import dataclass
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.engine.prefix import LEAST_SHARED_TOKENS, Prefix, PrefixCache

HALL = list(range(100))
YARD = list(range(1000, 1100))
CAP = 1000


def cache_of(cap_bytes: int = CAP, *, isolated: bool = False, enabled: bool = True) -> PrefixCache:
    return PrefixCache(cap_bytes=cap_bytes, isolated=isolated, enabled=enabled)


def seat(cache: PrefixCache, slot: int, tokens: list[int], key: str = "", computed: int = 0) -> Prefix:
    prefix = cache.occupy(slot, tokens, key, computed=computed, recompute_s=len(tokens) / 1000)
    assert prefix is not None
    return prefix


def adopt(cache: PrefixCache, tokens: list[int], size: int, cost_s: float = 1.0, *, pinned: bool = False) -> list[str]:
    return cache.adopt(tokens, "", f"copy of {tokens[0]}", size, pinned=pinned, recompute_s=cost_s)


def test_the_last_token_of_a_prompt_is_always_left_to_compute() -> None:
    cache = cache_of()
    adopt(cache, HALL, 10)
    match = cache.match(HALL, "")
    assert match is not None and (match.matched, match.usable) == (99, 99)


def test_a_beginning_that_is_too_short_is_not_worth_a_copy() -> None:
    cache = cache_of()
    adopt(cache, HALL, 10)
    assert cache.match([*HALL[: LEAST_SHARED_TOKENS - 1], 7, 7], "") is None
    assert cache.match([*HALL[:LEAST_SHARED_TOKENS], 7, 7], "") is not None
    assert cache.match(YARD, "") is None


def test_of_a_running_answer_only_what_is_computed_can_be_had() -> None:
    cache = cache_of()
    running = seat(cache, 0, HALL)
    assert cache.match([*HALL, 7], "") is None
    running.computed = 40
    match = cache.match([*HALL, 7], "")
    assert match is not None and (match.prefix, match.matched, match.usable) == (running, 100, 40)


def test_more_tokens_that_can_be_had_beat_a_longer_match() -> None:
    cache = cache_of()
    seat(cache, 0, [*HALL, 7, 8], computed=20)
    adopt(cache, HALL[:60], 10)
    match = cache.match([*HALL, 7, 9], "")
    assert match is not None and match.usable == 60


def test_cells_in_an_idle_slot_beat_a_copy_of_as_many() -> None:
    cache = cache_of()
    adopt(cache, HALL, 10)
    idle = seat(cache, 1, [*HALL, 1], computed=101)
    cache.leave(1, [*HALL, 1], 0.1)
    match = cache.match([*HALL, 2], "")
    assert match is not None and match.prefix is idle


def test_what_a_running_answer_has_yet_to_compute_is_in_the_making() -> None:
    cache = cache_of()
    running = seat(cache, 0, HALL, computed=20)
    coming = cache.in_the_making([*HALL, 7], "", 20)
    assert coming is not None and (coming.prefix, coming.matched) == (running, 100)
    assert cache.in_the_making([*HALL, 7], "", 100 - LEAST_SHARED_TOKENS + 1) is None, "too little to wait for"
    running.computed = 100
    assert cache.in_the_making([*HALL, 7], "", 20) is None, "it is there already"
    cache.leave(0, HALL, 0.1)
    assert cache.in_the_making([*HALL, 7], "", 20) is None


def test_an_ended_answer_leaves_its_tokens_to_whoever_comes_next() -> None:
    cache = cache_of()
    seat(cache, 0, HALL, computed=100)
    assert cache.leave(0, [*HALL, 5, 6], 0.1)
    resident = cache.resident(0)
    assert resident is not None and not resident.live and resident.computed == 102
    match = cache.match([*HALL, 5, 6, 7], "")
    assert match is not None and match.usable == 102


def test_an_answer_that_hardly_began_leaves_nothing() -> None:
    cache = cache_of()
    seat(cache, 0, HALL)
    assert not cache.leave(0, HALL[:5], 0.1)
    assert cache.resident(0) is None
    assert not cache.leave(3, HALL, 0.1), "a slot that was never occupied"
    cache.check()


def test_a_vacated_slot_leaves_its_saved_copy_and_no_more() -> None:
    cache = cache_of()
    prefix = seat(cache, 0, HALL, computed=100)
    assert cache.keep(prefix, "copy", 60, 10) == []
    assert cache.vacate(0) is prefix
    match = cache.match([*HALL, 7], "")
    assert match is not None and (match.usable, match.prefix.saved) == (60, "copy")
    seat(cache, 1, YARD, computed=100)
    cache.vacate(1)
    assert cache.match([*YARD, 7], "") is None
    cache.check()


def test_a_copy_of_a_longer_prefix_replaces_the_shorter_ones_but_no_pinned_one() -> None:
    cache = cache_of()
    adopt(cache, HALL[:40], 10)
    assert adopt(cache, HALL[:80], 10) == ["copy of 0"]
    cache.adopt(HALL[:30], "", "pinned", 10, pinned=True, recompute_s=1.0)
    assert adopt(cache, HALL, 10) == ["copy of 0"]
    assert cache.saved_bytes == 20
    cache.check()


def test_a_newer_copy_of_the_same_prefix_frees_the_older() -> None:
    cache = cache_of()
    prefix = seat(cache, 0, HALL, computed=50)
    cache.keep(prefix, "first", 50, 10)
    assert cache.keep(prefix, "second", 100, 30) == ["first"]
    assert (prefix.saved, cache.saved_bytes) == ("second", 30)


def test_what_is_cheap_to_compute_again_is_given_up_first() -> None:
    cache = cache_of(30)
    adopt(cache, HALL, 10, cost_s=3.0)
    adopt(cache, YARD, 10, cost_s=1.0)
    adopt(cache, [5, *HALL], 10, cost_s=2.0)
    assert adopt(cache, [6, *HALL], 10, cost_s=2.0) == ["copy of 1000"]
    assert cache.evictions == 1


def test_what_was_dear_but_is_long_unused_goes_too() -> None:
    cache = cache_of(20)
    adopt(cache, HALL, 10, cost_s=3.0)
    freed = [copy for n in range(2000, 2010) for copy in adopt(cache, [n, *YARD], 10, cost_s=1.0)]
    assert "copy of 0" in freed


def test_what_is_used_stays() -> None:
    cache = cache_of(20)
    adopt(cache, HALL, 10, cost_s=3.0)
    for number in range(2000, 2010):
        match = cache.match([*HALL, 7], "")
        assert match is not None
        cache.used(match.prefix, 3.0)
        adopt(cache, [number, *YARD], 10, cost_s=1.0)
    assert cache.match([*HALL, 7], "") is not None
    assert cache.hits == 10


def test_a_copy_larger_than_the_cap_is_freed_at_once() -> None:
    cache = cache_of(20)
    assert adopt(cache, HALL, 21) == ["copy of 0"]
    assert cache.match([*HALL, 7], "") is None
    cache.check()


def test_a_copy_larger_than_the_cap_costs_nobody_his_place() -> None:
    cache = cache_of(20)
    assert adopt(cache, YARD, 15, cost_s=0.1) == []
    assert adopt(cache, HALL, 21, cost_s=9.0) == ["copy of 0"]
    found = cache.match([*YARD, 7], "")
    assert found is not None and found.usable == len(YARD)
    cache.check()


def test_what_is_about_to_be_copied_is_not_given_up_for_what_it_replaces() -> None:
    cache = PrefixCache(cap_bytes=15, isolated=False)
    adopt(cache, HALL, 10, cost_s=0.1)
    found = cache.match([*HALL, 1], "")
    assert found is not None
    cache.occupy(0, YARD, "", computed=len(YARD), recompute_s=9.0)
    cache.leave(0, YARD, 9.0)
    resident = cache.resident(0)
    assert resident is not None
    assert cache.keep(resident, "copy of the yard", len(YARD), 10, spare=found.prefix) == ["copy of the yard"]
    assert found.prefix.saved == "copy of 0"


def test_shrink_gives_up_the_cheapest_and_never_a_pinned_one() -> None:
    cache = cache_of()
    adopt(cache, HALL, 10, cost_s=2.0)
    adopt(cache, YARD, 10, cost_s=1.0)
    adopt(cache, [5, *HALL], 10, cost_s=0.1, pinned=True)
    assert [cache.shrink(), cache.shrink(), cache.shrink()] == [["copy of 1000"], ["copy of 0"], []]


def test_the_cap_is_exceeded_only_by_what_is_pinned() -> None:
    cache = cache_of(15)
    assert adopt(cache, HALL, 10, pinned=True) == []
    assert adopt(cache, YARD, 10, pinned=True) == []
    assert cache.saved_bytes == 20
    assert adopt(cache, [5, *HALL], 1) == ["copy of 5"]


def test_isolated_keys_find_their_own_prefixes_and_pinned_ones_only() -> None:
    cache = cache_of(isolated=True)
    seat(cache, 0, HALL, "robot", computed=100)
    cache.adopt(YARD, "anyone", "pinned", 10, pinned=True, recompute_s=1.0)
    assert cache.match([*HALL, 7], "robot") is not None
    assert cache.match([*HALL, 7], "stranger") is None
    assert cache.in_the_making([*HALL, 7], "stranger", 0) is None
    assert all(cache.match([*YARD, 7], key) is not None for key in ("robot", "stranger", ""))


def test_keys_share_prefixes_unless_they_are_isolated() -> None:
    cache = cache_of()
    seat(cache, 0, HALL, "robot", computed=100)
    assert cache.match([*HALL, 7], "stranger") is not None


def test_a_cache_that_is_off_keeps_and_finds_nothing() -> None:
    cache = cache_of(enabled=False)
    assert cache.occupy(0, HALL, "", computed=0, recompute_s=1.0) is None
    assert not cache.leave(0, HALL, 1.0)
    assert cache.match([*HALL, 7], "") is None


def test_tokens_of_its_own_are_those_that_no_other_prefix_has() -> None:
    cache = cache_of()
    prefix = seat(cache, 0, [*HALL, 1, 2, 3], computed=103)
    assert cache.own_tokens(prefix) == 103
    adopt(cache, HALL, 10)
    assert cache.own_tokens(prefix) == 3


@dataclass
class Model:
    """What a test knows of the cells: which slots run, and which copies have been freed."""

    cache: PrefixCache
    freed: set[int]
    given: set[int]

    def keep(self, freed: list[int]) -> None:
        assert not self.freed & set(freed), "freed twice"
        self.freed |= set(freed)


def _turn(model: Model, data: st.DataObject, numbers: "count[int]") -> None:
    cache, slot = model.cache, data.draw(st.integers(0, 3))
    key = data.draw(st.sampled_from(["a", "b"]))
    base = data.draw(st.sampled_from([HALL, YARD]))
    tokens = [*base[: data.draw(st.integers(1, 60))], *([data.draw(st.integers(1, 3))] * data.draw(st.integers(0, 20)))]
    cost_s, size = data.draw(st.floats(0, 2)), data.draw(st.integers(1, 400))
    resident = cache.resident(slot)
    match data.draw(st.sampled_from(["run", "work", "save", "adopt", "pin", "shrink", "use"])):
        case "run":
            cache.vacate(slot)
            cache.occupy(slot, tokens, key, computed=0, recompute_s=cost_s)
        case "work" if resident is not None and resident.live:
            resident.computed = data.draw(st.integers(resident.computed, len(resident.tokens)))
            if data.draw(st.booleans()):
                known = list(resident.tokens[: resident.computed])
                cache.leave(slot, known, cost_s)
        case "save" if resident is not None and resident.computed > resident.saved_tokens:
            model.given.add(number := next(numbers))
            model.keep(cache.keep(resident, number, resident.computed, size))
        case "adopt" | "pin" as what if what == "adopt" or data.draw(st.booleans()):
            model.given.add(number := next(numbers))
            model.keep(cache.adopt(tokens, key, number, size, pinned=what == "pin", recompute_s=cost_s))
        case "shrink":
            model.keep(cache.shrink())
        case "use" if (match := cache.match([*tokens, 0], key)) is not None:
            shared = [a == b for a, b in zip(match.prefix.tokens, tokens, strict=False)]
            assert all(shared[: match.usable]) and match.usable >= LEAST_SHARED_TOKENS
            cache.used(match.prefix, cost_s)


@settings(max_examples=150)
@given(st.data())
def test_whatever_happens_the_cap_holds_and_every_copy_is_kept_or_freed_once(data: st.DataObject) -> None:
    cap = data.draw(st.integers(0, 1000))
    model = Model(cache_of(cap, isolated=data.draw(st.booleans())), set(), set())
    numbers = count()
    for _ in range(data.draw(st.integers(1, 40))):
        _turn(model, data, numbers)
        model.cache.check()
        kept = {prefix.saved for prefix in model.cache.by_worth() if prefix.saved is not None}
        assert kept == model.given - model.freed
        pinned = sum(p.saved_bytes for p in model.cache.by_worth() if p.pinned)
        assert model.cache.saved_bytes <= max(cap, pinned)
