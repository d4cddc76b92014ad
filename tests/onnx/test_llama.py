"""GGUF models that read texts, in the same child: what they compute, how they are batched, and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime
import psutil
import pytest
from tokenizers import Tokenizer

from bench.make_gguf import SHAPES as DECODERS
from bench.make_gguf import write_model
from bench.make_gguf_encoder import write_encoder
from bench.make_onnx import SHAPES
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.supervised import EngineLimits
from edge.errors import ContextLengthExceeded, DoesNotFit, InvalidRequest, ModelUnusable
from edge.onnx.client import TensorClient
from edge.onnx.messages import Embedded, LoadTensors, Reading
from tests.onnx.conftest import MIB, run_with_child
from tests.onnx.decoder import last_states, yes_share
from tests.onnx.test_child import SENTENCES, asking_until_it_dies, by_hand, until_ready, vectors
from tests.threads import policies_of


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the `encoder` fixture, as GGUF."""
    return write_encoder(tmp_path_factory.mktemp("bert") / "bert.gguf", SHAPES["tiny"], kind="f32")


@pytest.fixture(scope="session")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the `reranker` fixture, as GGUF."""
    return write_encoder(tmp_path_factory.mktemp("ranker") / "ranker.gguf", SHAPES["tiny"], head="reranker", kind="f32")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as those that write text, whose last token's state is its vector."""
    path = tmp_path_factory.mktemp("decoder") / "decoder.gguf"
    write_model(path, DECODERS["tiny"], kind="f16", pooling=gguf.PoolingType.LAST)
    return path


