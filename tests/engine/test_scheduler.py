"""The scheduler as a state machine: what it plans, what it promises, and that no slot and no cell is ever lost."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.engine.admission import Targets
from edge.engine.foresight import PASS_SHARE
from edge.engine.prefix import PrefixCache
from edge.engine.scheduler import FIXED_CHUNK, Scheduler
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.steps import TILE_ROWS, StepModel, StepTable
from edge.messages import Submit, TokenPrompt

ITL_S = TTFT_S = 0.050
TOKEN_S = 0.001
ROUNDING_S = 1e-9
TABLE = StepTable(
    decode=[(1, 0.002), (8, 0.009)],
    prompt=[(1, TOKEN_S), (1024, 1024 * TOKEN_S)],
    decode_cell_s=0.0,
    prompt_cell_s=[],
    restore_byte_s=0.0,
)


@dataclass
class Writer:
    """Of the real one, what the scheduler reads."""

    tokens: list[int] = field(default_factory=list)


def make_request(
    number: int, prompt: int | list[int], *, answers: int = 1, limit: int = 8, at_s: float = 0.0, **work: Any
) -> Request:
    tokens = [number * 1000 + n for n in range(prompt)] if isinstance(prompt, int) else prompt
    submit = Submit(request_id=number, prompt=TokenPrompt(tokens=[]), n=answers, **work)
    request = Request(submit, tokens, limit, received_s=at_s, arrived_s=at_s)
    writers: list[Any] = [Writer() for _ in range(answers)]
    request.sequences.extend(Sequence(request, index, writer) for index, writer in enumerate(writers))
    return request


class Machine:
    """Carries out what the scheduler says, on cells that are lists of tokens and a clock that each pass moves."""

    def __init__(
        self,
        slots: int = 4,
        *,
        promised: bool = True,
        caches: bool = True,
        cap: int = 1 << 20,
        table: StepTable = TABLE,
        ttft_s: float = TTFT_S,
        chunk_tokens: int = 1024,
    ) -> None:
        self.cache = PrefixCache(cap_bytes=cap, isolated=False, enabled=caches)
        self.scheduler = Scheduler(
            slots=slots,
            steps=StepModel(table),
            cache=self.cache,
            targets=Targets(ttft_s, ITL_S, promised),
            chunk_tokens=chunk_tokens,
            copies_sequences=caches,
            cell_bytes=1,
        )
        self.cells: list[list[int]] = [[] for _ in range(slots)]
        self.now_s = 0.0
        self.prefilled = 0
        self.emitted: dict[int, list[float]] = {}
        self.verdict: Any = None

    def add(self, request: Request) -> Request:
        self.verdict = self.scheduler.add(request, self.now_s)
        return request

    def step(self) -> str:
        """One turn of the loop; says which pass it made."""
        scheduler = self.scheduler
        while (placement := scheduler.next_placement(self.now_s)) is not None:
            self._place(placement)
        if (chunk := scheduler.next_chunk(self.now_s)) is not None:
            took_s = scheduler._steps.prompt_s(chunk.count, chunk.start)
            self.now_s += took_s
            sequence = chunk.sequence
            cells = self.cells[sequence.slot]
            assert len(cells) == chunk.start
            cells += sequence.request.tokens[chunk.start : chunk.start + chunk.count]
            self.prefilled += chunk.count
            siblings = scheduler.prefilled(chunk, self.now_s, took_s)
            for sibling in siblings:
                self.cells[sibling.slot] = list(cells)
            if chunk.last:
                for member in (sequence, *siblings):
                    self._draw(member)
            return f"prompt {sequence.request.id}"
        if rows := scheduler.decode_rows(self.now_s):
            took_s = scheduler._steps.decode_s(len(rows), 0)
            self.now_s += took_s
            for sequence in rows:
                assert len(self.cells[sequence.slot]) == sequence.position
                self.cells[sequence.slot].append(sequence.last_token)
            scheduler.decoded(rows, self.now_s, took_s)
            for sequence in rows:
                self._draw(sequence)
            return "decode " + " ".join(str(s.request.id) for s in rows)
        return "idle"

    def run(self, turns: int = 10_000) -> list[str]:
        """Work until nothing is left."""
        done: list[str] = []
        while not self.scheduler.idle:
            done.append(self.step())
            assert len(done) < turns, "it does not come to an end"
        return done

    def end(self, sequence: Sequence) -> None:
        if (slot := self.scheduler.end(sequence)) is not None:
            self.cells[slot] = []

    def _place(self, placement: Any) -> None:
        slot, source, tokens = placement.slot, placement.source, placement.tokens
        resident = self.cache.resident(slot)
        if placement.save_resident and resident is not None:
            cells = list(self.cells[slot])
            self.cache.keep(resident, cells, resident.computed, len(cells), spare=source)
        if placement.how == "copy":
            saved = source.saved if source.saved_tokens >= tokens else list(self.cells[source.slot])
            if saved is not source.saved:
                self.cache.keep(source, saved, source.computed, len(saved))
            self.cells[slot] = list(saved)
        self.cache.vacate(slot)
        self.cells[slot] = self.cells[slot][:tokens] if placement.how != "cold" else []
        expected = list(placement.sequence.request.tokens[:tokens])
        assert self.cells[slot] == expected, "cells of another prompt"
        self.scheduler.placed(placement, tokens)

    def _draw(self, sequence: Sequence) -> None:
        token = 7_000_000 + sequence.request.id
        sequence.writer.tokens.append(token)
        self.emitted.setdefault(sequence.request.id, []).append(self.now_s)
        self.scheduler.sampled(sequence, token, self.now_s)
        if sequence.generated >= sequence.request.limit:
            self.end(sequence)

    def check(self) -> None:
        """Nobody's cells are lost, doubled or mistaken."""
        self.cache.check()
        slots = self.scheduler.slots
        held = {s.slot: s for s in slots.holders()}
        assert len(held) == self.scheduler.running == slots.size - slots.free
        for slot, cells in enumerate(self.cells):
            resident, holder = self.cache.resident(slot), held.get(slot)
            if holder is not None and holder.phase in (Phase.PREFILL, Phase.DECODE):
                assert len(cells) == holder.cells
                assert cells[: holder.cursor] == list(holder.request.tokens[: holder.cursor])
            elif resident is not None:
                assert cells == list(resident.tokens) and not resident.live
            else:
                assert cells == []


