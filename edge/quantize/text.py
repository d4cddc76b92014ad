"""Texts to calibrate with and to measure on, kept apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.errors import ConfigurationError

CHUNK_TOKENS = 512
LEAD_TOKENS = 32
"""Positions at the beginning of a chunk that are not judged: with hardly any context every model only guesses."""
LEAST_TOKENS = 256
"""Fewer positions than this say nothing."""

_BLOCK_CHARACTERS = 2_000
_SENTENCE_CHARACTERS = 16
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TELLING_CHARACTERS = 40
_TEXTS = Path(__file__).parent / "texts"


def calibration_text() -> str:
    """The package's own text to calibrate with: prose, talk, code, figures. No sentence of it is in `evaluation_text`."""
    return (_TEXTS / "calibration.txt").read_text("utf-8")


def evaluation_text() -> str:
    """The package's own text to measure on."""
    return (_TEXTS / "evaluation.txt").read_text("utf-8")


def read_text(path: Path, flag: str) -> str:
    """A user's text. Raises ConfigurationError that names the flag."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}; check {flag}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no UTF-8 text; {flag} wants plain text") from None
    if not text.strip():
        raise ConfigurationError(f"{path} is empty; {flag} wants some pages of text like what the model will read")
    return text


def divided(text: str) -> tuple[str, str]:
    """One text as two of about the same length and kind: blocks of whole lines in turns."""
    parts: tuple[list[str], list[str]] = ([], [])
    turn, size = 0, 0
    for line in text.splitlines(keepends=True):
        parts[turn].append(line)
        size += len(line)
        if size >= _BLOCK_CHARACTERS:
            turn, size = 1 - turn, 0
    return "".join(parts[0]), "".join(parts[1])


def without(text: str, other: str) -> str:
    """`text` less those lines of telling length that are also in `other`: what was calibrated with must not judge. Empty if that
    was most of it."""
    known = {line.strip() for line in other.splitlines() if len(line.strip()) >= _TELLING_CHARACTERS}
    left = "".join(line for line in text.splitlines(keepends=True) if line.strip() not in known)
    return left if 2 * len(left) > len(text) else ""


def chunks(tokens: Sequence[int], *, size: int, most_tokens: int, start: Sequence[int] = ()) -> Iterable[list[int]]:
    """Pieces of at most `size` tokens, each beginning with `start` (a BOS token, or nothing), `most_tokens` in all; a last piece
    that would have nothing to judge is left out."""
    step = size - len(start)
    for first in range(0, min(len(tokens), most_tokens), step):
        piece = [*start, *tokens[first : first + min(step, most_tokens - first)]]
        if len(piece) > LEAD_TOKENS + 1:
            yield piece


def sentences(text: str) -> list[str]:
    """A text's sentences, in order: no line end within one, none twice, and none so short that it says nothing."""
    parts = (part.strip() for line in text.splitlines() for part in _SENTENCE_END.split(line))
    return list(dict.fromkeys(part for part in parts if len(part) >= _SENTENCE_CHARACTERS))
