"""Trace files: what is taken, and which line is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.bench.trace import Api, read_trace
from edge.bench.workload import Job
from edge.errors import ConfigurationError


def read(path: Path, text: str | bytes, api: Api = "chat", most_requests: int = 100) -> list[Job]:
    file = path / "trace.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(file, api=api, output_tokens=16, most_requests=most_requests)


def test_messages_and_prompts_are_replayed(tmp_path: Path) -> None:
    one = '{"at_s": 0, "prompt": "one\u2028line"}'
    two = '{"at_s": 1.5, "messages": [{"role": "user", "content": "b"}], "max_tokens": 3}'
    first, second = read(tmp_path, f"{one}\n\n{two}\n")
    assert (first.at_s, first.max_tokens, first.prompt) == (0, 16, "one\u2028line")
    assert first.messages == ({"role": "user", "content": "one\u2028line"},)
    assert (second.at_s, second.max_tokens, second.messages[0]["content"]) == (1.5, 3, "b")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"at_s": 0, "prompt": "a"}\n{"at_s": 1', "line 2: Invalid JSON"),
        ("[]", "line 1: "),
        ('{"prompt": "a"}', "line 1: at_s: Field required"),
        ('{"at_s": -1, "prompt": "a"}', "line 1: at_s: Input should be greater than or equal to 0"),
        ('{"at_s": "1", "prompt": "a"}', "line 1: at_s: Input should be a valid number"),
        ('{"at_s": 1}', "line 1: it needs either `messages` or `prompt`"),
        ('{"at_s": 1, "prompt": "a", "messages": [{}]}', "line 1: it needs either `messages` or `prompt`"),
        ('{"at_s": 1, "prompt": ""}', "line 1: prompt: String should have at least 1 character"),
        ('{"at_s": 1, "prompt": "a", "max_tokens": 0}', "line 1: max_tokens: "),
        ('{"at_s": 1, "prompt": "a", "maxtokens": 1}', "line 1: maxtokens: Extra inputs are not permitted"),
        ('{"at_s": 1, "prompt": "a"}\n{"at_s": 0.5, "prompt": "a"}', "line 2: at_s goes backwards; sort"),
        ("\n\n", "holds no request; each line is one, such as"),
        (b"\xff\xfe", "is not UTF-8 text"),
        ('{"at_s": 1, "prompt": "a"}\n' * 101, "has more than 100 requests; raise --max-requests"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str | bytes, part: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    assert part in caught.value.message
    assert "\n" not in caught.value.message


def test_messages_cannot_go_to_the_completions_api(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"line 1 has `messages`, which --api completions cannot send"):
        read(tmp_path, '{"at_s": 1, "messages": [{"role": "user", "content": "b"}]}', api="completions")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; check --trace"):
        read_trace(tmp_path / "none", api="chat", output_tokens=1, most_requests=1)
