"""An answer's text is told apart into reasoning, content and calls, however it is cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.dialects.parse import AnswerParser, ContentPiece, Piece, ReasoningPiece, ToolCallArguments, ToolCallStart
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat

THINK = ReasoningTags("<think>", "</think>")
CALLS = {
    ToolFormat.HERMES: (
        'Sure.\n<tool_call>\n{"name": "set", "arguments": {"a": "}<x", "b": [1, {"c": 2}]}}\n</tool_call>\n'
        '<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    ),
    ToolFormat.LLAMA3: '{"name": "set", "parameters": {"a": "}<x", "b": [1, {"c": 2}]}}; {"name": "get", "parameters": {}}',
    ToolFormat.MISTRAL: (
        '[TOOL_CALLS] [{"name": "set", "arguments": {"a": "}<x", "b": [1, {"c": 2}]}}, {"name": "get", "arguments": {}}]'
    ),
    ToolFormat.MISTRAL_ARGS: '[TOOL_CALLS]set[ARGS]{"a": "}<x", "b": [1, {"c": 2}]}[TOOL_CALLS]get[ARGS]{}',
}
SCRAPS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "set[ARGS]", "nope[ARGS]"),
    *('{"name": "set", "arguments": {"a": 1}}', '{"name": "get"}', '{"name": "get", "arguments": null}'),
    *('{"name": "nope", "arguments": {}}', '{"name": ["x"], "arguments": 1}', '{"name": {"a": 1}}'),
    *(
        '{"name": "a\\q", "arguments": {}}',
        '{"name": "set", "arguments": [1]}',
        '{"arguments": "\\ud800", "name": "set"}',
    ),
    *("{", "}", "{}", '"', "[", "]", ";", ", ", " ", "\n", "text ", "\\", "<think>", "</think>"),
]
"""What a model that has lost its way may write, in any order."""


def parser(fmt: ToolFormat | None = ToolFormat.HERMES, **changes: Any) -> AnswerParser:
    defaults: dict[str, Any] = {"tools": frozenset({"set", "get"}), "reasoning": None, "reasoning_open": False}
    return AnswerParser(fmt=fmt, new_id=lambda: "id", **{**defaults, **changes})


def read(reader: AnswerParser, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """(content, reasoning, [(name, arguments)])"""
    out: list[Piece] = []
    for piece in pieces:
        out += reader.feed(piece)
    out += reader.finish()
    content = "".join(p.text for p in out if isinstance(p, ContentPiece))
    thought = "".join(p.text for p in out if isinstance(p, ReasoningPiece))
    names = [p.name for p in out if isinstance(p, ToolCallStart)]
    arguments = [
        "".join(p.text for p in out if isinstance(p, ToolCallArguments) and p.index == i) for i in range(len(names))
    ]
    return content, thought, list(zip(names, arguments, strict=True))


@pytest.mark.parametrize("fmt", list(ToolFormat))
def test_two_calls_of_every_family_are_read(fmt: ToolFormat) -> None:
    content, _, calls = read(parser(fmt), [CALLS[fmt]])
    assert [name for name, _ in calls] == ["set", "get"]
    assert json.loads(calls[0][1]) == {"a": "}<x", "b": [1, {"c": 2}]}
    assert json.loads(calls[1][1]) == {}
    assert content in ("", "Sure.")


@pytest.mark.parametrize("fmt", list(ToolFormat))
@given(data=st.data())
def test_any_cut_of_a_text_gives_what_the_whole_gives(fmt: ToolFormat, data: st.DataObject) -> None:
    beginnings = st.sampled_from(["", "<think>why\n</think>\n\n", "a < b ", "[TOOL_CALLS", "<tool_cal", "{"])
    text = (
        data.draw(beginnings)
        + CALLS[fmt]
        + data.draw(st.sampled_from(["", "\n", " done", "<tool_call>no</tool_call>x"]))
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(parser(fmt, reasoning=THINK), pieces) == read(parser(fmt, reasoning=THINK), [text])


@pytest.mark.parametrize("fmt", list(ToolFormat))
@given(data=st.data())
def test_nothing_that_a_model_writes_trips_the_parser_or_depends_on_the_cuts(
    fmt: ToolFormat, data: st.DataObject
) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SCRAPS), max_size=7)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(parser(fmt, reasoning=THINK), [text])
    assert read(parser(fmt, reasoning=THINK), pieces) == whole
    assert read(parser(fmt, reasoning=THINK), list(text)) == whole
    json.dumps(whole, ensure_ascii=False).encode()  # a lone surrogate could not be sent


@pytest.mark.parametrize("fmt", list(ToolFormat))
@given(data=st.data())
def test_an_answer_without_a_call_comes_out_whole(fmt: ToolFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SCRAPS), max_size=7)))
    reader = parser(fmt)
    content, _, _ = read(reader, [text])
    assert reader.saw_tool_calls or content == text


@pytest.mark.parametrize(
    "text",
    [
        "a < b and <tool_cal is no marker",
        "x <tool_call>not JSON</tool_call> y",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "a\\q", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["set"], "arguments": 1}</tool_call>',
        "<tool_call>",
    ],
)
def test_what_is_no_call_comes_out_as_it_was_written(text: str) -> None:
    for size in (1, 3, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert read(parser(), pieces) == (text, "", [])


def test_a_call_with_its_keys_in_another_order_is_read() -> None:
    assert read(parser(), ['<tool_call>{"arguments": {"q": 1}, "name": "set"}</tool_call>'])[2] == [("set", '{"q": 1}')]


def test_a_call_behind_text_that_only_looked_like_one_is_read() -> None:
    text = "[TOOL_CALLS]unknown[ARGS]{}[TOOL_CALLS]get[ARGS]{}"
    for pieces in ([text], list(text)):
        content, _, calls = read(parser(ToolFormat.MISTRAL_ARGS), pieces)
        assert (content, calls) == ("[TOOL_CALLS]unknown[ARGS]{}", [("get", "{}")])


def test_text_behind_a_call_is_kept_with_what_joined_them() -> None:
    content, _, calls = read(parser(ToolFormat.LLAMA3), ['{"name": "get", "parameters": {}}; done'])
    assert (content, calls) == ("; done", [("get", "{}")])


@pytest.mark.parametrize("written", ['"get"}', '"get", "arguments": null}'])
def test_a_call_without_arguments_has_empty_ones(written: str) -> None:
    assert read(parser(), [f'<tool_call>{{"name": {written}</tool_call>'])[2] == [("get", "{}")]


def test_a_call_that_is_cut_short_is_reported_incomplete() -> None:
    reader = parser()
    _, _, calls = read(reader, ['<tool_call>{"name": "set", "arguments": {"a": '])
    assert calls == [("set", '{"a": ')]
    assert reader.saw_tool_calls
    assert not reader.tool_call_complete


def test_arguments_stream_before_the_call_is_closed() -> None:
    reader = parser()
    assert reader.feed('<tool_call>{"name": "set", "arguments": {"a') == [
        ToolCallStart(0, "id", "set"),
        ToolCallArguments(0, '{"a'),
    ]
    assert reader.feed('": 1') == [ToolCallArguments(0, '": 1')]


@pytest.mark.parametrize("fmt", list(ToolFormat))
def test_much_white_space_first_holds_nothing_back(fmt: ToolFormat) -> None:
    reader = parser(fmt)
    assert reader.feed("\n" * 80 + "Sure") == [ContentPiece("\n" * 80 + "Sure")]
    assert read(parser(ToolFormat.LLAMA3), ["\n" * 80, CALLS[ToolFormat.LLAMA3]])[2][1] == ("get", "{}")


def test_without_parallel_calls_only_the_first_counts() -> None:
    assert [n for n, _ in read(parser(parallel=False), [CALLS[ToolFormat.HERMES]])[2]] == ["set"]


def test_without_tools_markers_are_text() -> None:
    assert read(parser(tools=None), [CALLS[ToolFormat.HERMES]])[0] == CALLS[ToolFormat.HERMES]


def test_reasoning_is_told_from_the_answer() -> None:
    assert read(parser(reasoning=THINK), ["<think>\nhm", "m\n</thi", "nk>\n\nyes"])[:2] == ("yes", "hmm")
    assert read(parser(reasoning=THINK, reasoning_open=True), ["hmm</think>yes"])[:2] == ("yes", "hmm")


def test_reasoning_that_never_ends_stays_reasoning() -> None:
    assert read(parser(reasoning=THINK, reasoning_open=True), ["still thinking </th"])[:2] == (
        "",
        "still thinking </th",
    )


def test_text_that_only_looks_like_reasoning_at_first_is_content() -> None:
    assert read(parser(reasoning=THINK), ["<th", "is>"])[0] == "<this>"
