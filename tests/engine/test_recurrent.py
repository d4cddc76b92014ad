"""A model whose memory can be neither cut nor copied is measured, loaded and answers; it keeps no prefixes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from edge.engine.client import EngineClient
from edge.messages import Sampling, Submit, TokenPrompt
from tests.engine.conftest import collect, load_of, run_with_engine
from tests.engine.recurrent import write_lfm2, write_mamba

QUESTION = Submit(0, TokenPrompt(list(range(300, 500))), Sampling(temperature=0.0), max_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("layout", ["streams", "unified"])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("write", [write_mamba, write_lfm2])
def test_it_answers_alike_in_every_slot_and_again(
    tmp_path: Path, write: Callable[[Path], None], layout: Literal["streams", "unified"], slots: int
) -> None:
    write(tmp_path / "model.gguf")

    async def use(client: EngineClient) -> None:
        assert client.facts is not None and not client.facts.caches_prefixes
        first = await collect(client, QUESTION)
        others = await asyncio.gather(*(collect(client, QUESTION) for _ in range(6)))
        await asyncio.sleep(0.5)
        last = await collect(client, QUESTION)
        assert {answer.texts[0] for answer in (*others, last)} == {first.texts[0]}
        assert last.finished is not None and last.finished.cached_tokens == 0
        assert client.status.restarts == 0

    run_with_engine(load_of(tmp_path / "model.gguf", slots=slots, kv_layout=layout, heartbeat_s=0.1), use)
