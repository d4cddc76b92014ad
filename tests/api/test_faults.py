"""What a client is told of a body that is wrong: one fault, soon, and what it meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from edge.api.schema import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TokenizeRequest,
)
from tests.api.conftest import Serve

MANY = 20_000
SAID = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {"messages": [{}] * MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]}),
        (ChatRequest, {"messages": SAID, "tools": [1] * MANY}),
        (ChatRequest, {"messages": SAID, "modalities": [1] * MANY}),
        (ChatRequest, {"messages": SAID, "stop": [1] * MANY}),
        (ChatRequest, {"messages": SAID, "logit_bias": {str(n): "x" for n in range(MANY)}}),
        (CompletionRequest, {"prompt": [-1] * MANY}),
        (CompletionRequest, {"prompt": [[-1] * MANY]}),
        (TokenizeRequest, {"messages": [1] * MANY}),
        (TokenizeRequest, {"prompt": "x", "tools": [1] * MANY}),
        (DetokenizeRequest, {"tokens": [-1] * MANY}),
        (EmbeddingRequest, {"model": "m", "input": [-1] * MANY}),
        (ClassifyRequest, {"model": "m", "input": [[-1] * MANY]}),
        (RerankRequest, {"model": "m", "query": "q", "documents": [1] * MANY}),
    ],
)
def test_a_body_with_a_million_faults_is_not_read_to_its_end(model: Any, body: dict[str, Any]) -> None:
    """A report of each would take gigabytes, and nobody's answer would go on meanwhile."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(model).validate_python(body)
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        (CHAT, {"messages": SAID, "stop": ["a"] * 17}, "stop", "at most 16"),
        (CHAT, {"messages": SAID, "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
        (CHAT, {"messages": SAID, "tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        (CHAT, {"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0", "dictionary"),
        (CHAT, {"messages": SAID, "logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        (CHAT, {"messages": SAID, "max_tokens": 10**30}, None, "64 bits"),
        ("/v1/completions", {"prompt": []}, "prompt", "at least 1"),
        ("/v1/completions", {"prompt": ["a"] * 65}, "prompt", "at most 64"),
        ("/v1/completions", {"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        ("/v1/embeddings", {"model": "m", "input": ["a"] * 3000}, "input", "at most 2048"),
        ("/v1/rerank", {"model": "m", "query": "q", "documents": [{"text": 1}]}, "documents.0.text", "string"),
    ],
)
def test_the_fault_is_told_of_what_was_meant(
    serve: Serve, path: str, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = serve().http().post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("headers", "content", "said"),
    [
        ({}, b"{}", "Content-Type is missing"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"{}", "application/json"),
        ({"content-type": "application/json"}, b'{"user": "gr\xf6\xdfer"}', "not UTF-8, from byte 12"),
        ({"content-type": "application/json"}, b"[" * 5000, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_told_why(serve: Serve, headers: dict[str, str], content: bytes, said: str) -> None:
    answer = serve().http().post(CHAT, content=content, headers=headers)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text
