"""A real node with GGUF encoders beside its own model: a bare file, one with a manifest, and a reranker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from bench.make_gguf_encoder import write_encoder
from bench.make_onnx import SHAPES
from tests.conftest import RunEdge
from tests.e2e.conftest import BACKGROUND_S, RunningNode, start_node, stop_node


def put_models(home: Path) -> None:
    """Two encoders and a reranker; the bare file is known by its path alone."""
    models = home / "models"
    models.mkdir(parents=True)
    write_encoder(models / "alder.gguf", SHAPES["tiny"])
    write_encoder(models / "maple.gguf", SHAPES["tiny"], head="reranker")
    (models / "alder.toml").write_text(
        'name = "alder"\ntask = "embedding"\nsource = "file:/stick/alder.gguf"\nfile = "alder.gguf"\nlicence = "MIT"\n'
        'context_tokens = 100\ndescription = "Made."\n[encoder]\nquery_prompt = "find: "\ndimensions = [16]\n'
    )
    (home / "edge.toml").write_text(
        f'[models.alder]\naliases = ["text-embedding-3-small"]\n'
        f'[models.bare]\nsource = "{models / "alder.gguf"}"\ncontext_tokens = 32\n'
        f'[models.maple]\nsource = "{models / "maple.gguf"}"\n'
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("gguf-encoders")
    put_models(home)
    running = start_node(home, EDGE_ENGINE__SLOTS="2", EDGE_ENGINE__CONTEXT_TOKENS="512", EDGE_CACHE__HOST_MIB="16")
    yield running
    stop_node(running)


@pytest.fixture
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as made:
        yield made


def test_the_openai_client_gets_vectors_in_both_codings(node: RunningNode) -> None:
    texts = ["pump three is on", "the alarm rang"]
    with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="none", max_retries=0) as client:
        plain = client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")
        coded = client.embeddings.create(model="alder", input=texts)
        short = client.embeddings.create(model="alder", input=texts[0], encoding_format="float", dimensions=16)
        by_token = client.embeddings.create(model="alder", input=[[2, 40, 41, 3], [2, 50, 3]])
    for one, other in zip(plain.data, coded.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert len(one.embedding) == 64 and np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    cut = np.array(plain.data[0].embedding[:16])
    assert short.data[0].embedding == pytest.approx((cut / np.linalg.norm(cut)).tolist(), abs=1e-5)
    assert plain.model == "alder" and plain.usage.total_tokens > 6 and by_token.usage.prompt_tokens == 7


@pytest.mark.parametrize(
    ("route", "body", "code", "said"),
    [
        ("/v1/embeddings", {"model": "alder", "input": "pump " * 60}, "context_length_exceeded", "the model reads 100"),
        ("/v1/embeddings", {"model": "bare", "input": "pump " * 20}, "context_length_exceeded", "the model reads 32"),
        ("/v1/embeddings", {"model": "bare", "input": "a", "dimensions": 16}, "invalid_value", "vectors of 64 numbers"),
        ("/v1/embeddings", {"model": "maple", "input": "a"}, "wrong_model", "is for rerank: ask it by /v1/rerank"),
        ("/v1/embeddings", {"model": "alder", "input": [[2, 9999]]}, "invalid_value", "vocabulary of 1,024"),
        ("/v1/rerank", {"model": "alder", "query": "a", "documents": ["b"]}, "wrong_model", "ask it by /v1/embeddings"),
        ("/v1/completions", {"model": "alder", "prompt": "a"}, "wrong_model", "ask it by /v1/embeddings"),
    ],
)
def test_what_is_wrong_is_said(http: httpx.Client, route: str, body: dict[str, Any], code: str, said: str) -> None:
    answer = http.post(route, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), error
    assert said in error["message"]


def test_it_has_no_tensors(http: httpx.Client) -> None:
    answer = http.get("/v2/models/alder")
    assert answer.status_code == 400 and "ask it by /v1/embeddings" in answer.json()["error"]


def test_rerank_has_the_best_first(http: httpx.Client) -> None:
    body = {"model": "maple", "query": "is the pump on", "documents": ["a valve", "the pump is on", "x"]}
    found = http.post("/v1/rerank", json=body).json()
    scores = [one["relevance_score"] for one in found["results"]]
    assert sorted(scores, reverse=True) == scores and all(0 <= s <= 1 for s in scores) and len(set(scores)) == 3
    assert found["usage"]["total_tokens"] > 10


def test_it_is_told_of_as_other_models_are(node: RunningNode, http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "alder", "input": "pump"})
    assert answer.headers["x-edge-class"] == "best-effort"
    card = http.get("/v1/models/alder").json()
    assert card["max_model_len"] == 100 and card["meta"]["provider"] == "CPU" and card["meta"]["width"] == 64
    assert 'edge_tensor_answer_seconds_count{model="alder"}' in http.get("/metrics").text
    state = next(m for m in http.get("/edge/v1/models").json()["models"] if m["name"] == "alder")
    assert state["bytes_resident"] <= state["bytes_planned"]
    assert node.children("edge.onnx.worker")


def test_an_encoder_cannot_be_the_nodes_own_model(run_edge: RunEdge, home: Path) -> None:
    put_models(home)
    (home / "edge.toml").unlink()
    for name, more in (("alder", ""), (str(home / "models" / "maple.gguf"), "source = ")):
        for command in (["serve", "--port", "0", "--model", name], ["plan", name]):
            done = run_edge(*command)
            assert done.returncode == 1 and "must write text: serve it beside one, with `[models." in done.stderr
            assert more in done.stderr
