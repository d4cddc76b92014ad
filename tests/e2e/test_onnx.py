"""A real node with made ONNX encoders beside its own model, asked by the clients that people have."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from bench.make_onnx import SHAPES, Head, write_encoder
from tests.conftest import RunEdge
from tests.e2e.conftest import BACKGROUND_S, RunningNode, start_node, stop_node
from tests.fleet.upstream import wait_until

ENCODERS: dict[str, tuple[str, Head | None, str]] = {
    "birch": ("embedding", None, '[encoder]\npooling = "mean"\nquery_prompt = "find: "\ndimensions = [16, 32]\n'),
    "cedar": ("rerank", "reranker", ""),
    "hazel": ("classification", "classifier", '[encoder]\nlabels = ["pump", "valve", "alarm", "other"]\n'),
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def put_models(home: Path) -> None:
    """Made encoders with their manifests, and one of them once more as a bare file."""
    for number, (name, (task, head, more)) in enumerate(ENCODERS.items()):
        write_encoder(home / "models" / name, SHAPES["tiny"], head, seed=number)
        (home / "models" / f"{name}.toml").write_text(
            f'name = "{name}"\ntask = "{task}"\nsource = "file:/stick/model.onnx"\nfile = "{name}/model.onnx"\n'
            f'licence = "Apache-2.0"\ncontext_tokens = 128\ndescription = "Made."\n{more}'
            '[[files]]\nfile = "tokenizer.json"\nsource = "file:/stick/tokenizer.json"\n'
        )
    tables = "".join(f"[models.{name}]\n" for name in ENCODERS)
    (home / "edge.toml").write_text(f'{tables}[models.raw]\nsource = "{home / "models" / "birch" / "model.onnx"}"\n')


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("onnx")
    put_models(home)
    running = start_node(home, EDGE_ENGINE__SLOTS="2", EDGE_ENGINE__CONTEXT_TOKENS="512", EDGE_CACHE__HOST_MIB="16")
    yield running
    stop_node(running)


@pytest.fixture
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{node.base_url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as made:
        yield made


@pytest.fixture
def v2(node: RunningNode) -> Iterator[triton.InferenceServerClient]:
    patience = {"connection_timeout": BACKGROUND_S, "network_timeout": BACKGROUND_S}
    made = triton.InferenceServerClient(node.base_url.removeprefix("http://"), **patience)
    yield made
    made.close()


def tokenizer(node: RunningNode) -> Tokenizer:
    return Tokenizer.from_file(str(node.home / "models" / "birch" / "tokenizer.json"))


# --- /v1 --------------------------------------------------------------------------------------------------------------


def test_the_openai_client_gets_the_same_vectors_in_both_codings(client: openai.OpenAI) -> None:
    texts = ["pump three is on", "the alarm rang"]
    plain = client.embeddings.create(model="birch", input=texts, encoding_format="float")
    # A strict client judges base64 before it decodes it.
    with openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=0) as usual:
        coded = usual.embeddings.create(model="birch", input=texts)  # the client asks for base64 by itself
    for one, other in zip(plain.data, coded.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert [one.index for one in plain.data] == [0, 1] and len(plain.data[0].embedding) == 64
    assert plain.model == "birch" and plain.usage.prompt_tokens == plain.usage.total_tokens > 6


def test_base64_is_little_endian_float32(http: httpx.Client) -> None:
    body = {"model": "birch", "input": "pump"}
    coded = http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    plain = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert struct.unpack("<64f", base64.b64decode(coded)) == pytest.approx(plain, abs=1e-6)


def test_tokens_are_taken_as_they_are(client: openai.OpenAI, node: RunningNode) -> None:
    words = ["pump three", "a valve"]
    tokens = [tokenizer(node).encode(text).ids for text in words]
    by_text = client.embeddings.create(model="birch", input=words, encoding_format="float")
    by_token = client.embeddings.create(model="birch", input=tokens, encoding_format="float")
    alone = client.embeddings.create(model="birch", input=tokens[0], encoding_format="float")
    for one, other in zip([*by_text.data, by_text.data[0]], [*by_token.data, *alone.data], strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
    assert by_token.usage.prompt_tokens == sum(map(len, tokens))


def test_dimensions_cut_where_the_model_was_made_for_it(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="birch", input="pump", encoding_format="float").data[0].embedding
    short = client.embeddings.create(model="birch", input="pump", encoding_format="float", dimensions=16)
    cut = np.array(whole[:16]) / np.linalg.norm(whole[:16])
    assert short.data[0].embedding == pytest.approx(cut.tolist(), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="vectors of 16, 32, 64 numbers, not 20") as caught:
        client.embeddings.create(model="birch", input="pump", dimensions=20)
    assert caught.value.param == "dimensions"


def test_input_type_puts_the_models_prompt_before_the_text(client: openai.OpenAI) -> None:
    asked = client.embeddings.create(
        model="birch", input="pump", encoding_format="float", extra_body={"input_type": "query"}
    )
    by_hand = client.embeddings.create(model="birch", input="find: pump", encoding_format="float")
    assert asked.data[0].embedding == pytest.approx(by_hand.data[0].embedding, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"input": ""}, 400, "invalid_value", "text 0 is empty"),
        ({"input": ["a", ""]}, 400, "invalid_value", "text 1 is empty"),
        ({"input": []}, 400, "invalid_value", "input"),
        ({"input": [1.5]}, 400, "invalid_value", "input"),
        ({"input": ["a"] * 2049}, 400, "invalid_value", "input"),
        ({"input": [2, 99_999]}, 400, "invalid_value", "vocabulary of 1,024"),
        ({"input": "pump " * 200}, 400, "context_length_exceeded", "the model reads 128"),
        ({"input": "x" * 1_000_000}, 400, "context_length_exceeded", "characters"),
        ({"encoding_format": "hex"}, 400, "invalid_value", "encoding_format"),
        ({"task": "retrieval.query"}, 400, "unsupported_parameter", "use `input_type`"),
        ({"model": "nobody"}, 404, "model_not_found", "'nobody' is not served here"),
        ({"model": "edge-builtin"}, 400, "wrong_model", "/v1/chat/completions"),
        ({"model": "cedar"}, 400, "wrong_model", "is for rerank: ask it by /v1/rerank"),
        ({"model": "raw"}, 400, "wrong_model", "ask it by /v2"),
    ],
)
def test_what_is_wrong_is_said(http: httpx.Client, change: dict[str, Any], status: int, code: str, said: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "birch", "input": "pump", **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert said in error["message"]


def test_half_a_surrogate_pair_is_no_text(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", content=b'{"model":"birch","input":"\\ud800"}')
    assert answer.status_code == 400


def test_rerank_has_the_best_first(http: httpx.Client) -> None:
    documents = ["a valve", {"text": "the pump is on"}, "x"]
    body = {"model": "cedar", "query": "is the pump on", "documents": documents}
    whole = http.post("/v1/rerank", json=body).json()
    scores = [one["relevance_score"] for one in whole["results"]]
    assert sorted(scores, reverse=True) == scores and all(0 <= s <= 1 for s in scores)
    assert sorted(one["index"] for one in whole["results"]) == [0, 1, 2] and whole["usage"]["total_tokens"] > 10
    best = http.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True}).json()["results"]
    texts = ["a valve", "the pump is on", "x"]
    first = whole["results"][0]["index"]
    assert [(one["index"], one["document"]["text"]) for one in best] == [(first, texts[first])]
    alone = http.post("/v1/rerank", json={**body, "documents": [documents[0]]}).json()["results"][0]["relevance_score"]
    assert alone == pytest.approx(
        next(one["relevance_score"] for one in whole["results"] if one["index"] == 0), abs=1e-4
    )
    assert http.post("/v1/rerank", json={**body, "query": " "}).status_code == 400
    assert http.post("/v1/rerank", json={**body, "documents": []}).status_code == 400


def test_classification_names_the_likeliest_label(http: httpx.Client) -> None:
    found = http.post("/v1/classify", json={"model": "hazel", "input": ["pump", "the valve in hall two"]}).json()
    for one in found["data"]:
        assert sum(one["probs"]) == pytest.approx(1, abs=1e-5)
        assert one["scores"][one["label"]] == max(one["probs"]) and one["num_classes"] == 4
        assert set(one["scores"]) == {"pump", "valve", "alarm", "other"}


def test_a_chat_with_an_encoder_is_refused_in_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is for embedding: ask it by /v1/embeddings"):
        client.chat.completions.create(model="birch", messages=[{"role": "user", "content": "hi"}])


# --- /v2 --------------------------------------------------------------------------------------------------------------


def tensors(node: RunningNode, texts: list[str], *, binary: bool) -> tuple[list[triton.InferInput], list[np.ndarray]]:
    length = max(len(tokenizer(node).encode(text).ids) for text in texts)
    found = [tokenizer(node).encode(text).ids for text in texts]
    tokens = np.array([ids + [0] * (length - len(ids)) for ids in found], np.int64)
    mask = np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in found], np.int64)
    arrays = [tokens, mask, np.zeros_like(tokens)]
    inputs = []
    for name, values in zip(INPUTS, arrays, strict=True):
        inputs.append(triton.InferInput(name, list(values.shape), "INT64"))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    return inputs, arrays


@pytest.mark.parametrize("sent_binary", [True, False])
@pytest.mark.parametrize("wanted_binary", [True, False])
def test_tritonclient_infers(
    v2: triton.InferenceServerClient, node: RunningNode, http: httpx.Client, sent_binary: bool, wanted_binary: bool
) -> None:
    texts = ["pump three is on", "a valve"]
    inputs, arrays = tensors(node, texts, binary=sent_binary)
    wanted = [triton.InferRequestedOutput("last_hidden_state", binary_data=wanted_binary)]
    result = v2.infer("raw", inputs, outputs=wanted, request_id="7")
    states = result.as_numpy("last_hidden_state")
    assert states.shape == (*arrays[0].shape, 64) and states.dtype == np.float32
    assert result.get_response()["id"] == "7" and result.get_response()["model_name"] == "raw"
    mean = (states * arrays[1][:, :, None]).sum(1) / arrays[1].sum(1, keepdims=True)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    by_v1 = http.post("/v1/embeddings", json={"model": "birch", "input": texts}).json()["data"]
    assert mean == pytest.approx(np.array([one["embedding"] for one in by_v1]), abs=2e-5)


def test_all_outputs_come_where_none_is_named(v2: triton.InferenceServerClient, node: RunningNode) -> None:
    inputs, _ = tensors(node, ["pump"], binary=True)
    for model in ("raw", "birch"):  # one with a manifest is asked by its tensors too
        result = v2.infer(model, inputs)
        assert result.as_numpy("pooler_output").shape == (1, 64)
        assert result.as_numpy("last_hidden_state") is not None


def test_tritonclient_asks_after_health_and_models(v2: triton.InferenceServerClient) -> None:
    assert v2.is_server_live() and v2.is_server_ready()
    assert v2.is_model_ready("raw") and v2.is_model_ready("raw", "1") and not v2.is_model_ready("nobody")
    server = v2.get_server_metadata()
    assert server["name"] == "edge" and "binary_tensor_data" in server["extensions"]
    found = v2.get_model_metadata("raw")
    assert found["name"] == "raw" and found["versions"] == ["1"]
    assert found["inputs"] == [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in INPUTS]
    assert {"name": "pooler_output", "datatype": "FP32", "shape": [-1, 64]} in found["outputs"]
    assert {row["name"]: row["state"] for row in v2.get_model_repository_index()}["raw"] == "READY"
    with pytest.raises(InferenceServerException, match="'nobody' is not served here"):
        v2.get_model_metadata("nobody")
    with pytest.raises(InferenceServerException, match="version 1 only"):
        v2.get_model_metadata("raw", "2")


ROW = [[2, 7, 3]]
GOOD = [{"name": name, "shape": [1, 3], "datatype": "INT64", "data": ROW} for name in INPUTS]


WHOLE = json.dumps({"inputs": GOOD}).encode()


def with_first(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**GOOD[0], **changes}, *GOOD[1:]]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "`inputs`: Field required"),
        ({"inputs": []}, "the input 'input_ids' is missing"),
        ({"inputs": GOOD[1:]}, "the input 'input_ids' is missing: the model has 'input_ids' (INT64 [-1, -1])"),
        (with_first(name="ids"), "unknown input 'ids': the model has 'input_ids' (INT64 [-1, -1])"),
        (with_first(datatype="INT32"), "'input_ids' is INT64, not INT32"),
        (with_first(datatype="FP33"), "known are BOOL"),
        (with_first(shape=[3]), "'input_ids' has shape [-1, -1] (-1: any), not [3]"),
        (with_first(shape=[1, -3]), "shape"),
        (with_first(shape=[1, 4]), "has length 4 in 'input_ids' and 3 in 'attention_mask'"),
        (with_first(data=[2, 7]), "'input_ids' has 16 bytes, expected 24 for INT64 of shape [1, 3]"),
        (with_first(data=["a", "b", "c"]), "is INT64: its data holds something else"),
        (with_first(data=None), "neither `data` nor binary_data_size"),
        (with_first(parameters={"binary_data_size": 24}, data=None), "0 bytes are left of the body"),
        (with_first(parameters={"shared_memory_region": "x"}), "`shared_memory_region` is not supported"),
        (with_first(data=[2, 99_999, 3]), "the model does not take this"),
        (
            {"inputs": GOOD, "outputs": [{"name": "y"}]},
            "unknown output 'y': the model has 'last_hidden_state', 'pooler_output'",
        ),
    ],
)
def test_wrong_tensors_are_told_what_was_expected(http: httpx.Client, body: dict[str, Any], said: str) -> None:
    answer = http.post("/v2/models/raw/infer", json=body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"] and said in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"{", {}, "cannot be read"),
        (b"\xff" * 40, {}, "cannot be read"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, "the body has 2 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, "the body has 2 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "9" * 30}, "the body has 2 bytes"),
        (b"{}", {"Content-Encoding": "gzip"}, "without Content-Encoding"),
        (WHOLE + b"x", {"Inference-Header-Content-Length": str(len(WHOLE))}, "1 bytes of the body belong to no input"),
    ],
)
def test_bodies_that_are_none_are_refused(
    http: httpx.Client, content: bytes, headers: dict[str, str], said: str
) -> None:
    answer = http.post("/v2/models/raw/infer", content=content, headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert said in answer.json()["error"]


def test_other_errors_have_the_protocols_form_too(http: httpx.Client) -> None:
    answers = [
        (404, http.post("/v2/models/nobody/infer", json={"inputs": GOOD})),
        (400, http.post("/v2/models/edge-builtin/infer", json={"inputs": GOOD})),
        (404, http.get("/v2/nowhere")),
        (405, http.get("/v2/repository/index")),
        (413, http.post("/v2/models/raw/infer", content=bytes(20 << 20))),
    ]
    for status, answer in answers:
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_tensors_that_need_more_memory_than_planned_are_refused_and_the_child_lives_on(
    v2: triton.InferenceServerClient, node: RunningNode
) -> None:
    before = state(node, "raw")["failures"]
    huge = []
    for name in INPUTS:
        huge.append(triton.InferInput(name, [1000, 128], "INT64"))
        huge[-1].set_data_from_numpy(np.ones((1000, 128), np.int64))
    with pytest.raises(InferenceServerException, match=r"needs more memory for this than the"):
        v2.infer("raw", huge)
    inputs, _ = tensors(node, ["pump"], binary=True)
    assert v2.infer("raw", inputs).as_numpy("pooler_output") is not None
    assert state(node, "raw")["failures"] == before


# --- life -------------------------------------------------------------------------------------------------------------


def state(node: RunningNode, name: str) -> dict[str, Any]:
    found = httpx.get(f"{node.base_url}/edge/v1/models", trust_env=False, timeout=BACKGROUND_S).json()["models"]
    return dict(next(m for m in found if m["name"] == name))


def engine_of(node: RunningNode, name: str) -> int:
    """Process id of a model's child: the one that the last load started."""
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as http:
        before = children(node)
        if state(node, name)["state"] == "ready":
            assert http.post(f"/edge/v1/models/{name}/unload").status_code == 200
            before = children(node)
        assert http.post(f"/edge/v1/models/{name}/load").status_code == 200
    (pid,) = children(node) - before
    return pid


