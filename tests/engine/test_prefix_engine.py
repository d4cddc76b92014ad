"""Beginnings of prompts in a real engine: known cells give the answers that computed ones give, and survive a restart."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge.engine.client import EngineClient
from edge.engine.steps import TILE_ROWS
from edge.errors import ModelUnusable
from edge.messages import Finished, Prompt, Sampling, Submit, TextPrompt, TokenPrompt
from tests.engine.conftest import F16, collect, load_of, run_with_engine

GREEDY = Sampling(temperature=0.0)
BEGINNING = "The pump is running and the operator writes a note about the pressure. " * 20
LAYOUTS = pytest.mark.parametrize("layout", ["streams", "unified"])


def ask(end: str, *, cache: bool = True, key: str = "", tokens: int = 12) -> Submit:
    prompt = TextPrompt(BEGINNING + end)
    return Submit(0, prompt, GREEDY, max_tokens=tokens, ignore_eos=True, cache=cache, key=key)


async def finished(client: EngineClient, work: Submit) -> tuple[str, Finished]:
    answer = await collect(client, work)
    assert answer.finished is not None
    return answer.texts[0], answer.finished


@LAYOUTS
def test_known_cells_give_the_same_answer_as_computed_ones(layout: str) -> None:
    async def use(client: EngineClient) -> None:
        await finished(client, ask("First."))
        known, told = await finished(client, ask("What now?"))
        computed, plain = await finished(client, ask("What now?", cache=False))
        assert known == computed
        assert told.cached_tokens > 0.8 * told.prompt_tokens and plain.cached_tokens == 0

    run_with_engine(load_of(F16, kv_layout=layout), use)


def test_eight_at_once_with_one_new_beginning_compute_it_once() -> None:
    async def use(client: EngineClient) -> None:
        answers = await asyncio.gather(*(finished(client, ask(BEGINNING * 3 + f"Question {n}.")) for n in range(8)))
        computed = [told.prompt_tokens - told.cached_tokens for _, told in answers]
        # The others compute a tile each, where passes of fewer rows were measured to take longer.
        assert sum(computed) <= max(computed) + 7 * (TILE_ROWS + 16) < 2 * max(computed)
        while client.stats is None or client.stats.running or client.stats.waiting:
            await asyncio.sleep(0.02)
        assert client.stats.cells_used == 0

    run_with_engine(load_of(F16), use)


def test_isolated_keys_share_nothing() -> None:
    async def use(client: EngineClient) -> None:
        await finished(client, ask("First.", key="one"))
        _, stranger = await finished(client, ask("Second.", key="two"))
        _, owner = await finished(client, ask("Third.", key="one"))
        assert stranger.cached_tokens == 0 < owner.cached_tokens

    run_with_engine(load_of(F16, isolate_keys=True), use)


def test_a_pinned_beginning_is_known_at_once_and_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    texts: list[str] = []

    async def use(client: EngineClient) -> None:
        text, told = await finished(client, ask("What now?"))
        assert told.cached_tokens > 0.8 * told.prompt_tokens
        texts.append(text)

    load = load_of(F16, pinned=[TextPrompt(BEGINNING)], state_directory=str(tmp_path))
    run_with_engine(load, use)
    (kept,) = tmp_path.glob("*/*.cells")
    before = kept.stat().st_mtime_ns
    run_with_engine(load, use)
    assert kept.stat().st_mtime_ns == before, "it was computed although it was kept"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 0xFF
    kept.write_bytes(data)
    run_with_engine(load, use)
    assert kept.read_bytes() != data, "the damaged file was not replaced"
    assert len(set(texts)) == 1


def test_what_was_asked_before_a_restart_is_known_after_it_and_damage_is_noticed(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    async def use(client: EngineClient) -> None:
        text, told = await finished(client, ask("What now?"))
        seen.append((text, told.cached_tokens))

    load = load_of(F16, kept_bytes=8 << 20, state_directory=str(tmp_path))
    run_with_engine(load, use)
    (kept,) = tmp_path.glob("*/*.prefix")
    run_with_engine(load, use)
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 0xFF
    kept.write_bytes(data)
    run_with_engine(load, use)
    (cold, warm, damaged) = seen
    assert (cold[1], damaged[1]) == (0, 0) and warm[1] > 100
    assert {text for text, _ in seen} == {cold[0]}


def test_cells_of_another_version_of_the_model_are_not_used_however_alike_the_files(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copyfile(F16, model)
    seen: list[int] = []

    async def use(client: EngineClient) -> None:
        _, told = await finished(client, ask("What now?"))
        seen.append(told.cached_tokens)

    load = load_of(model, kept_bytes=8 << 20, state_directory=str(tmp_path / "state"))
    run_with_engine(load, use)
    with model.open("r+b") as file:  # weights in the middle, as another training would leave them
        file.seek(model.stat().st_size // 2)
        file.write(bytes(64))
    run_with_engine(load, use)
    run_with_engine(load, use)
    assert seen[:2] == [0, 0] and seen[2] > 100


@pytest.mark.parametrize("then", [{"kept_bytes": 0}, {"kept_bytes": 1000}, {"isolate_keys": False}])
def test_what_may_not_be_kept_any_more_is_not_used_and_not_left_lying_about(
    tmp_path: Path, then: dict[str, Any]
) -> None:
    async def use(client: EngineClient) -> None:
        _, told = await finished(client, ask("What now?", key="one"))
        assert told.cached_tokens == 0

    before = {"kept_bytes": 8 << 20, "isolate_keys": True, "state_directory": str(tmp_path)}
    run_with_engine(load_of(F16, **before), use)
    theirs = set(tmp_path.glob("*/*.prefix"))
    assert theirs
    run_with_engine(load_of(F16, **{**before, **then}), use)
    assert not theirs & set(tmp_path.glob("*/*.prefix"))


def test_pinned_prompts_beyond_their_memory_are_refused_before_all_of_them_are_held() -> None:
    async def use(client: EngineClient) -> None:
        raise AssertionError("it loaded")

    pinned: list[Prompt] = [TokenPrompt([300 + n] * 200) for n in range(4)]
    with pytest.raises(ModelUnusable, match=r"the first 1 of 4 prompts of cache.pinned_file need .*cache.host_mib"):
        run_with_engine(load_of(F16, pinned=pinned, cache_bytes=1 << 10), use)
