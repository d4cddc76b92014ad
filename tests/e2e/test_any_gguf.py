"""`edge serve --model FILE` with a file that nobody prepared for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from bench.make_gguf import SHAPES, write_model
from tests.e2e.conftest import RunningNode, start_node, stop_node

ASK = {"model": "stranger", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 8}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("stranger")
    path = home / "stranger.gguf"
    write_model(path, SHAPES["tiny"], kind="f16")
    node = start_node(home, "--model", str(path))
    yield node
    stop_node(node)


def post(node: RunningNode, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{node.base_url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def test_it_is_named_after_its_file_and_answers(stranger: RunningNode) -> None:
    answer = post(stranger, ASK)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["usage"]["completion_tokens"] >= 1


def test_tools_are_refused_because_its_template_knows_none(stranger: RunningNode) -> None:
    answer = post(stranger, {**ASK, "tools": [TOOL]})
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert answer.json()["error"]["param"] == "tools"
    assert "no tool format" in answer.json()["error"]["message"]


def test_a_schema_is_kept_by_a_model_with_random_weights(stranger: RunningNode) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema}}
    answer = post(stranger, {**ASK, "response_format": form, "max_tokens": 40, "temperature": 1.5, "seed": 3})
    pair = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert len(pair) == 2
    assert all(0 <= n <= 9 for n in pair)
