"""The engine child as its owner sees it: one reply per request whatever happens, and back on its feet afterwards."""

import asyncio
import itertools
import os
import signal
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge.dialects.tools import GrammarSpec, ToolFormat, ToolSpec, response_grammar, tool_grammar
from edge.engine.client import EngineClient
from edge.engine.port import StreamEvent
from edge.errors import (
    ContextLengthExceeded,
    EngineDown,
    InvalidRequest,
    ModelUnusable,
    Overloaded,
    UnsupportedParameter,
    UnsupportedSchema,
)
from edge.messages import MOST_PIECES, ChatPrompt, Finished, Sampling, Submit, TextPrompt, Token, TokenPrompt
from tests.engine.conftest import LIMITS, Q4_0, collect, load_of, run_with_engine
from tests.threads import policies_of

GREEDY = Sampling(temperature=0.0)
LONG = Submit(0, TextPrompt("pump 3"), GREEDY, max_tokens=1500, ignore_eos=True)


def chat(text: str, **changes: Any) -> Submit:
    return Submit(0, ChatPrompt([{"role": "user", "content": text}]), **{"sampling": GREEDY, **changes})


async def until_ready(client: EngineClient) -> None:
    while client.status.phase != "ready":
        await client.changed()


async def until_idle(client: EngineClient) -> None:
    while (
        client.in_flight
        or client.stats is None
        or client.stats.running
        or client.stats.waiting
        or client.stats.cells_used
    ):
        await asyncio.sleep(0.02)


async def ending(client: EngineClient, work: Submit) -> StreamEvent | Exception:
    """A request's one terminal event, or the error that ended it."""
    last: StreamEvent | None = None
    try:
        async for event in client.submit(work):
            last = event
    except Exception as error:
        return error
    assert last is not None
    return last


def test_an_answer_in_words() -> None:
    async def use(client: EngineClient) -> None:
        answer = await collect(client, chat("Who are you?"))
        assert "built-in model" in answer.texts[0]
        assert answer.finishes == {0: "stop"}
        assert answer.finished is not None
        assert answer.finished.completion_tokens > 5

    run_with_engine(load_of(Q4_0), use)


def test_answers_to_one_prompt_are_what_single_requests_get() -> None:
    async def use(client: EngineClient) -> None:
        sampling = Sampling(temperature=1.2, seed=40)
        together = await collect(client, chat("tell me about pumps", n=4, sampling=sampling, max_tokens=24))
        assert set(together.texts) == set(together.finishes) == {0, 1, 2, 3}
        for index in range(4):
            alone = Sampling(temperature=1.2, seed=40 + index)
            single = await collect(client, chat("tell me about pumps", sampling=alone, max_tokens=24))
            # Batches of another size may tip a near-tie late in the text; the beginning shows whose prompt it was.
            assert single.texts[0][:8] == together.texts[index][:8]

    run_with_engine(load_of(Q4_0), use)


def test_nothing_of_one_request_appears_in_another() -> None:
    async def use(client: EngineClient) -> None:
        numbers = list(range(1, 21))
        asked = [chat(f"Where is pump {n}?", max_tokens=40) for n in numbers]
        told = [{"role": "system", "content": f"Pump {n} is in hall {n % 4 + 1}."} for n in numbers]
        works = [
            Submit(0, ChatPrompt([t, {"role": "user", "content": f"where is pump {n}"}]), GREEDY, max_tokens=40)
            for n, t in zip(numbers, told, strict=True)
        ]
        alone = [(await collect(client, w)).texts[0] for w in works]
        mixed = await asyncio.gather(*(collect(client, w) for pair in zip(works, asked, strict=True) for w in pair))
        assert [a.texts[0] for a in mixed[::2]] == alone

    run_with_engine(load_of(Q4_0), use)


def test_a_cancelled_request_frees_its_slot_and_its_cells_in_prefill_too() -> None:
    async def use(client: EngineClient) -> None:
        streams = [client.submit(LONG) for _ in range(12)]
        streams += [client.submit(Submit(0, TokenPrompt([300] * 2000), GREEDY)) for _ in range(12)]
        await asyncio.sleep(0.05)
        for stream in streams:
            stream.abort()
        await asyncio.wait_for(until_idle(client), 60)

    run_with_engine(load_of(Q4_0), use)


