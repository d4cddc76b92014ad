"""The file of pinned prompts: what a line may say, and the one sentence about a line that says something else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ConfigurationError
from edge.messages import ChatPrompt, TextPrompt
from edge.pinned import MAX_ENTRIES, MAX_FILE_BYTES, read_pinned

SYSTEM = {"role": "system", "content": "You watch over the pumps."}
TOOL = {"type": "function", "function": {"name": "stop_pump", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    return tmp_path / "pinned.jsonl"


def write(path: Path, *entries: Any) -> None:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), "utf-8")


def test_messages_with_and_without_tools_and_text(pinned: Path) -> None:
    write(pinned, {"messages": [SYSTEM]}, {"messages": [SYSTEM], "tools": [TOOL]}, {"text": "Once upon a time"})
    plain, with_tools, text = read_pinned(pinned)
    assert plain == ChatPrompt([SYSTEM], None, add_generation_prompt=False)
    assert isinstance(with_tools, ChatPrompt) and with_tools.tools == [TOOL]
    assert text == TextPrompt("Once upon a time")


def test_parts_of_a_message_are_joined_as_in_a_request(pinned: Path) -> None:
    write(pinned, {"messages": [{"role": "system", "content": [{"type": "text", "text": "You watch."}]}]})
    (prompt,) = read_pinned(pinned)
    assert isinstance(prompt, ChatPrompt) and prompt.messages[0]["content"] == "You watch."


def test_empty_lines_count_but_mean_nothing(pinned: Path) -> None:
    pinned.write_text('\n{"text": "a"}\r\n  \n{"text": 7}\n')
    with pytest.raises(ConfigurationError, match="line 4"):
        read_pinned(pinned)
    pinned.write_text('\n{"text": "a"}\r\n  \n')
    assert read_pinned(pinned) == [TextPrompt("a")]
    pinned.write_text("")
    assert read_pinned(pinned) == []


def test_a_line_ends_at_a_newline_only(pinned: Path) -> None:
    pinned.write_text('{"text": "one\u2028two\u0085three"}\n', "utf-8")
    assert read_pinned(pinned) == [TextPrompt("one\u2028two\u0085three")]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('"text"', "Input should be an object"),
        ("{}", "give either `messages` (and perhaps `tools`) or `text`"),
        ('{"text": ""}', "text: "),
        ('{"text": 7}', "text: "),
        ('{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "give either"),
        ('{"text": "a", "tools": []}', "give either"),
        ('{"tools": []}', "give either"),
        ('{"messages": []}', "messages: "),
        ('{"messages": [{"role": "alien", "content": "x"}]}', "messages.0.role: "),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "text"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}', "tools.0.function: "),
        ('{"prompt": "a"}', "prompt: Extra inputs are not permitted"),
    ],
)
def test_a_bad_line_is_one_sentence_that_names_it(pinned: Path, line: str, part: str) -> None:
    pinned.write_text(f'{{"text": "good"}}\n{line}\n{{"text": "good"}}\n')
    with pytest.raises(ConfigurationError, match=re.escape(f"{pinned}, line 2: ")) as refused:
        read_pinned(pinned)
    assert part in refused.value.message
    assert "\n" not in refused.value.message


def test_a_file_that_cannot_be_read_is_named(pinned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_pinned(pinned)
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_pinned(tmp_path)
    pinned.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(ConfigurationError, match="it is not UTF-8 text"):
        read_pinned(pinned)


def test_there_are_bounds(pinned: Path) -> None:
    write(pinned, *({"text": str(n)} for n in range(MAX_ENTRIES + 1)))
    with pytest.raises(ConfigurationError, match=f"{MAX_ENTRIES + 1} entries; at most {MAX_ENTRIES}"):
        read_pinned(pinned)
    with pinned.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match="is over 16 MiB"):
        read_pinned(pinned)