def test_a_long_prompt_is_read_in_passes_that_leave_room_for_the_next_arrival() -> None:
    machine = Machine()
    machine.add(make_request(1, 400, limit=1))
    sizes = []
    while not machine.scheduler.idle:
        before = machine.prefilled
        machine.step()
        sizes.append(machine.prefilled - before)
    assert sum(sizes) == 400
    assert max(sizes) * TOKEN_S <= max(ITL_S * PASS_SHARE, TILE_ROWS * TOKEN_S)


def test_a_long_prompt_delays_no_admitted_stream_beyond_its_target() -> None:
    machine = Machine()
    machine.add(make_request(1, 5, limit=60))
    while not machine.emitted:
        machine.step()
    long = machine.add(make_request(2, 900, limit=1, at_s=machine.now_s))
    assert not long.admitted
    machine.run()
    gaps = [b - a for a, b in itertools.pairwise(machine.emitted[1])]
    assert max(gaps) <= ITL_S + ROUNDING_S
    assert 2 in machine.emitted, "the long prompt was starved"


def test_a_long_prompt_beside_a_stream_takes_one_pass_between_two_tokens() -> None:
    machine = Machine()
    machine.add(make_request(1, 5, limit=20))
    while not machine.emitted:
        machine.step()
    machine.add(make_request(2, 500, limit=1, at_s=machine.now_s))
    kinds = [machine.step().split()[0] for _ in range(10)]
    assert kinds == ["decode", "prompt"] * 5


def test_short_prompts_are_admitted_and_go_before_a_long_one_that_came_first() -> None:
    machine = Machine()
    long = machine.add(make_request(1, 800, limit=1))
    machine.step()
    short = machine.add(make_request(2, 10, limit=1, at_s=machine.now_s))
    assert (long.admitted, short.admitted) == (False, True)
    assert machine.step() == "prompt 2"


