"""The tensor child as its owner sees it: one reply per request whatever happens, and back on its feet afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from edge.engine.supervised import EngineLimits
from edge.errors import DoesNotFit, EdgeError, EngineDown, EngineFault, InvalidRequest, ModelUnusable, Overloaded
from edge.onnx.client import TensorClient
from edge.onnx.messages import Embedded, Tensor
from tests.onnx.conftest import (
    LIMITS,
    MIB,
    detector_load_of,
    load_of,
    reading_of,
    run_with_child,
)
from tests.threads import policies_of

SENTENCES = ["pump three is on", "a valve", "the alarm in hall two rang at night, and nobody knew why it did", "x"] * 6


def vectors(found: Embedded) -> np.ndarray:
    return np.frombuffer(found.vectors, np.float32).reshape(-1, found.width)


def by_hand(encoder: Path, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """One text at a time, in the plainest way."""
    session = onnxruntime.InferenceSession(str(encoder / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    found = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        states = session.run(["last_hidden_state"], feeds)[0][0]
        one = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]
        found.append(one / np.linalg.norm(one))
    return np.array(found)


async def until_ready(client: TensorClient) -> None:
    while client.status.phase != "ready":
        await client.changed()


async def ending(work: Any) -> Any:
    try:
        return await work
    except EdgeError as error:
        return error


async def asking_until_it_dies(client: TensorClient, texts: list[str]) -> EngineDown:
    """One request after the other, so that one is in the works whenever its child is killed."""
    while True:
        answer = await ending(client.embed(list(texts), "", None))
        if isinstance(answer, EngineDown):
            return answer
        assert isinstance(answer, Embedded)


def test_vectors_are_those_of_each_text_by_itself(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        exact = by_hand(encoder, SENTENCES)
        whole = await client.embed(list(SENTENCES), "", None)
        assert vectors(whole) == pytest.approx(exact, abs=2e-5)
        apart = await asyncio.gather(*(client.embed([text], "", None) for text in SENTENCES))
        assert np.concatenate([vectors(one) for one in apart]) == pytest.approx(exact, abs=2e-5)
        assert whole.tokens == sum(one.tokens for one in apart)
        assert client.in_flight == 0

    run_with_child(load_of(encoder, reading_of(encoder)), use)


def test_a_text_that_fails_fails_alone(encoder: Path, tmp_path: Path) -> None:
    """Its first word has a vector that is no number: no other text of its pass may notice."""
    model = onnx.load(encoder / "model.onnx")
    bad = Tokenizer.from_file(str(encoder / "tokenizer.json")).encode("zz").ids[1]
    words = next(w for w in model.graph.initializer if "word_embeddings" in w.name)
    table = numpy_helper.to_array(words).copy()
    table[bad] = np.nan
    words.CopyFrom(numpy_helper.from_array(table, words.name))
    onnx.save(model, tmp_path / "model.onnx")

    async def use(client: TensorClient) -> None:
        texts = ["a valve", "zz", "a pump", "zz zz", "a fan"]
        found = await asyncio.gather(*(ending(client.embed([text], "", None)) for text in texts))
        assert [isinstance(one, EngineFault) for one in found] == ["zz" in text for text in texts]
        assert client.status.restarts == 0

    run_with_child(load_of(encoder, reading_of(encoder), path=str(tmp_path / "model.onnx")), use)


def test_kills_in_the_middle_of_requests_leave_none_without_an_answer(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        killed = []
        for _ in range(3):
            await until_ready(client)
            tasks = [asyncio.create_task(asking_until_it_dies(client, SENTENCES * 20)) for _ in range(8)]
            await asyncio.sleep(0.05)
            assert client.status.pid is not None
            killed.append(client.status.pid)
            os.kill(client.status.pid, signal.SIGKILL)
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
            assert client.in_flight == 0
        await until_ready(client)
        assert isinstance(await client.embed(["a"], "", None), Embedded)
        assert client.status.restarts == 3
        assert not [p for p in psutil.Process().children() if p.pid in killed], "a zombie is left"

    run_with_child(load_of(encoder, reading_of(encoder)), use)


def test_what_was_counted_stays_when_the_child_is_replaced(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        for round_number in (1, 2):
            await until_ready(client)
            await client.embed(["a", "b", "c"], "", None)
            while client.counts.texts < 3 * round_number:
                await asyncio.sleep(0.02)
            assert client.counts.texts == 3 * round_number and client.counts.restarts == round_number - 1
            assert client.status.pid is not None
            os.kill(client.status.pid, signal.SIGKILL)
            while client.status.phase == "ready":
                await asyncio.sleep(0.02)
            assert client.counts.texts == 3 * round_number

    run_with_child(load_of(encoder, reading_of(encoder)), use)


def test_a_wedged_child_is_noticed_and_replaced(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        first = client.status.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        error = await asyncio.wait_for(ending(client.embed(["a"], "", None)), 240)
        assert isinstance(error, EngineDown) and "no sign of life" in error.message
        await until_ready(client)
        assert client.status.pid != first
        assert isinstance(await client.embed(["a"], "", None), Embedded)

    # With one row: patience grows with the longest pass, which a machine that stands still while it is measured makes long.
    run_with_child(load_of(encoder, reading_of(encoder), most_rows=1), use, EngineLimits(8, 8.0, 600.0, 2.0))


def test_a_full_queue_refuses_and_a_client_that_leaves_frees_its_place(encoder: Path) -> None:
    many = SENTENCES * 400  # far more than are computed until their clients leave, however long that takes

    async def use(client: TensorClient) -> None:
        tasks = [asyncio.create_task(client.embed(many, "", None)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await client.embed(["a"], "", None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert client.in_flight == 0
        assert isinstance(await client.embed(["a"], "", None), Embedded)
        while client.stats is None or client.stats.waiting:
            await asyncio.sleep(0.05)
        assert client.stats.rows < 3 * len(many), "what nobody waits for was computed"

    run_with_child(load_of(encoder, reading_of(encoder)), use, EngineLimits(2, 60.0, 600.0, 2.0))


def test_memory_beyond_the_plan_is_refused_and_the_child_lives_on(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        assert client.status.pid is not None
        process = psutil.Process(client.status.pid)
        huge = np.ones((2000, 128), np.int64)
        tensors = [
            Tensor(name, "INT64", [2000, 128], huge.tobytes())
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        with pytest.raises(InvalidRequest, match="needs more memory for this than the 200 MiB"):
            await client.infer(tensors, [])
        assert process.memory_info().rss < 260 * MIB
        small = [Tensor(t.name, t.datatype, [1, 4], t.data[:32]) for t in tensors]
        found = await client.infer(small, ["pooler_output"])
        assert [(t.name, t.datatype, t.shape, len(t.data)) for t in found] == [("pooler_output", "FP32", [1, 64], 256)]
        assert client.status.restarts == 0

    run_with_child(load_of(encoder, limit_bytes=200 * MIB), use)


def squares(path: Path) -> Path:
    """A square matrix times itself, 64 times: a pass as long as its sender likes."""
    nodes = [helper.make_node("MatMul", [f"x{n}", f"x{n}"], [f"x{n + 1}"]) for n in range(64)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("side", "side")) for name in ("x0", "x64")]
    graph = helper.make_graph(nodes, "squares", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def matrix(side: int) -> list[Tensor]:
    return [Tensor("x0", "FP32", [side, side], np.full((side, side), 1 / side, np.float32).tobytes())]


async def signs_heard(client: TensorClient, until: asyncio.Future[Any]) -> int:
    """How often the child was heard of before something was done."""
    heard, last = 0, client.stats
    while not until.done():
        await asyncio.sleep(0.02)
        heard += client.stats is not last
        last = client.stats
    return heard


def test_a_long_pass_of_a_clients_tensors_is_no_wedge(tmp_path: Path) -> None:
    """However long it takes: all the time there are signs of life, which is what the watch waits for."""

    async def use(client: TensorClient) -> None:
        side, heard = 128, 0
        while heard < 3:
            side *= 2
            passing = asyncio.create_task(client.infer(matrix(side), []))
            heard = await signs_heard(client, passing)
            (found,) = await passing
            assert np.frombuffer(found.data, np.float32) == pytest.approx(1 / side, rel=1e-3)
        assert client.status.restarts == 0

    load = load_of(tmp_path, path=str(squares(tmp_path / "model.onnx")), limit_bytes=1000 * MIB, pass_limit_s=600.0)
    run_with_child(load, use)


def test_a_pass_beyond_its_limit_is_ended_and_the_child_lives_on(tmp_path: Path) -> None:
    async def use(client: TensorClient) -> None:
        with pytest.raises(InvalidRequest, match=r"took longer than the 2 s that onnx\.pass_limit_s allows"):
            for power in range(8, 13):
                await client.infer(matrix(2**power), [])
        await client.infer(matrix(8), [])
        assert client.status.restarts == 0

    load = load_of(tmp_path, path=str(squares(tmp_path / "model.onnx")), limit_bytes=1000 * MIB, pass_limit_s=2.0)
    run_with_child(load, use)


def test_less_memory_than_one_text_needs_is_said_at_the_load(encoder: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"raise memory\.budget_mib"):
        run_with_child(load_of(encoder, reading_of(encoder), limit_bytes=40 * MIB), _nothing)


async def _nothing(_: TensorClient) -> None:
    raise AssertionError("it is loaded")


@pytest.mark.parametrize(
    ("reading", "changes", "said"),
    [
        ({"output": "nope"}, {}, "no output 'nope': it has last_hidden_state, pooler_output"),
        ({"pooling": "none"}, {}, "`pooling` in the manifest does not fit"),
        ({"dimensions": [128]}, {}, "vectors have 64 numbers"),
        ({"labels": ["a", "b"], "output": "pooler_output"}, {"task": "classification"}, "tells 64 labels apart"),
        ({}, {"provider": "cuda"}, "onnx.provider is cuda"),
        ({"max_tokens": 4096}, {}, "cannot be read"),
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_said(
    encoder: Path, reading: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelUnusable, match=said):
        run_with_child(load_of(encoder, reading_of(encoder, **reading), **changes), _nothing)


def _with_template(directory: Path, source: Path, **changes: Any) -> Path:
    """A copy of a model whose tokenizer puts a token around texts that it does not know."""
    directory.mkdir()
    (directory / "model.onnx").symlink_to(source / "model.onnx")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["post_processor"].update(changes)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


_UNKNOWN = {"SpecialToken": {"id": "[NONE]", "type_id": 0}}
_PIECE = {"Sequence": {"id": "A", "type_id": 0}}


def test_a_tokenizer_that_panics_at_every_text_is_refused_at_the_load(encoder: Path, tmp_path: Path) -> None:
    odd = _with_template(tmp_path / "odd", encoder, single=[_UNKNOWN, _PIECE])

    async def use(client: TensorClient) -> None:
        raise AssertionError("it must not get ready")

    with pytest.raises(ModelUnusable, match=r"the tokenizer .*odd/tokenizer.json cannot be read"):
        run_with_child(load_of(odd, reading_of(odd)), use)


def test_a_tokenizer_that_panics_at_a_request_fails_that_one(reranker: Path, tmp_path: Path) -> None:
    odd = _with_template(tmp_path / "odd", reranker, pair=[_UNKNOWN, _PIECE, {"Sequence": {"id": "B", "type_id": 1}}])

    async def use(client: TensorClient) -> None:
        for _ in range(2):
            with pytest.raises(EngineFault, match=r"the tokenizer .* fails at this"):
                await client.rerank("pump", ["three", "four"])
        assert client.status.restarts == 0

    run_with_child(load_of(odd, reading_of(odd), task="rerank"), use)


def test_a_file_cut_short_is_said_and_no_tokenizer_is_needed_for_tensors(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((encoder / "model.onnx").read_bytes()[:200_000])
    with pytest.raises(ModelUnusable, match="onnxruntime cannot load"):
        run_with_child(load_of(tmp_path), _nothing)


def test_a_child_in_the_background_takes_only_what_others_leave(encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        assert client.status.pid is not None
        assert policies_of(client.status.pid) == {os.SCHED_IDLE}

    run_with_child(load_of(encoder, reading_of(encoder), background=True, threads=2), use)


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("onnxruntime", "embedding", r"onnxruntime is not installed: pip install 'edge-node\[onnx\]'"),
        ("tokenizers", "embedding", r"tokenizers is not installed: pip install 'edge-node\[onnx\]'"),
        ("PIL", "detection", r"Pillow is not installed: pip install 'edge-node\[onnx\]'"),
    ],
)
def test_what_is_not_installed_is_said_with_the_cure(
    encoder: Path, tmp_path: Path, name: str, task: str, said: str
) -> None:
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    load = load_of(encoder, reading_of(encoder)) if task == "embedding" else detector_load_of(encoder / "model.onnx")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    async def main() -> None:
        client = TensorClient(load, LIMITS, environment={"PYTHONPATH": path})
        await client.start()
        try:
            await asyncio.wait_for(client.wait_ready(), LIMITS.load_timeout_s)
        finally:
            await client.stop()

    with pytest.raises(ModelUnusable, match=said):
        asyncio.run(main())