def children(node: RunningNode) -> set[int]:
    return {child.pid for child in node.children("edge.onnx.worker")}


def test_a_killed_child_fails_its_requests_at_once_and_comes_back(node: RunningNode) -> None:
    pid = engine_of(node, "birch")
    os.kill(pid, signal.SIGSTOP)  # else a fast one may have answered before it is killed
    body = {"model": "birch", "input": ["the pump in hall three is on and the valve is open"] * 2000}

    async def run() -> tuple[list[int], str]:
        async with httpx.AsyncClient(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as http:
            tasks = [asyncio.create_task(http.post("/v1/embeddings", json=body)) for _ in range(3)]
            chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 60, "ignore_eos": True}
            answer = asyncio.create_task(http.post("/v1/chat/completions", json=chat))
            async with asyncio.timeout(BACKGROUND_S):
                while (await asyncio.to_thread(state, node, "birch"))["in_flight"] < 3:
                    await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            return [(await task).status_code for task in tasks], (await answer).json()["choices"][0]["finish_reason"]

    statuses, chat = asyncio.run(run())
    assert statuses == [503] * 3 and chat == "length"
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as http:
        wait_until(lambda: http.post("/v1/embeddings", json={**body, "input": "a"}).status_code == 200, BACKGROUND_S)
    assert state(node, "birch")["failures"] >= 1 and state(node, "edge-builtin")["loads"] == 1