def test_what_is_admitted_meets_both_targets() -> None:
    machine = Machine(slots=8)
    admitted = []
    for number in range(1, 30):
        request = machine.add(make_request(number, 12, limit=6, at_s=machine.now_s))
        if request.admitted:
            admitted.append(request)
        machine.step()
    machine.run()
    assert len(admitted) > 5
    for request in admitted:
        times = machine.emitted[request.id]
        assert times[0] - request.arrived_s <= TTFT_S + ROUNDING_S
        assert all(b - a <= ITL_S + ROUNDING_S for a, b in itertools.pairwise(times))


def test_more_than_fits_is_not_admitted() -> None:
    machine = Machine(slots=8)
    decisions = [machine.add(make_request(n, 20, limit=4)).admitted for n in range(1, 6)]
    assert decisions == [True, True, False, False, False]


def test_answers_that_were_not_admitted_leave_slots_for_those_that_can_be() -> None:
    machine = Machine(slots=4)
    for number in range(1, 8):
        machine.add(make_request(number, 200, limit=50))
    for _ in range(100):
        machine.step()
    assert machine.scheduler.slots.free >= 1
    assert machine.add(make_request(9, 5, limit=2, at_s=machine.now_s)).admitted


def test_strangers_take_turns_between_keys() -> None:
    machine = Machine(slots=4)
    for number in range(1, 7):
        machine.add(make_request(number, 400, limit=1, key="greedy"))
    for _ in range(10):
        machine.step()
    machine.add(make_request(10, 400, limit=1, at_s=machine.now_s, key="modest"))
    order = [line for line in machine.run() if line.startswith("prompt")]
    last = {name: max(i for i, line in enumerate(order) if line == f"prompt {name}") for name in (6, 10)}
    assert last[10] < last[6]


def test_a_request_that_would_be_late_is_declined_if_it_asks_for_that_and_leaves_no_trace() -> None:
    machine = Machine()
    machine.add(make_request(1, 800, limit=1, late="decline"))
    assert (machine.verdict.declined, machine.verdict.reason, machine.verdict.hopeless) == (True, "slo_ttft", True)
    assert machine.verdict.late_s >= 800 * TOKEN_S
    assert machine.scheduler.idle
    assert machine.add(make_request(2, 10, limit=1, late="decline")).admitted


def test_a_late_answer_that_would_come_too_late_is_declined_and_time_brings_it_back() -> None:
    machine = Machine(slots=2)
    for number in range(1, 9):
        machine.add(make_request(number, 400, limit=50))
    machine.add(make_request(9, 400, limit=1, max_wait_s=1.0))
    assert (machine.verdict.declined, machine.verdict.reason) == (True, "wait")
    machine.run()
    assert (
        machine.add(make_request(10, 400, limit=1, at_s=machine.now_s, max_wait_s=1.0)) and not machine.verdict.declined
    )


def test_the_predicted_wait_of_a_late_answer_is_about_the_one_it_has() -> None:
    machine = Machine(slots=2)
    for number in range(1, 31):
        machine.add(make_request(number, 100, limit=20))
    while machine.scheduler.waiting > 10:
        machine.step()
    asked_s = machine.now_s
    machine.add(make_request(99, 100, limit=1, at_s=asked_s))
    foreseen_s = machine.verdict.late_s
    machine.run()
    assert 0.6 < foreseen_s / (machine.emitted[99][0] - asked_s) < 1.6


def test_flex_is_never_promised_anything_and_goes_after_others_that_are_late() -> None:
    machine = Machine(slots=2)
    machine.add(make_request(1, 300, limit=40))
    flex = machine.add(make_request(2, 300, limit=1, tier="flex"))
    plain = machine.add(make_request(3, 300, limit=1))
    urgent = machine.add(make_request(4, 300, limit=1, tier="priority"))
    order = [line for line in dict.fromkeys(machine.run()) if line.startswith("prompt")]
    assert order == ["prompt 4", "prompt 1", "prompt 3", "prompt 2"]
    assert not (flex.admitted or plain.admitted or urgent.admitted)
    machine.add(make_request(5, 5, limit=1, at_s=machine.now_s, tier="flex"))
    assert machine.verdict.reason == "flex"


