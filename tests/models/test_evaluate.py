"""What the evaluation counts as right, and when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models import evaluate
from models.evaluate import MARKS, Score, below_bars, cases, right, table, write_table
from models.recipe.catalogue import CATALOGUE
from models.recipe.dialogues import Dialogue, call_message

CALL = '<tool_call>{"name": "start_device", "arguments": {"device": "pump 3"}}</tool_call>'
OTHER = '<tool_call>{"name": "stop_device", "arguments": {"device": "fan 2"}}</tool_call>'


def wanted(*calls: tuple[str, dict[str, Any]]) -> Dialogue:
    return Dialogue("x", [{"role": "user", "content": "..."}, call_message(list(calls))], list(CATALOGUE))


START, STOP = ("start_device", {"device": "pump 3"}), ("stop_device", {"device": "fan 2"})


def test_exact_calls_in_order_are_right() -> None:
    assert right(wanted(START), CALL)
    assert right(wanted(START, STOP), CALL + OTHER)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        OTHER,
        CALL + CALL,
        f"Sure! {CALL}",
        CALL.replace("pump 3", "pump 4"),
        CALL.replace("start_device", "start"),
        CALL.replace('"}}', "}}"),
        '<tool_call>{"name": "start_device", "arguments": {"device": "pump 3", "now": true}}</tool_call>',
    ],
)
def test_anything_else_is_wrong(answer: str) -> None:
    assert not right(wanted(START), answer)


def test_two_calls_in_the_wrong_order_are_wrong() -> None:
    assert not right(wanted(START, STOP), OTHER + CALL)


def test_spaces_within_a_call_do_not_matter_but_its_kinds_of_values_do() -> None:
    acknowledge = wanted(("acknowledge_alarm", {"alarm_id": 12}))
    assert right(acknowledge, '<tool_call>{"name":"acknowledge_alarm","arguments":{"alarm_id":12}}</tool_call>')
    assert not right(
        acknowledge, '<tool_call>{"name": "acknowledge_alarm", "arguments": {"alarm_id": "12"}}</tool_call>'
    )


def test_words_must_be_exact() -> None:
    asked = Dialogue("x", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is 12:30."}])
    assert right(asked, "It is 12:30.")
    assert not right(asked, "It is 12:31.")


def scores(f16: int, q4: int) -> dict[str, dict[str, Score]]:
    return {
        kind: {"tool calls, exact": Score(right=count, all=1000), "- schedule": Score(right=count, all=1000)}
        for kind, count in (("F16", f16), ("Q4_0", q4))
    }


@pytest.mark.parametrize(("f16", "q4", "complaints"), [(960, 950, 0), (960, 949, 2), (970, 955, 1), (1000, 940, 2)])
def test_the_bars(f16: int, q4: int, complaints: int) -> None:
    assert len(below_bars(scores(f16, q4))) == complaints


def test_the_table_has_a_line_per_row_with_the_headline_first() -> None:
    lines = table(scores(970, 965)).splitlines()
    assert lines[2] == "| tool calls, exact | 1000 | 97.0 % | 96.5 % |"
    assert lines[3] == "| - schedule | 1000 | 97.0 % | 96.5 % |"


def test_the_table_is_put_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_table(readme, "| new |")
    write_table(readme, "| newer |")
    assert readme.read_text() == f"before\n{MARKS[0]}\n| newer |\n{MARKS[1]}\nafter\n"


def test_the_readme_has_the_marks_once() -> None:
    text = (Path(evaluate.__file__).parent / "README.md").read_text("utf-8")
    assert [text.count(mark) for mark in MARKS] == [1, 1]


def test_the_cases_are_the_same_for_the_same_seed() -> None:
    first, second = ([d.messages for _, d in cases(7)] for _ in range(2))
    assert first == second
    assert len(first) > 1000
