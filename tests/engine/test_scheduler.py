"""The scheduler as a state machine: what it plans, and that no slot and no sequence is ever lost."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge.engine.scheduler import IDLE_CHUNKS, Plan, Scheduler
from edge.engine.sequence import Phase, Request, Sequence
from edge.messages import Submit, TokenPrompt

CHUNK = 16
NO_WRITER: Any = SimpleNamespace()


def make_request(number: int, prompt_tokens: int, answers: int = 1) -> Request:
    work = Submit(request_id=number, prompt=TokenPrompt(tokens=[]), n=answers)
    request = Request(work, list(range(prompt_tokens)), limit=8, received_s=float(number))
    request.sequences.extend(Sequence(request, index, NO_WRITER) for index in range(answers))
    return request


def make_scheduler(slots: int = 4, *, copies: bool = True) -> Scheduler:
    return Scheduler(slots=slots, chunk_tokens=CHUNK, copies_sequences=copies)


def carry_out(scheduler: Scheduler, plan: Plan) -> None:
    for sequence in plan.decode:
        scheduler.sampled(sequence, 7)
    for chunk in plan.prefill:
        followers = scheduler.prefilled(chunk)
        if chunk.last:
            for member in (chunk.sequence, *followers):
                scheduler.sampled(member, 7)


def test_an_idle_node_computes_a_prompt_in_large_steps() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(1, CHUNK * IDLE_CHUNKS + 5))
    first, second = scheduler.plan(), None
    carry_out(scheduler, first)
    second = scheduler.plan()
    assert [c.count for c in first.prefill] == [CHUNK * IDLE_CHUNKS]
    assert [(c.count, c.last) for c in second.prefill] == [(5, True)]


def test_a_running_stream_gets_its_row_in_every_step_while_a_long_prompt_arrives() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(1, 3))
    carry_out(scheduler, scheduler.plan())
    scheduler.add(make_request(2, CHUNK * 5))
    for _ in range(5):
        plan = scheduler.plan()
        assert [s.request.id for s in plan.decode] == [1]
        assert sum(c.count for c in plan.prefill) <= CHUNK
        carry_out(scheduler, plan)
    assert {s.request.id for s in scheduler.plan().decode} == {1, 2}


def test_short_prompts_share_one_step_oldest_first() -> None:
    scheduler = make_scheduler()
    for number in (1, 2, 3):
        scheduler.add(make_request(number, 10))
    plan = scheduler.plan()
    assert [(c.sequence.request.id, c.count) for c in plan.prefill] == [(1, 10), (2, 10), (3, 10)]


def test_answers_to_one_prompt_compute_it_once() -> None:
    scheduler = make_scheduler()
    request = make_request(1, 10, answers=3)
    scheduler.add(request)
    plan = scheduler.plan()
    assert len(plan.prefill) == 1
    followers = scheduler.prefilled(plan.prefill[0])
    assert [s.index for s in followers] == [1, 2]
    assert all(s.phase is Phase.DECODE and s.cursor == 10 for s in request.sequences)


def test_answers_compute_the_prompt_each_where_memory_cannot_be_copied() -> None:
    scheduler = make_scheduler(copies=False)
    scheduler.add(make_request(1, 4, answers=3))
    assert len(scheduler.plan().prefill) == 3


def test_a_follower_takes_over_when_the_first_answer_is_cancelled_in_its_prompt() -> None:
    scheduler = make_scheduler()
    request = make_request(1, CHUNK * IDLE_CHUNKS + 1, answers=2)
    scheduler.add(request)
    carry_out(scheduler, scheduler.plan())
    scheduler.end(request.sequences[0])
    plan = scheduler.plan()
    assert [(c.sequence.index, c.start) for c in plan.prefill] == [(1, 0)]


@given(st.data())
def test_no_slot_leaks_whatever_arrives_and_is_cancelled(data: st.DataObject) -> None:
    scheduler = make_scheduler(slots=3)
    requests: list[Request] = []
    for number in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            request = make_request(number, data.draw(st.integers(1, 70)), answers=data.draw(st.integers(1, 3)))
            requests.append(request)
            scheduler.add(request)
        alive = [s for r in requests for s in r.sequences if s.phase is not Phase.DONE]
        if alive and data.draw(st.booleans()):
            scheduler.end(data.draw(st.sampled_from(alive)))
        carry_out(scheduler, scheduler.plan())
        seated = list(scheduler.slots.holders())
        assert len({s.slot for s in seated}) == len(seated) == scheduler.running
        assert all(s.phase in (Phase.PREFILL, Phase.FOLLOWING, Phase.DECODE) for s in seated)
        for s in seated:
            assert s.cursor <= len(s.request.tokens)
            if s.phase is Phase.FOLLOWING:
                assert any(o.phase is Phase.PREFILL for o in s.request.sequences)
    for request in requests:
        for sequence in request.sequences:
            if sequence.phase is not Phase.DONE:
                scheduler.end(sequence)
    assert scheduler.idle
