"""Texts to calibrate with and to measure on are kept apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import ConfigurationError
from edge.quantize.text import (
    LEAD_TOKENS,
    calibration_text,
    chunks,
    divided,
    evaluation_text,
    read_text,
    without,
)


def telling(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 40}


def test_the_package_s_texts_share_no_telling_line() -> None:
    first, second = calibration_text(), evaluation_text()
    assert telling(first) and telling(second)
    assert not telling(first) & telling(second)
    assert without(second, first) == second


def test_a_text_is_divided_into_halves_that_are_all_of_it() -> None:
    text = "".join(f"line {n} of a text that is somewhat long\n" for n in range(1000))
    first, second = divided(text)
    assert sorted((first + second).splitlines()) == sorted(text.splitlines())
    assert not set(first.splitlines()) & set(second.splitlines())
    assert abs(len(first) - len(second)) < 0.2 * len(text)
    assert divided("short") == ("short", "")


def test_what_was_calibrated_with_does_not_judge() -> None:
    shared = "this is a long line that stands in both of the texts\n"
    own = "".join(f"this is long line number {n}, which stands only here\n" for n in range(5))
    assert without(own + shared, shared) == own
    assert without(shared * 3 + "and a little more\n", shared) == ""


def test_chunks_hold_all_tokens_behind_their_start() -> None:
    found = list(chunks(range(1000, 1250), size=101, most_tokens=10_000, start=[1]))
    assert [piece[0] for piece in found] == [1, 1, 1]
    assert [token for piece in found for token in piece[1:]] == list(range(1000, 1250))
    assert max(map(len, found)) == 101


def test_chunks_are_bounded_and_none_is_too_short_to_judge() -> None:
    assert sum(map(len, chunks(range(5000), size=512, most_tokens=1024))) == 1024
    assert list(chunks(range(LEAD_TOKENS + 1), size=512, most_tokens=1024)) == []
    found = list(chunks(range(520), size=512, most_tokens=1024))
    assert [len(piece) for piece in found] == [512]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe\x00", "no UTF-8"), (None, "cannot read")],
)
def test_a_text_that_is_none_is_refused_with_the_flag_s_name(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"{problem}.*--text"):
        read_text(path, "--text")
