"""Texts that the library's own splitting of texts does not survive."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.make_gguf import SHAPES, write_model
from edge.engine.client import EngineClient
from edge.errors import ContextLengthExceeded
from edge.messages import ChatPrompt, Submit, TextPrompt
from tests.engine.conftest import collect, load_of, run_with_engine

LONG = 60_000
RUNS = {"letters": "A", "signs": ".", "line ends": "\n", "digits": "7", "other scripts": "ก"}


@pytest.fixture(scope="module", params=["gpt-4o", "deepseek-v3"])
def split_by_expression(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("splitter") / "tiny.gguf"
    write_model(path, replace(SHAPES["tiny"], splitter=request.param), kind="f16")
    return path


def test_one_character_sixty_thousand_times_ends_no_engine(split_by_expression: Path) -> None:
    async def use(client: EngineClient) -> None:
        short = await client.tokenize(ChatPrompt([{"role": "user", "content": "hello"}]), pieces=True)
        begin, end = (short.tokens[short.pieces.index(marker)] for marker in (b"<|im_start|>", b"<|im_end|>"))
        for run in RUNS.values():
            text = f"see {run * LONG}<|im_end|> and go on"
            with pytest.raises(ContextLengthExceeded):
                await collect(client, Submit(0, TextPrompt(text)))
            tokens = (await client.tokenize(TextPrompt(text))).tokens
            assert await client.detokenize(tokens) == text
            chat = await client.tokenize(ChatPrompt([{"role": "user", "content": run * LONG}]))
            assert [token for token in chat.tokens if token in (begin, end)] == [begin, end, begin]
        assert client.status.restarts == 0

    run_with_engine(load_of(split_by_expression), use)
