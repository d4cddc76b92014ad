"""Files of cases, and what counts as a right answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat
from edge.errors import ConfigurationError
from edge.quantize.task import Dialect, read_task, right

TOOL = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object"}}}
ASKED = {"role": "user", "content": "Stop pump 3."}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "stop", "arguments": '{"d": 3}'}}],
}
HERMES = Dialect(ToolFormat.HERMES, ReasoningTags("<think>", "</think>"))


def judged(expected: dict[str, Any], answer: str, dialect: Dialect = HERMES) -> bool:
    return right(expected, answer, dialect=dialect, offered=frozenset({"stop"}), reasoning_open=False)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('<tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>', True),
        ('<tool_call>\n{"name":"stop","arguments":{"d":3}}\n</tool_call>', True),
        ('<think>It is the third.</think><tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>', True),
        ('<tool_call>{"name": "stop", "arguments": {"d": "3"}}</tool_call>', False),
        ('<tool_call>{"name": "go", "arguments": {"d": 3}}</tool_call>', False),
        ('Well: <tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>', False),
        ('<tool_call>{"name": "stop", "arguments": {"d": 3', False),
        ("I have stopped it.", False),
        ("", False),
    ],
)
def test_a_call_is_right_if_all_of_it_is(answer: str, verdict: bool) -> None:
    assert judged(CALL, answer) is verdict


def test_calls_are_read_in_the_model_s_own_form() -> None:
    mistral = Dialect(ToolFormat.MISTRAL, None)
    assert judged(CALL, '[TOOL_CALLS][{"name": "stop", "arguments": {"d": 3}}]', mistral)
    assert not judged(CALL, '<tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>', mistral)
    assert not judged(CALL, '<tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>', Dialect(None, None))


def test_words_are_right_if_they_are_the_same_words() -> None:
    words = {"role": "assistant", "content": "It is 12:30."}
    assert judged(words, " It is 12:30.\n")
    assert not judged(words, "It is 12:31.")
    assert not judged(words, '<tool_call>{"name": "stop", "arguments": {"d": 3}}</tool_call>')


def _calling(function: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": function}]}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "cases.json"
    case = {"group": "stops", "tools": ["stop"], "messages": [ASKED, CALL]}
    path.write_text(json.dumps({"name": "stops", "tools": {"stop": TOOL}, "cases": [case], **changes}))
    return path


def test_a_file_of_cases_is_read(tmp_path: Path) -> None:
    task = read_task(written(tmp_path))
    assert (task.name, len(task.cases), task.most_tokens) == ("stops", 1, 200)
    assert task.offered(task.cases[0]) == [TOOL]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cases": []}, "cases"),
        ({"tools": {}}, "offers the tool 'stop'"),
        ({"cases": [{"group": "x", "messages": [CALL, ASKED]}]}, "right answer"),
        ({"cases": [{"group": "x", "messages": [ASKED, {"role": "assistant", "content": ""}]}]}, "right answer"),
        ({"cases": [{"group": "x", "messages": [ASKED, _calling({"name": "stop"})]}]}, "no arguments in JSON"),
        ({"cases": [{"group": "x", "messages": [ASKED, _calling({"name": "stop", "arguments": "{"})]}]}, "in JSON"),
        ({"cases": [{"group": "x", "messages": [ASKED, {"role": "assistant", "tool_calls": [3]}]}]}, "has no name"),
        ({"answers": 3}, "answers"),
        ({"most_tokens": 0}, "most_tokens"),
    ],
)
def test_a_broken_file_of_cases_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        read_task(written(tmp_path, **changes))


def test_no_file_and_no_json_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_task(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"x\.json"):
        read_task(tmp_path / "x.json")