def test_who_comes_during_a_pass_is_judged_by_when_it_ends() -> None:
    machine = Machine()
    machine.scheduler.begins(0.045, decodes=False)
    request = make_request(1, 20, limit=1)
    assert machine.scheduler.judge(request, 0.0).reason == "slo_ttft"
    assert machine.scheduler.judge(make_request(2, 20, limit=1, at_s=0.045), 0.045).reason == ""


def test_without_targets_a_prompt_takes_a_fixed_part_of_every_step() -> None:
    machine = Machine(promised=False)
    machine.add(make_request(1, 5, limit=20))
    machine.step()
    request = machine.add(make_request(2, FIXED_CHUNK * 2, limit=1))
    assert [machine.step() for _ in range(4)] == ["decode 1", "prompt 2", "decode 1", "prompt 2"]
    assert not request.admitted


def test_a_part_of_a_prompt_beside_streams_is_no_more_than_a_pass_takes() -> None:
    machine = Machine(promised=False, chunk_tokens=16)
    machine.add(make_request(1, 5, limit=20))
    machine.step()
    machine.add(make_request(2, 100, limit=1))
    before = machine.prefilled
    assert machine.step() == "decode 1" and machine.step() == "prompt 2"
    assert machine.prefilled - before == 16


def test_a_model_too_slow_for_the_targets_still_answers() -> None:
    machine = Machine()
    slow = StepTable([(1, 0.3)], [(1, 0.3), (64, 2.0)], 0.0, [], 0.0)
    machine.scheduler = Scheduler(
        slots=4,
        steps=StepModel(slow),
        cache=machine.cache,
        targets=Targets(TTFT_S, ITL_S),
        chunk_tokens=64,
        copies_sequences=True,
        cell_bytes=1,
    )
    request = machine.add(make_request(1, 200, limit=3))
    machine.run()
    assert len(machine.emitted[1]) == 3 and not request.admitted


def test_answers_to_one_prompt_compute_it_once() -> None:
    machine = Machine()
    machine.add(make_request(1, 10, answers=3, limit=2))
    machine.run()
    assert machine.prefilled == 10


def test_answers_compute_the_prompt_each_where_memory_cannot_be_copied() -> None:
    machine = Machine(caches=False)
    machine.add(make_request(1, 10, answers=3, limit=2))
    machine.run()
    assert machine.prefilled == 30


def test_a_sibling_takes_over_when_the_first_answer_is_cancelled_in_its_prompt() -> None:
    machine = Machine(slots=2)
    request = machine.add(make_request(1, 300, answers=2, limit=2))
    machine.step()
    computed = machine.prefilled
    assert 0 < computed < 300
    machine.end(request.sequences[0])
    machine.run()
    assert machine.prefilled == 300, "what the first had computed was thrown away"
    assert len(machine.emitted[1]) == 2


def test_a_second_request_computes_only_what_is_new() -> None:
    machine = Machine()
    prompt = list(range(200))
    machine.add(make_request(1, [*prompt, 901], limit=2))
    machine.run()
    second = machine.add(make_request(2, [*prompt, 902, 903], limit=2))
    machine.run()
    assert (second.cached_tokens, machine.prefilled) == (200, 203)


def test_a_conversation_goes_on_behind_its_own_answer() -> None:
    machine = Machine(slots=1)
    first = machine.add(make_request(1, 50, limit=4))
    machine.run()
    history = [*first.tokens, *first.sequences[0].writer.tokens[:3]]
    second = machine.add(make_request(2, [*history, 5, 6], limit=1))
    machine.run()
    assert second.cached_tokens == len(history)


def test_simultaneous_requests_with_one_new_beginning_compute_it_once() -> None:
    machine = Machine(slots=8)
    for number in range(1, 9):
        machine.add(make_request(number, [*range(1000), 5000 + number], limit=2))
    machine.run()
    assert machine.prefilled <= 1000 * 1.02
    assert len(machine.emitted) == 8


