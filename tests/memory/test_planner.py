"""What gives way when memory is short, and what never does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DoesNotFit
from edge.memory.ladder import ladder, preferred
from edge.memory.layout import MIB, Budget, Layout, LayoutRefused, ModelShape, Part, Plan, Wishes, fits
from edge.memory.planner import alternatives, plan, plan_keeping

SHAPE = ModelShape(train_context_tokens=32_768, layers=25)
CELL_BYTES = {"f16": 12_288, "q8_0": 6_528, "q4_0": 3_456}
WEIGHTS = 330 * MIB
ROOMY = Budget(64 << 30, "a test")


def sizes(layout: Layout) -> tuple[Part, ...]:
    """A model of half a billion parameters, as the library lays it out on a processor or a card."""
    on_card = layout.gpu_layers / SHAPE.layers
    cells = layout.cells * CELL_BYTES[layout.kv_type]
    return (
        Part("weights", int(WEIGHTS * (1 - on_card)), int(WEIGHTS * on_card)),
        Part("attention", int(cells * (1 - on_card)), int(cells * on_card)),
        Part("compute", 5 * MIB, layout.pass_tokens * MIB // 16 if layout.gpu_layers else 0),
        Part("prefixes", layout.cache_bytes),
        Part("process", 100 * MIB, 300 * MIB if layout.gpu_layers else 0),
    )


def host(mebibytes: int) -> Budget:
    return Budget(mebibytes * MIB, "a test")


def card(mebibytes: int, main_mebibytes: int = 8192) -> Budget:
    return Budget(main_mebibytes * MIB, "a test", mebibytes * MIB, "a card")


FLOOR = Layout(2, 2048, "q8_0", 64, 256 * MIB, SHAPE.layers)
"""What does not give way before layers move from a card."""


def test_with_room_for_all_nothing_gives_way() -> None:
    chosen = plan(SHAPE, ROOMY, Wishes(), sizes)
    assert chosen.layout == preferred(SHAPE, ROOMY, Wishes()) == Layout(8, 8192, "f16", 256, 256 * MIB, 0)


def test_the_context_is_what_the_model_was_trained_to_within_the_cap() -> None:
    assert preferred(ModelShape(2048, 5), ROOMY, Wishes()).context_tokens == 2048
    assert preferred(ModelShape(0, 5), ROOMY, Wishes()).context_tokens == 8192
    assert preferred(SHAPE, ROOMY, Wishes(context_cap_tokens=100_000)).context_tokens == 32_768
    assert preferred(SHAPE, ROOMY, Wishes(context_tokens=300)).pass_tokens == 256


def test_saved_prefixes_give_way_first_and_quality_last() -> None:
    steps = [step.layout for step in ladder(SHAPE, ROOMY, Wishes(), sizes)]
    first = next(i for i, s in enumerate(steps) if s.cache_bytes < 256 * MIB)
    assert first == 1
    q4 = next(i for i, s in enumerate(steps) if s.kv_type == "q4_0")
    assert all(s.slots == 1 and s.context_tokens <= 1024 for s in steps[q4:])


@given(st.integers(100, 4000), st.sampled_from([None, 1, 3, 16]), st.sampled_from([None, 512, 5000]))
def test_a_plan_stays_within_its_room_and_keeps_what_is_fixed(
    room: int, slots: int | None, context: int | None
) -> None:
    wishes = Wishes(slots=slots, context_tokens=context)
    try:
        chosen = plan(SHAPE, host(room), wishes, sizes)
    except DoesNotFit as refusal:
        smallest = list(ladder(SHAPE, host(room), wishes, sizes))[-1]
        assert smallest.host_bytes > room * MIB
        assert f"{room:,} MiB" in refusal.message
        return
    assert chosen.total_bytes <= room * MIB
    assert slots in (None, chosen.layout.slots)
    assert context in (None, chosen.layout.context_tokens)


@given(st.integers(440, 4000), st.integers(0, 500))
def test_more_room_never_makes_the_plan_smaller(room: int, more: int) -> None:
    small, large = (plan(SHAPE, host(r), Wishes(), sizes) for r in (room, room + more))
    assert small.layout.cells <= large.layout.cells and small.total_bytes <= large.total_bytes


@given(st.integers(440, 4000))
def test_alternatives_fit_too_and_differ(room: int) -> None:
    budget = host(room)
    chosen = plan(SHAPE, budget, Wishes(), sizes)
    others = alternatives(SHAPE, budget, Wishes(), chosen, sizes)
    assert len(others) <= 2
    for other in others:
        assert fits(other, budget) and other.layout != chosen.layout


def test_alternatives_are_a_longer_context_and_more_answers() -> None:
    chosen = plan(SHAPE, host(2000), Wishes(), sizes)
    longer, wider = alternatives(SHAPE, host(2000), Wishes(), chosen, sizes)
    assert longer.layout.context_tokens > chosen.layout.context_tokens and longer.layout.slots < chosen.layout.slots
    assert wider.layout.slots > chosen.layout.slots


def test_a_refusal_names_what_is_missing_and_the_nearest_thing_that_fits() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan(SHAPE, host(500), Wishes(slots=8, context_tokens=8192), sizes)
    assert "8 slots of 8,192 tokens" in refused.value.message
    nearest = plan(SHAPE, host(500), Wishes(), sizes).layout
    assert f"{nearest.slots} slots of {nearest.context_tokens:,} tokens" in refused.value.message
    assert "would fit" in refused.value.message


def test_a_model_that_fits_in_no_layout_is_refused_with_a_cure() -> None:
    with pytest.raises(DoesNotFit, match=r"437 MiB of the 300 MiB.*smaller quantization"):
        plan(SHAPE, host(300), Wishes(), sizes)


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        ("memory.budget_mib", "raise memory.budget_mib$"),
        ("a control group limited to 300 MiB", "raise the control group's limit$"),
        ("this machine", "memory.reserve_mib is kept back$"),
        ("--memory", "plan for more$"),
    ],
)
def test_the_cure_is_that_of_what_bounds_the_memory(source: str, cure: str) -> None:
    with pytest.raises(DoesNotFit, match=cure):
        plan(SHAPE, Budget(300 * MIB, source), Wishes(), sizes)


def test_a_layout_that_the_library_refuses_is_passed_over() -> None:
    def no_q8(layout: Layout) -> tuple[Part, ...]:
        if layout.kv_type == "q8_0":
            raise LayoutRefused
        return sizes(layout)

    assert plan(SHAPE, host(455), Wishes(), no_q8).layout.kv_type != "q8_0"

    def nothing(_: Layout) -> tuple[Part, ...]:
        raise LayoutRefused

    with pytest.raises(DoesNotFit, match="cannot lay this model out"):
        plan(SHAPE, ROOMY, Wishes(), nothing)


@given(st.integers(445, 4000))
def test_a_model_whose_cells_must_stay_f16_gives_way_in_all_else(room: int) -> None:
    """As of heads of 80 or 48 numbers, which no block of q8_0 or q4_0 divides."""

    def only_f16(layout: Layout) -> tuple[Part, ...]:
        if layout.kv_type != "f16":
            raise LayoutRefused
        return sizes(layout)

    assert plan(SHAPE, host(room), Wishes(), only_f16) == plan(SHAPE, host(room), Wishes(kv_type="f16"), sizes)


def test_a_refusal_names_the_setting_that_stands_in_the_way() -> None:
    with pytest.raises(
        DoesNotFit, match=r"with kv_type \w+ and \d+ layers on a card would fit: leave engine.gpu_layers to"
    ):
        plan(SHAPE, card(500), Wishes(gpu_layers=25), sizes)


def test_without_flash_attention_cells_stay_f16() -> None:
    steps = ladder(SHAPE, ROOMY, Wishes(flash_attention=False), sizes)
    assert {s.layout.kv_type for s in steps} == {"f16"}


def test_a_card_takes_all_layers_where_it_can() -> None:
    chosen = plan(SHAPE, card(4096), Wishes(), sizes)
    assert chosen.layout.gpu_layers == SHAPE.layers
    assert chosen.device_bytes <= 4096 * MIB


@given(st.integers(0, 4000))
def test_beside_a_small_card_the_processor_takes_layers_before_the_context_is_useless(room: int) -> None:
    """With all main memory that it wants: two answers of 2,048 tokens are the least. Saved prefixes lie there, so they stay."""
    budget = card(room)
    chosen = plan(SHAPE, budget, Wishes(), sizes)
    layout = chosen.layout
    assert fits(chosen, budget)
    assert layout.slots >= 2 and layout.context_tokens >= 2048 and layout.kv_type != "q4_0"
    assert layout.cache_bytes == 256 * MIB
    if layout.gpu_layers < SHAPE.layers:
        assert layout == replace(FLOOR, gpu_layers=layout.gpu_layers), "comfort goes before layers do"
        more = replace(layout, gpu_layers=layout.gpu_layers + 1)
        assert not fits(Plan(more, sizes(more)), budget), "a layer that would fit is not there"


@given(st.integers(0, 1500), st.integers(0, 400), st.integers(200, 1200), st.integers(0, 400))
def test_more_room_on_a_card_or_beside_it_never_makes_the_plan_smaller(
    room: int, more: int, main: int, more_main: int
) -> None:
    try:
        small = plan(SHAPE, card(room, main), Wishes(), sizes).layout
    except DoesNotFit:
        return
    large = plan(SHAPE, card(room + more, main + more_main), Wishes(), sizes).layout
    assert small.slots <= large.slots and small.context_tokens <= large.context_tokens
    assert CELL_BYTES[small.kv_type] <= CELL_BYTES[large.kv_type]
    if small.cells == large.cells and small.kv_type == large.kv_type:
        assert small.gpu_layers <= large.gpu_layers


def test_where_main_memory_is_short_too_the_context_shrinks_rather_than_nothing_fitting() -> None:
    chosen = plan(SHAPE, card(450, 312), Wishes(), sizes)
    assert chosen.layout.cells < 2 * 2048 and 0 < chosen.layout.gpu_layers < SHAPE.layers
    with pytest.raises(DoesNotFit, match=r"of the 450 MiB on a card, and .* of the 200 MiB"):
        plan(SHAPE, card(450, 200), Wishes(), sizes)


def test_a_card_without_room_leaves_all_to_the_processor() -> None:
    chosen = plan(SHAPE, card(0), Wishes(), sizes)
    assert (chosen.layout.gpu_layers, chosen.device_bytes) == (0, 0)


def test_layers_that_are_fixed_stay_on_the_card_and_the_rest_gives_way() -> None:
    with_all = plan(SHAPE, card(638), Wishes(gpu_layers=25), sizes).layout
    assert with_all.gpu_layers == 25 and with_all.cells < FLOOR.cells
    assert plan(SHAPE, card(638), Wishes(), sizes).layout.gpu_layers < 25


def test_beside_a_plan_that_is_split_one_with_all_layers_on_the_card_is_named() -> None:
    chosen = plan(SHAPE, card(638), Wishes(), sizes)
    faster = alternatives(SHAPE, card(638), Wishes(), chosen, sizes)[0]
    assert faster.layout.gpu_layers == 25 > chosen.layout.gpu_layers
    assert fits(faster, card(638)) and faster.layout.cells < chosen.layout.cells
    whole = plan(SHAPE, card(4096), Wishes(), sizes)
    assert all(other.layout.gpu_layers == 25 for other in alternatives(SHAPE, card(4096), Wishes(), whole, sizes))


def test_room_is_kept_for_further_models_while_no_layer_moves_for_them() -> None:
    free = plan(SHAPE, card(1200), Wishes(), sizes)
    beside, kept = plan_keeping(SHAPE, card(1200), Wishes(), 300 * MIB, sizes)
    assert kept == 300 * MIB and beside.device_bytes <= 900 * MIB and beside.layout.gpu_layers == 25
    assert beside.layout.cells < free.layout.cells
    assert plan_keeping(SHAPE, card(1200), Wishes(), 700 * MIB, sizes) == (free, 0), "layers would move"
    tight = plan(SHAPE, host(500), Wishes(), sizes)
    assert plan_keeping(SHAPE, host(500), Wishes(), 400 * MIB, sizes) == (tight, 0), "nothing would fit"
    assert plan_keeping(SHAPE, host(500), Wishes(), 0, sizes) == (tight, 0)
    with pytest.raises(DoesNotFit):
        plan_keeping(SHAPE, host(300), Wishes(), 1, sizes)


@pytest.mark.parametrize(
    "budget",
    [host(4000), card(2000), card(700, 900), Budget(1500 * MIB, "a board", 1500 * MIB, "its GPU", unified=True)],
)
def test_a_plan_that_ran_out_of_memory_is_followed_by_smaller_ones_and_by_an_end(budget: Budget) -> None:
    failed = plan(SHAPE, budget, Wishes(), sizes)
    for _ in range(60):
        try:
            smaller = plan(SHAPE, budget.below(failed, 0.85), Wishes(), sizes)
        except DoesNotFit:
            return
        assert smaller.device_bytes < failed.device_bytes or smaller.host_bytes < failed.host_bytes
        failed = smaller
    pytest.fail("it goes on for ever")


def test_a_shared_memory_counts_once() -> None:
    unified = Budget(1000 * MIB, "a board", 1000 * MIB, "its GPU", unified=True)
    chosen = plan(SHAPE, unified, Wishes(), sizes)
    assert chosen.host_bytes + chosen.device_bytes <= 1000 * MIB
    assert chosen.layout.gpu_layers == SHAPE.layers


def test_where_memory_is_shared_the_device_is_given_up_last_and_all_at_once() -> None:
    """A layer takes as much on either side: what is saved is what the device's driver takes."""

    def board(mebibytes: int) -> Budget:
        return Budget(mebibytes * MIB, "a board", mebibytes * MIB, "its GPU", unified=True)

    layers = [plan(SHAPE, board(room), Wishes(), sizes).layout.gpu_layers for room in range(440, 1500, 5)]
    assert set(layers) == {0, SHAPE.layers} and layers == sorted(layers)
    least = plan(SHAPE, board(440), Wishes(), sizes)
    assert (least.layout.slots, least.layout.context_tokens, least.device_bytes) == (1, 512, 0)
    with pytest.raises(DoesNotFit):
        plan(SHAPE, board(440), Wishes(gpu_layers=25), sizes)