def test_metrics_cards_and_decisions_tell_of_it(node: RunningNode, http: httpx.Client) -> None:
    http.post("/v1/embeddings", json={"model": "birch", "input": "pump"})
    wait_until(lambda: 'edge_tensor_texts_total{model="birch"}' in http.get("/metrics").text, BACKGROUND_S)
    page = http.get("/metrics").text
    assert 'edge_tensor_answer_seconds_count{model="birch"}' in page
    assert 'edge_model_ready{model="birch"} 1.0' in page
    card = http.get("/v1/models/birch").json()
    assert card["max_model_len"] == 128 and card["meta"]["provider"] == "CPUExecutionProvider"
    last = http.get("/edge/v1/decisions?limit=50").json()["decisions"]
    assert any(
        (e["model"], e["route"], e["reason"], e["outcome"]) == ("birch", "late", "further_model", "ok") for e in last
    )
    assert "CPUExecutionProvider" in node.said() and "no CUDA or TensorRT" in node.said()


def test_memory_for_one_of_two_is_shared_by_turns(tmp_path: Path) -> None:
    """Encoders leave for each other as language models do."""
    put_models(tmp_path)
    small = {"EDGE_ENGINE__SLOTS": "2", "EDGE_ENGINE__CONTEXT_TOKENS": "256", "EDGE_CACHE__HOST_MIB": "0"}
    budget = 330
    node = start_node(tmp_path, EDGE_MEMORY__BUDGET_MIB=str(budget), **small)
    try:
        with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as http:
            for _ in range(2):
                assert http.post("/v1/embeddings", json={"model": "birch", "input": "a"}).status_code == 200
                assert http.post("/v1/classify", json={"model": "hazel", "input": "a"}).status_code == 200
            found = http.get("/edge/v1/models").json()
            assert found["memory"]["planned_bytes"] <= found["memory"]["room_bytes"] == budget << 20
            assert sum(m["loads"] for m in found["models"] if not m["main"]) == 4
    finally:
        assert stop_node(node) == 0
    assert "Traceback" not in node.said()


def test_an_encoder_cannot_be_the_nodes_own_model(run_edge: RunEdge, home: Path) -> None:
    (home / "models").mkdir()
    put_models(home)
    (home / "edge.toml").unlink()
    for name in ("birch", str(home / "models" / "birch" / "model.onnx")):
        done = run_edge("serve", "--port", "0", "--model", name)
        assert done.returncode == 1 and "must write text: serve it beside one, with `[models." in done.stderr
    listed = run_edge("models", "list")
    assert re.search(r"^birch +embedding ", listed.stdout, re.MULTILINE) and re.search(
        r"^rtdetr-r18 +detection ", listed.stdout, re.MULTILINE
    )
