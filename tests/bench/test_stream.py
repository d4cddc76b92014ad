"""What counts as content, and when it came."""

from __future__ import annotations

import json

import pytest

from edge.bench.stream import read
from tests.bench.server import answer


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


def test_the_role_chunk_and_the_end_are_no_content() -> None:
    reading = read([(float(n), piece) for n, piece in enumerate(answer({"max_tokens": 2}))])
    assert reading.content_s == [1.0, 2.0]
    assert (reading.tokens, reading.complete, reading.error) == (2, True, "")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
def test_thoughts_and_tool_calls_are_content(delta: dict[str, object]) -> None:
    assert read([(1.0, event(role="assistant", content="")), (2.0, event(**delta))]).content_s == [2.0]


def test_text_completions_are_content() -> None:
    assert read([(1.0, b'data: {"choices": [{"text": "a"}]}\n\n')]).content_s == [1.0]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_an_event_counts_when_its_last_byte_came(end: str) -> None:
    whole = f'data:{{"choices": [{{"text": "a"}}]}}{end}data: [DONE]{end}'.encode()
    for cut in range(len(whole)):
        reading = read([(1.0, whole[:cut]), (2.0, whole[cut:])])
        line_end = whole.index(b"\n") + 1
        assert reading.content_s == [1.0 if cut >= line_end else 2.0]
        assert reading.complete


def test_a_last_line_without_its_end_counts() -> None:
    assert read([(1.0, b"data: [DONE]")]).complete


def test_errors_within_a_stream_are_kept() -> None:
    assert read([(1.0, b'data: {"error": {"message": "engine gone"}}\n\n')]).error == "engine gone"
    assert "not a JSON object" in read([(1.0, b"data: oops\n\n")]).error


def test_strange_shapes_are_no_content_and_no_crash() -> None:
    for payload in (
        b'{"choices": null}',
        b'{"choices": [1, {"delta": null}]}',
        b'{"usage": {"completion_tokens": "x"}}',
    ):
        reading = read([(1.0, b"data: " + payload + b"\n\n")])
        assert (reading.content_s, reading.tokens, reading.error) == ([], None, "")
