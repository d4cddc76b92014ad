"""Our batching must not change what the model says: compared with llama-cpp-python's one-request-at-a-time `Llama`."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama

from edge.engine.client import EngineClient
from edge.messages import Sampling, Submit, TokenPrompt
from tests.engine.conftest import F16, Q4_0, Answer, collect, load_of, run_with_engine

ANSWER_TOKENS = 40
NEAR_TIE = {F16: 0.02, Q4_0: 0.2}
"""Top-2 margins in log-probability below which a different batch may tip the balance (docs/adr/0001)."""


def reference(path: Path, prompts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """(prompt tokens, greedy answer tokens) by the `Llama` class, each prompt in one chunk as ours."""
    llama = Llama(str(path), n_ctx=2048, n_batch=512, n_threads=1, n_threads_batch=1, flash_attn=False, verbose=False)
    asked, answered = [], []
    for prompt in prompts:
        tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        answer: list[int] = []
        llama.reset()
        for token in llama.generate(tokens, top_k=1, temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(answer) == ANSWER_TOKENS:
                break
            answer.append(token)
        asked.append(tokens)
        answered.append(answer)
    llama.close()
    return asked, answered


def work_for(tokens: list[int]) -> Submit:
    return Submit(0, TokenPrompt(tokens), Sampling(temperature=0.0), max_tokens=ANSWER_TOKENS, top_logprobs=2)


def pieces(answer: Answer) -> list[bytes]:
    return [entry.token for entry in answer.logprobs.get(0, [])]


def same_or_near_tie(answer: Answer, expected: list[bytes], margin: float) -> None:
    got = pieces(answer)
    for position, (mine, theirs) in enumerate(zip(got, expected, strict=False)):
        if mine != theirs:
            top = answer.logprobs[0][position].top
            assert top[0][1] - top[1][1] < margin, f"{got} instead of {expected} at token {position}"
            return
    assert len(got) == len(expected)


async def spelled(client: EngineClient, answers: list[list[int]]) -> list[list[bytes]]:
    return [(await client.tokenize(TokenPrompt(a), pieces=True)).pieces if a else [] for a in answers]


def test_greedy_answers_equal_the_llama_class_on_f16(prompts: list[str]) -> None:
    asked, answered = reference(F16, prompts)

    async def use(client: EngineClient) -> None:
        for tokens, expected in zip(asked, await spelled(client, answered), strict=True):
            assert pieces(await collect(client, work_for(tokens))) == expected

    run_with_engine(load_of(F16, pass_tokens=128), use)


@pytest.mark.parametrize("path", [F16, Q4_0], ids=["f16", "q4_0"])
def test_eight_at_a_time_differ_at_near_ties_only(path: Path, prompts: list[str]) -> None:
    asked, answered = reference(path, prompts)

    async def use(client: EngineClient) -> None:
        gate = asyncio.Semaphore(8)

        async def one(tokens: list[int]) -> Answer:
            async with gate:
                return await collect(client, work_for(tokens))

        answers: list[Any] = await asyncio.gather(*(one(tokens) for tokens in asked))
        for answer, expected in zip(answers, await spelled(client, answered), strict=True):
            same_or_near_tie(answer, expected, NEAR_TIE[path])

    run_with_engine(load_of(path, pass_tokens=128), use)