def test_who_waits_for_a_cancelled_prompt_goes_on_from_what_was_computed() -> None:
    machine = Machine()
    leader = machine.add(make_request(1, [*range(300), 1], limit=2))
    machine.add(make_request(2, [*range(300), 2], limit=2))
    for _ in range(3):
        machine.step()
    machine.end(leader.sequences[0])
    machine.run()
    assert machine.prefilled == 301


def test_a_request_that_wants_no_cache_neither_takes_nor_gives() -> None:
    machine = Machine()
    prompt = list(range(100))
    machine.add(make_request(1, prompt, limit=1, cache=False))
    machine.run()
    machine.add(make_request(2, prompt, limit=1))
    machine.run()
    third = machine.add(make_request(3, prompt, limit=1, cache=False))
    machine.run()
    assert third.cached_tokens == 0 and machine.prefilled == 300


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_leaks_and_nothing_is_mistaken_whatever_arrives_and_is_cancelled(data: st.DataObject) -> None:
    caches = data.draw(st.booleans())
    promised = data.draw(st.booleans())
    machine = Machine(
        slots=data.draw(st.integers(1, 4)), promised=promised, caches=caches, cap=data.draw(st.integers(0, 400))
    )
    beginnings = [list(range(base, base + 120)) for base in (0, 10_000)]
    requests: list[Request] = []
    for number in range(1, data.draw(st.integers(2, 25))):
        if data.draw(st.booleans()):
            known = data.draw(st.sampled_from(beginnings))[: data.draw(st.integers(0, 120))]
            prompt = [*known, *(50_000 + number * 100 + n for n in range(data.draw(st.integers(1, 60))))]
            answers, limit = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
            cache = data.draw(st.integers(0, 5)) > 0
            requests.append(machine.add(make_request(number, prompt, answers=answers, limit=limit, cache=cache)))
        alive = [s for r in requests for s in r.sequences if s.phase is not Phase.DONE]
        if alive and data.draw(st.integers(0, 3)) == 0:
            machine.end(data.draw(st.sampled_from(alive)))
        for _ in range(data.draw(st.integers(0, 4))):
            machine.step()
            machine.check()
    machine.run()
    machine.check()
    assert all(s.phase is Phase.DONE for r in requests for s in r.sequences)


NEAR_ITS_LIMIT = StepTable([(1, 0.020), (8, 0.030)], [(1, 0.010), (1024, 1.1)], 0.0, [], 0.0)


def strict_scheduler(table: StepTable, cap_bytes: int = 0) -> Scheduler:
    return Scheduler(
        slots=4,
        steps=StepModel(table),
        cache=PrefixCache(cap_bytes=cap_bytes, isolated=False),
        targets=Targets(TTFT_S, ITL_S),
        chunk_tokens=512,
        copies_sequences=True,
        cell_bytes=1,
    )


def begin_stream(scheduler: Scheduler) -> None:
    """One that is admitted, at 0.02 s."""
    stream = make_request(2, 5, limit=60)
    scheduler.add(stream, 0.0)
    while (placement := scheduler.next_placement(0.0)) is not None:
        scheduler.placed(placement, 0)
    chunk = scheduler.next_chunk(0.0)
    assert chunk is not None
    scheduler.prefilled(chunk, 0.02, 0.02)
    scheduler.sampled(stream.sequences[0], 1, 0.02)


def test_what_lies_in_a_slot_is_saved_only_while_no_admitted_stream_waits_for_that() -> None:
    table = StepTable(NEAR_ITS_LIMIT.decode, NEAR_ITS_LIMIT.prompt, 0.0, [], restore_byte_s=1e-9)
    scheduler = strict_scheduler(table, cap_bytes=20_000_000)
    assert scheduler.has_time_to_save(20_000_000, 0.0)
    assert not scheduler.has_time_to_save(20_000_001, 0.0), "beyond what may be kept"
    begin_stream(scheduler)
    assert scheduler.has_time_to_save(5_000_000, 0.021)
    assert not scheduler.has_time_to_save(10_000_000, 0.021)
    assert not scheduler.has_time_to_save(5_000_000, 0.04)