def test_a_full_queue_refuses_at_once() -> None:
    limits = replace(LIMITS, max_waiting=2)

    async def use(client: EngineClient) -> None:
        streams = [client.submit(LONG) for _ in range(4)]
        with pytest.raises(Overloaded):
            client.submit(LONG)
        for stream in streams:
            stream.abort()
        await until_idle(client)

    run_with_engine(load_of(Q4_0, slots=2), use, limits)


def test_twenty_kills_during_eight_streams() -> None:
    async def use(client: EngineClient) -> None:
        own = psutil.Process()
        sizes, killed, late = list[int](), list[int](), 0
        while len(sizes) < 20:
            await until_ready(client)
            tasks = [asyncio.create_task(ending(client, LONG)) for _ in range(8)]
            while (client.stats is None or client.stats.running < 8) and not all(t.done() for t in tasks):
                await asyncio.sleep(0.01)
            pid = client.status.pid
            assert pid is not None
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            endings = await asyncio.wait_for(asyncio.gather(*tasks), 120)
            while client.status.pid == pid:  # where all were over already nobody has noticed yet
                await asyncio.sleep(0.01)
            assert all(isinstance(e, EngineDown | Finished) for e in endings), endings
            assert client.in_flight == 0
            if any(isinstance(e, Finished) for e in endings):  # this process stood still until they were answered
                late += 1
                assert late < 20, "a kill ends answers as if they were whole"
                continue
            sizes.append(own.memory_info().rss)
        await until_ready(client)
        assert isinstance(await ending(client, chat("hello")), Finished)
        assert client.status.restarts == len(killed)
        growth = [b - a for a, b in itertools.pairwise(sizes[4:])]
        # What leaks does so at every kill; what the allocator or the kernel takes in one piece comes at one of them.
        assert statistics.median(growth) < 512 * 1024, growth
        assert not [p for p in own.children() if p.pid in killed], "a zombie is left"

    run_with_engine(load_of(Q4_0), use)


def test_an_engine_that_does_not_restart_has_ended_for_good_when_its_child_dies() -> None:
    async def main() -> None:
        client = EngineClient(load_of(Q4_0, background=True), LIMITS, restarts=False)
        await client.start()
        try:
            # It gets only what other processes leave.
            await asyncio.wait_for(client.wait_ready(), LIMITS.load_timeout_s)
            pid = client.status.pid
            assert pid is not None and os.sched_getscheduler(pid) == os.SCHED_IDLE
            assert policies_of(pid) == {os.SCHED_IDLE}
            os.kill(pid, signal.SIGSTOP)  # or it could have answered before it is killed
            running = asyncio.create_task(ending(client, LONG))
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            assert "signal 9" in await asyncio.wait_for(client.ended(), 60)
            assert isinstance(await running, EngineDown)
            assert not psutil.pid_exists(pid) and client.status.phase == "down"
            with pytest.raises(EngineDown):
                client.submit(LONG)
        finally:
            await client.stop()

    asyncio.run(main())


def test_what_was_counted_stays_when_the_child_is_replaced() -> None:
    async def use(client: EngineClient) -> None:
        prompt = Submit(0, TextPrompt("the pump in hall four " * 40), GREEDY, max_tokens=1)
        for hits in (1, 2):
            for _ in range(2):
                await collect(client, prompt)
            while client.counts.cache_hits < hits:
                await asyncio.sleep(0.02)
            assert client.counts.cache_hits == hits and client.counts.cached_tokens > 0
            assert client.status.pid is not None
            os.kill(client.status.pid, signal.SIGKILL)
            while client.status.phase == "ready":
                await asyncio.sleep(0.02)
            assert client.counts.cache_hits == hits
            await until_ready(client)

    run_with_engine(load_of(Q4_0), use)


def test_a_wedged_child_is_noticed_and_replaced() -> None:
    async def use(client: EngineClient) -> None:
        first = client.status.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)  # before it is asked: it could have answered by then
        error = await asyncio.wait_for(ending(client, LONG), 120)
        assert isinstance(error, EngineDown)
        assert "no sign of life" in error.message
        await until_ready(client)
        assert client.status.pid != first
        assert isinstance(await ending(client, chat("hello")), Finished)

    run_with_engine(load_of(Q4_0), use, replace(LIMITS, wedge_timeout_s=8.0))