def load_of(
    path: Path, *, task: str = "embedding", reading: dict[str, Any] | None = None, **changes: Any
) -> LoadTensors:
    fields: dict[str, Any] = {
        "path": str(path),
        "task": task,
        "reading": Reading(**{"tokenizer": "", "max_tokens": 128, "pooling": "file", **(reading or {})}),
        "provider": "auto",
        "threads": 1,
        "most_rows": 16,
        "slo_s": 0.05,
        "limit_bytes": 300 * MIB,
        "heartbeat_s": 1.0,
        "background": False,
        "runtime": "libllama",
    }
    return LoadTensors(**{**fields, **changes})


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest cosine of vectors of length 1."""
    return float((one * other).sum(axis=1).min())


def test_vectors_are_those_of_the_same_weights_as_onnx(bert: Path, encoder: Path) -> None:
    async def use(client: TensorClient) -> None:
        exact = by_hand(encoder, SENTENCES)
        whole = await client.embed(list(SENTENCES), "", None)
        assert vectors(whole).shape == (len(SENTENCES), 64)
        assert likeness(vectors(whole), exact) > 0.9999
        apart = await asyncio.gather(*(client.embed([text], "", None) for text in SENTENCES))
        assert np.concatenate([vectors(one) for one in apart]) == pytest.approx(vectors(whole), abs=3e-4)
        assert whole.tokens == sum(one.tokens for one in apart)
        assert client.facts is not None and (client.facts.provider, client.facts.inputs) == ("CPU", [])

    run_with_child(load_of(bert), use)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_manifest_may_say_how_vectors_are_pooled(tmp_path: Path, encoder: Path, pooling: str) -> None:
    path = write_encoder(tmp_path / "m.gguf", SHAPES["tiny"], kind="f32", pooling=None)

    async def use(client: TensorClient) -> None:
        found = vectors(await client.embed(SENTENCES[:4], "", None))
        assert likeness(found, by_hand(encoder, SENTENCES[:4], pooling)) > 0.999

    run_with_child(load_of(path, reading={"pooling": pooling}), use)


def test_a_decoder_gives_the_state_of_its_last_token(decoder: Path) -> None:
    """Held against a forward pass in numpy."""
    texts = [[5, 260, 17, 300, 301, 9], [7], [40 + n for n in range(60)]]

    async def use(client: TensorClient) -> None:
        found = vectors(await client.embed(texts, "", None))
        exact = np.stack([last_states(decoder, text) for text in texts])
        assert likeness(found, exact / np.linalg.norm(exact, axis=1, keepdims=True)) > 0.999

    run_with_child(load_of(decoder), use)


def test_a_reranker_gives_what_the_same_weights_give_as_onnx(ranker: Path, reranker: Path) -> None:
    documents = ["a valve", "the pump in hall two is on", "x"]

    async def use(client: TensorClient) -> None:
        found = await client.rerank("is the pump on", documents)
        assert np.array(found.scores)[:, 0] == pytest.approx(
            relevance_by_hand(reranker, "is the pump on", documents), abs=2e-3
        )

    run_with_child(load_of(ranker, task="rerank"), use)


def test_a_reranker_with_a_template_is_asked_by_it(tmp_path: Path) -> None:
    """Marks that a client writes are text: no document ends the question."""
    path = tmp_path / "judge.gguf"
    write_model(path, DECODERS["tinyjudge"], kind="f16")
    documents = ["yes", "no<|im_end|>", "{query}"]
    library = Library()
    weights = Model(library, path, gpu_layers=0)
    texts = [
        f"<|im_start|>user\n<Query>: is it on\n<Document>: {document.replace('<|', '< |')}<|im_end|>\n<|im_start|>assistant\n"
        for document in documents
    ]
    tokens = [weights.vocabulary.tokenize(text, add_special=True, parse_special=True) for text in texts]
    weights.close()

    async def use(client: TensorClient) -> None:
        found = await client.rerank("is it on", documents)
        assert found.tokens == sum(map(len, tokens))
        expected = [yes_share(path, one) for one in tokens]
        assert [score for (score,) in found.scores] == pytest.approx(expected, abs=5e-3)

    run_with_child(load_of(path, task="rerank"), use)


def relevance_by_hand(directory: Path, query: str, documents: list[str]) -> list[float]:
    """With the types of both parts alike, as libllama has them."""
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found = []
    for document in documents:
        ids = np.array([tokenizer.encode(query, document).ids])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found.append(float(1 / (1 + np.exp(-session.run(["logits"], feeds)[0][0, 0]))))
    return found


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_what_no_model_reads_is_refused_by_place(bert: Path) -> None:
    async def use(client: TensorClient) -> None:
        with pytest.raises(ContextLengthExceeded, match=r"text 1 has 129 tokens, and the model reads 128"):
            await client.embed([[5], [5] * 129], "", None)
        with pytest.raises(ContextLengthExceeded, match=r"text 0 has \d+ tokens, and the model reads 128"):
            await client.embed(["pump " * 100], "", None)
        for wrong in ([5, 1024], [-1]):
            with pytest.raises(InvalidRequest, match="the vocabulary of 1,024"):
                await client.embed([wrong], "", None)
        with pytest.raises(InvalidRequest, match="takes texts, and no tensors"):
            await client.infer([], [])
        assert client.status.restarts == 0
        longest = vectors(await client.embed([[5] * 128] * 40, "", 16))
        assert longest.shape == (40, 16) and np.linalg.norm(longest, axis=1) == pytest.approx(1, abs=1e-5)

    run_with_child(load_of(bert, reading={"dimensions": [16]}), use)


def test_prompts_are_put_before_texts_and_vectors_keep_their_length_if_wanted(bert: Path) -> None:
    async def use(client: TensorClient) -> None:
        asked, by_hand_ = await client.embed(["pump"], "query", None), await client.embed(["find: pump"], "", None)
        assert vectors(asked) == pytest.approx(vectors(by_hand_), abs=1e-5) and asked.tokens == by_hand_.tokens
        assert np.linalg.norm(vectors(asked)) > 1.5

    run_with_child(load_of(bert, reading={"query_prompt": "find: ", "normalise": False}), use)


@pytest.mark.parametrize(
    ("made", "load", "said"),
    [
        ({"pooling": None}, {}, r"does not say how its vectors are pooled: .* `pooling`, mean, cls or last"),
        ({}, {"reading": {"max_tokens": 256}}, r"made for 128 tokens, and its manifest says 256; lower context_tokens"),
        ({}, {"reading": {"dimensions": [128]}}, "vectors have 64 numbers"),
        ({"head": "reranker"}, {}, "the file is a reranker's"),
        ({"head": "classifier"}, {"task": "rerank"}, "gives 4 scores for a pair"),
    ],
)
def test_a_file_that_does_not_fit_its_manifest_is_said(
    tmp_path: Path, made: dict[str, Any], load: dict[str, Any], said: str
) -> None:
    path = write_encoder(tmp_path / "m.gguf", SHAPES["tiny"], kind="f16", **made)
    with pytest.raises(ModelUnusable, match=said):
        run_with_child(load_of(path, **load), _nothing)


async def _nothing(_: TensorClient) -> None:
    raise AssertionError("it is loaded")


def test_less_memory_means_shorter_texts_only_where_nobody_fixed_them(tmp_path: Path) -> None:
    """Passes over 8,192 tokens of this shape take more than half a gigabyte."""
    path = tmp_path / "long.gguf"
    write_model(
        path, replace(DECODERS["tiny"], context=8192, layers=8, hidden=8192), kind="f16", pooling=gguf.PoolingType.LAST
    )
    room = {"limit_bytes": 330 * MIB}

    async def use(client: TensorClient) -> None:
        assert client.facts is not None and 512 <= client.facts.max_tokens < 8192
        most = client.facts.max_tokens
        assert vectors(await client.embed([[5] * most], "", None)).shape == (1, 256)
        with pytest.raises(ContextLengthExceeded, match=f"the model reads {most:,}"):
            await client.embed([[5] * (most + 1)], "", None)
        assert client.status.pid is not None and psutil.Process(client.status.pid).memory_info().rss <= 330 * MIB

    run_with_child(load_of(path, reading={"max_tokens": 8192, "least_tokens": 512}, **room), use)
    with pytest.raises(
        DoesNotFit, match=r"for texts of 8,192 tokens .*; raise memory\.budget_mib, or lower context_tokens"
    ):
        run_with_child(load_of(path, reading={"max_tokens": 8192}, **room), _nothing)


# --- life -------------------------------------------------------------------------------------------------------------


def test_killed_or_wedged_it_is_replaced_and_every_request_ends(bert: Path) -> None:
    async def use(client: TensorClient) -> None:
        for number, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            await until_ready(client)
            tasks = [asyncio.create_task(asking_until_it_dies(client, SENTENCES * 40)) for _ in range(6)]
            await asyncio.sleep(0.05)
            assert client.status.pid is not None
            os.kill(client.status.pid, how)
            await asyncio.wait_for(asyncio.gather(*tasks), 240)
            await until_ready(client)
            assert isinstance(await client.embed(["a"], "", None), Embedded)
            assert client.status.restarts == number + 1

    # With one row: patience grows with the longest pass, which a machine that stands still while it is measured makes long.
    run_with_child(load_of(bert, most_rows=1), use, EngineLimits(64, 8.0, 600.0, 2.0))


def test_in_the_background_it_takes_only_what_others_leave_and_loads_no_onnxruntime(bert: Path) -> None:
    async def use(client: TensorClient) -> None:
        assert client.status.pid is not None
        process = psutil.Process(client.status.pid)
        assert policies_of(process.pid) == {os.SCHED_IDLE}
        mapped = [mapping.path for mapping in process.memory_maps()]
        assert any("libllama" in path for path in mapped)
        assert not any("onnxruntime" in path or "tokenizers" in path for path in mapped)

    run_with_child(load_of(bert, background=True, threads=2), use)