def test_an_engine_that_declines_everybody_after_a_busy_hour_admits_again_once_it_is_quiet() -> None:
    scheduler = strict_scheduler(NEAR_ITS_LIMIT)
    for _ in range(200):
        scheduler._steps.observe("decode", 1, 0, 0.060)
        scheduler._steps.observe("prompt", 10, 0, 0.060)
    beats = 0
    while scheduler.add(make_request(beats, 10, at_s=beats, late="decline"), beats).declined:
        beats += 1
        scheduler.proved(beats, 1.0)
        assert beats < 64, "it declines for ever"
    assert beats > 10, "a moment's quiet proves nothing"


def test_what_a_busy_hour_taught_is_kept_where_it_keeps_nobody_out() -> None:
    scheduler = strict_scheduler(TABLE)
    for _ in range(200):
        scheduler._steps.observe("decode", 1, 0, 0.004)
    for beat in range(200):
        scheduler.proved(beat, 1.0)
    assert scheduler._steps.decode_s(1, 0) > 0.0039


def test_an_engine_that_was_measured_beside_others_promises_once_it_is_quiet() -> None:
    slow = StepTable([(1, 0.055), (8, 0.060)], [(1, 0.010), (1024, 1.1)], 0.0, [], 0.0)
    scheduler = strict_scheduler(slow)
    assert scheduler.add(make_request(1, 10, late="decline"), 0.0).hopeless
    for beat in range(8):
        scheduler.proved(beat, 0.4)
    assert not scheduler.add(make_request(2, 10, at_s=10.0, late="decline"), 10.0).declined


def test_a_prompt_that_an_idle_engine_would_read_in_time_is_not_called_hopeless_beside_streams() -> None:
    scheduler = strict_scheduler(NEAR_ITS_LIMIT)
    idle = scheduler.judge(make_request(1, 34), 0.0)
    assert (idle.reason, idle.hopeless) == ("", False)
    begin_stream(scheduler)
    busy = scheduler.judge(make_request(3, 34, at_s=0.02), 0.02)
    assert (busy.reason, busy.hopeless) == ("slo_ttft", False)
    assert scheduler.judge(make_request(4, 100, at_s=0.02), 0.02).hopeless


LARGE = StepTable([(1, 0.030), (8, 0.036)], [(1, 0.030), (64, 0.050), (1024, 0.8)], 0.0, [], 0.0)
"""Of a model that is read from memory as a whole in each pass: beside a stream no prompt pass fits."""


def test_nobody_is_admitted_beside_a_stream_that_leaves_no_time_for_a_prompt() -> None:
    machine = Machine(table=LARGE, ttft_s=0.45)
    machine.add(make_request(1, 5, limit=100))
    while not machine.emitted:
        machine.step()
    beside = machine.add(make_request(2, 5, limit=5, at_s=machine.now_s))
    at_s, foreseen_s = machine.now_s, machine.verdict.late_s
    assert (beside.admitted, machine.verdict.hopeless) == (False, False)
    machine.run()
    assert 0.45 < machine.emitted[2][0] - at_s <= foreseen_s


def test_streams_that_follow_each_other_without_end_do_not_starve_a_prompt() -> None:
    machine = Machine(table=LARGE)
    machine.add(make_request(1, 5, limit=50))
    while not machine.emitted:
        machine.step()
    machine.add(make_request(99, 400, limit=5, at_s=machine.now_s))
    at_s, number, admitted = machine.now_s, 1, 0
    while 99 not in machine.emitted:
        machine.step()
        if not any(s.request.admitted and s.request.limit - s.generated > 1 for s in machine.scheduler.slots.holders()):
            number += 1
            admitted += machine.add(make_request(number, 5, limit=50, at_s=machine.now_s)).admitted
        assert machine.now_s - at_s < 60, "it waits for ever"
    machine.run()
    assert admitted > 1
    assert machine.add(make_request(100, 5, at_s=machine.now_s)).admitted, "nobody starves any more"