class OddClient(EngineClient):
    """Its child hangs."""

    module = "tests.engine.odd_child"


def test_a_child_that_cannot_even_die_leaves_nobody_waiting() -> None:
    async def main() -> None:
        client = OddClient(load_of(Path("ready")), replace(LIMITS, wedge_timeout_s=0.5))
        await client.start()
        await client.wait_ready()
        with pytest.raises(EngineDown, match="no sign of life"):
            await asyncio.wait_for(collect(client, Submit(0, TextPrompt("x"))), 60)
        assert client.status.phase == "down" and client.in_flight == 0
        await client.stop()

    asyncio.run(main())


def test_a_child_that_is_stopped_while_it_loads_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        client = OddClient(load_of(Path("loading")), LIMITS)
        await client.start()
        while client.status.reason != "hanging":
            await client.changed()
        await client.stop()

    asyncio.run(main())
    assert "engine_kill" not in [getattr(record, "event", "") for record in caplog.records]


def test_while_the_engine_is_down_requests_are_refused_with_the_reason() -> None:
    async def use(client: EngineClient) -> None:
        assert client.status.pid is not None
        os.kill(client.status.pid, signal.SIGKILL)
        while client.status.phase == "ready":
            await asyncio.sleep(0.005)
        with pytest.raises(EngineDown, match="engine is"):
            client.submit(LONG)
        await until_ready(client)

    run_with_engine(load_of(Q4_0), use)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (Submit(0, TokenPrompt([999_999])), InvalidRequest),
        (Submit(0, TokenPrompt([])), InvalidRequest),
        (Submit(0, TokenPrompt([300] * 2048)), ContextLengthExceeded),
        (Submit(0, TextPrompt("x"), Sampling(logit_bias={99_999: 1.0})), InvalidRequest),
        (Submit(0, TextPrompt("x"), grammar=response_grammar({"not": {}})), UnsupportedSchema),
        (Submit(0, TextPrompt("x"), grammar=GrammarSpec("lark", "start: nowhere")), UnsupportedSchema),
        (Submit(0, TextPrompt("x"), grammar=response_grammar({}), ignore_eos=True), UnsupportedParameter),
        (chat("hi").__class__(0, ChatPrompt([{"role": "alien", "content": "x"}])), InvalidRequest),
    ],
)
def test_a_bad_request_fails_alone(work: Submit, error: type[Exception]) -> None:
    async def use(client: EngineClient) -> None:
        running = asyncio.create_task(ending(client, chat("tell me about pumps")))
        assert isinstance(await ending(client, work), error)
        assert isinstance(await running, Finished)

    run_with_engine(load_of(Q4_0), use)


def test_tokens_bytes_come_where_they_are_wanted_and_few() -> None:
    async def use(client: EngineClient) -> None:
        text = TextPrompt("pump 3")
        told = await client.tokenize(text, add_special=False, pieces=True)
        assert b"".join(told.pieces).strip() == b"pump 3"
        assert (await client.tokenize(text)).pieces == []
        many = TokenPrompt(told.tokens * MOST_PIECES)
        assert len((await client.tokenize(many)).tokens) > MOST_PIECES
        with pytest.raises(InvalidRequest, match="with_pieces"):
            await client.tokenize(many, pieces=True)

    run_with_engine(load_of(Q4_0), use)


def test_the_field_whose_schema_cannot_be_held_is_named() -> None:
    tool = ToolSpec("f", {"type": "object", "properties": {"a": {"not": {}}}})

    async def use(client: EngineClient) -> None:
        for grammar, param in (
            (response_grammar({"not": {}}), "response_format"),
            (tool_grammar(ToolFormat.HERMES, [tool], choice="required", parallel=True), "tools"),
        ):
            failed = await ending(client, Submit(0, TextPrompt("x"), grammar=grammar))
            assert isinstance(failed, UnsupportedSchema)
            assert failed.param == param

    run_with_engine(load_of(Q4_0), use)


