"""The unified layout when all cells are kept: an idle engine proves itself still, and pins that leave no room are refused."""

import asyncio

import pytest

from edge.engine.client import EngineClient
from edge.errors import EngineFault, ModelUnusable
from edge.messages import Finished, Sampling, Submit, TokenPrompt
from tests.engine.conftest import F16, collect, load_of, run_with_engine

GREEDY = Sampling(temperature=0.0)
FULL = {"slots": 2, "context_tokens": 256, "kv_layout": "unified", "heartbeat_s": 0.2}


def test_an_idle_engine_whose_cells_are_all_kept_still_proves_itself() -> None:
    async def use(client: EngineClient) -> None:
        for number in range(12):
            prompt = TokenPrompt([300 + number] * 118)
            answer = await collect(client, Submit(0, prompt, GREEDY, max_tokens=6, ignore_eos=True))
            assert isinstance(answer.finished, Finished)
        await asyncio.sleep(3)
        await collect(client, Submit(0, TokenPrompt([299] * 20), GREEDY, max_tokens=2))
        assert client.status.restarts == 0

    run_with_engine(load_of(F16, threads=0, **FULL), use)


def test_pinned_prompts_that_leave_no_cells_are_refused_by_name() -> None:
    async def use(client: EngineClient) -> None:
        raise AssertionError("it loaded")

    pinned = [TokenPrompt([300 + n] * 200) for n in range(3)]
    with pytest.raises(ModelUnusable, match="pinned"):
        run_with_engine(load_of(F16, pinned=pinned, **FULL), use)


def test_the_whole_context_can_be_used_where_there_is_one_slot() -> None:
    async def use(client: EngineClient) -> None:
        prompt = TokenPrompt([300 + number % 100 for number in range(240)])
        answer = await collect(client, Submit(0, prompt, GREEDY, max_tokens=16, ignore_eos=True))
        assert answer.finished is not None and answer.finished.completion_tokens == 16

    run_with_engine(load_of(F16, **{**FULL, "slots": 1}), use)


def test_where_cells_do_not_suffice_for_all_one_answer_fails_and_the_others_go_on() -> None:
    async def use(client: EngineClient) -> None:
        async def outcome(number: int) -> str:
            prompt = TokenPrompt([300 + number] * 110)
            try:
                answer = await collect(client, Submit(0, prompt, GREEDY, max_tokens=130, ignore_eos=True))
                return answer.finishes[0]
            except EngineFault as fault:
                return fault.message

        # Six, so that two of them run beside each other wherever this process or the child stands still for a while.
        met = await asyncio.gather(*(outcome(number) for number in range(6)))
        assert set(met) == {"length", "the engine ran out of KV cells"}
        assert await outcome(6) == "length"

    run_with_engine(load_of(F16, pinned=[TokenPrompt([299] * 200)], **FULL), use)