def test_who_comes_during_a_pass_is_told_of_the_time_after_it() -> None:
    scheduler = strict_scheduler(NEAR_ITS_LIMIT)
    begin_stream(scheduler)
    request = make_request(3, 5, at_s=0.035)
    prompt_s = scheduler._steps.prompt_s(5, 0)
    scheduler.begins(0.05, decodes=True)
    assert scheduler.judge(request, 0.035).ttft_s == pytest.approx(0.015 + prompt_s)
    scheduler.begins(0.05, decodes=False)
    assert scheduler.judge(request, 0.035).ttft_s == pytest.approx(0.015 + 0.020 + prompt_s), "the stream is due first"


KNOWN = list(range(400))


def beside_a_stream(restore_ms: float) -> tuple[Scheduler, Sequence]:
    """An admitted stream whose next pass has to begin at 0.05 s, and a saved beginning that takes so long to bring back."""
    table = StepTable(NEAR_ITS_LIMIT.decode, NEAR_ITS_LIMIT.prompt, 0.0, [], restore_byte_s=1e-9)
    scheduler = strict_scheduler(table, cap_bytes=1 << 30)
    scheduler.cache.adopt(KNOWN, "", "a copy", int(restore_ms * 1e6), pinned=False, recompute_s=1.0)
    begin_stream(scheduler)
    return scheduler, next(scheduler.slots.holders())


def test_the_known_cells_of_a_late_answer_are_brought_back_only_while_no_admitted_stream_waits_for_that() -> None:
    scheduler, stream = beside_a_stream(10)
    late = make_request(3, [*KNOWN, *range(5000, 5200)], at_s=0.021)
    scheduler.add(late, 0.021)
    assert not late.admitted
    assert scheduler.next_placement(0.041) is None
    assert scheduler.waiting == 1, "it has its place in the line still"
    scheduler.sampled(stream, 1, 0.07)
    placement = scheduler.next_placement(0.07)
    assert placement is not None and (placement.how, placement.tokens) == ("copy", 400)
    assert not scheduler.has_time_to_save(5_000_000, 0.07, placement), "what lay there is saved in the same time"
    assert scheduler.has_time_to_save(3_000_000, 0.07, placement)


def test_an_admitted_answer_gets_its_known_cells_at_once_since_its_admission_counted_them() -> None:
    scheduler, _ = beside_a_stream(10)
    request = make_request(3, [*KNOWN, 5000], at_s=0.021)
    scheduler.add(request, 0.021)
    assert request.admitted
    placement = scheduler.next_placement(0.041)
    assert placement is not None and placement.how == "copy"


def test_known_cells_for_which_there_is_never_time_end_admission_until_they_are_brought() -> None:
    scheduler, stream = beside_a_stream(40)
    late = make_request(3, [*KNOWN, 5000], at_s=0.021)
    scheduler.add(late, 0.021)
    assert not late.admitted
    for at_s, reason in ((0.021, ""), (4.0, ""), (6.0, "slo_ttft")):
        scheduler.sampled(stream, 1, at_s)
        assert scheduler.next_placement(at_s) is None
        assert scheduler.judge(make_request(4, 5, at_s=at_s), at_s).reason == reason
    scheduler.end(stream)
    placement = scheduler.next_placement(6.1)
    assert placement is not None and placement.sequence is late.sequences[0]
    scheduler.placed(placement, 400)
    assert scheduler.next_placement(6.1) is None
    assert scheduler.judge(make_request(5, 5, at_s=6.1), 6.1).reason == ""


def test_answers_to_one_prompt_share_a_row_that_takes_over_half_of_an_interval() -> None:
    """Rows of one pass cost little more than one: it is the pass over another prompt for which there is no time."""
    scheduler = strict_scheduler(LARGE)
    assert scheduler.judge(make_request(1, 5, answers=4), 0.0).reason == ""
    begin_stream(scheduler)
    assert scheduler.judge(make_request(3, 5, at_s=0.02), 0.02).reason == "slo_ttft"