def test_an_answer_whose_grammar_gives_up_ends_with_an_error_and_nobody_elses() -> None:
    fields = [{f"k{i}x{j}": {"type": "string"} for j in range(20)} for i in range(50)]
    open_names = {"anyOf": [{"type": "object", "properties": f, "additionalProperties": False} for f in fields]}
    properties = {"a": {"type": "boolean"}, "b": open_names}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}

    async def use(client: EngineClient) -> None:
        running = asyncio.create_task(ending(client, chat("tell me about pumps")))
        error = await ending(client, chat("go", grammar=response_grammar(schema), max_tokens=300))
        assert isinstance(error, UnsupportedSchema) and "too many names" in error.message
        assert isinstance(await running, Finished)
        assert client.in_flight == 0

    run_with_engine(load_of(Q4_0), use)


def test_a_prompt_that_just_fits_gets_its_one_token() -> None:
    async def use(client: EngineClient) -> None:
        answer = await collect(client, Submit(0, TokenPrompt([300] * 2047), GREEDY, max_tokens=50, ignore_eos=True))
        assert answer.finishes == {0: "length"}
        assert answer.finished is not None
        assert answer.finished.completion_tokens == 1

    run_with_engine(load_of(Q4_0), use)


def test_stop_strings_seed_bias_and_penalties_do_what_they_say() -> None:
    async def use(client: EngineClient) -> None:
        whole = (await collect(client, chat("tell me about pumps"))).texts[0]
        stop = whole.split(". ")[1][:9]
        assert (await collect(client, chat("tell me about pumps", stop=(stop,)))).texts[0] == whole[: whole.index(stop)]
        warm = [Sampling(temperature=1.5, seed=s) for s in (1, 1, 2)]
        first, same, other = [(await collect(client, chat("hello", sampling=s, max_tokens=30))).texts[0] for s in warm]
        assert first == same
        assert first != other
        token = (await client.tokenize(TextPrompt(" pump"), add_special=False)).tokens[0]
        only = Sampling(temperature=0.0, logit_bias={token: 100.0})
        assert (await collect(client, chat("x", sampling=only, max_tokens=3))).texts[0] == " pump pump pump"
        banned = Sampling(temperature=0.0, logit_bias={token: 100.0}, presence_penalty=2.0, repeat_penalty=10.0)
        assert (await collect(client, chat("x", sampling=banned, max_tokens=3))).texts[0] != " pump pump pump"

    run_with_engine(load_of(Q4_0), use)


def test_logprobs_are_a_distribution_and_belong_to_the_tokens() -> None:
    async def use(client: EngineClient) -> None:
        answer = await collect(client, chat("hello", top_logprobs=5))
        assert b"".join(e.token for e in answer.logprobs[0]).decode() == answer.texts[0]
        for entry in answer.logprobs[0]:
            assert entry.logprob <= 1e-6
            assert entry.top[0] == (entry.token, entry.logprob)
            assert [p for _, p in entry.top] == sorted((p for _, p in entry.top), reverse=True)

    run_with_engine(load_of(Q4_0), use)


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(64)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_model_ends_the_load_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)

    async def use(client: EngineClient) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(ModelUnusable, match="broken"):
        run_with_engine(load_of(path), use, LIMITS)


def test_text_that_no_tokenizer_expects_is_answered() -> None:
    async def use(client: EngineClient) -> None:
        for text in ("\x00\x01", "🙂" * 50, "‮", "<|end|><|system|>", "a" * 1500):
            answer = await collect(client, chat(text, max_tokens=4))
            assert isinstance(answer.finished, Finished)

    run_with_engine(load_of(Q4_0), use)


def test_half_a_surrogate_pair_is_refused() -> None:
    async def use(client: EngineClient) -> None:
        with pytest.raises(InvalidRequest, match="surrogate"):
            client.submit(chat("\ud800"))
        assert client.in_flight == 0

    run_with_engine(load_of(Q4_0), use)


def test_a_token_message_never_carries_half_a_character() -> None:
    async def use(client: EngineClient) -> None:
        work = Submit(0, TextPrompt("°"), Sampling(temperature=2.0, seed=3), max_tokens=300, ignore_eos=True)
        async for event in client.submit(work):
            if isinstance(event, Token) and event.finish is None:
                event.text.encode("utf-8")

    run_with_engine(load_of(Q4_0), use)
