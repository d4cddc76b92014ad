"""What somebody asks for, and whether it may be written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConfigurationError
from edge.quantize.kinds import Choice


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for."""

    source: Path
    target: Path
    kind: str
    importance: Choice = "auto"
    text: Path | None = None
    calibration: Path | None = None
    manifest: Path | None = None
    most_tokens: int = 8192
    threads: int = 1
    threads_free: bool = False
    """Nobody said how many: that many at most, and fewer where more are slower."""
    force: bool = False
    allow_requantize: bool = False
    report: bool = True
    tokenizer: Path | None = None
    """Of an ONNX model; None: the tokenizer.json beside it."""
    block: int | None = None
    """Of int4-onnx: weights that share a scale; None: the format's default."""


def check_target(wish: Wish, parts: Sequence[Path]) -> None:
    """Raise ConfigurationError if the result must not be written where it is wished."""
    target = wish.target
    if target.is_dir():
        raise ConfigurationError(
            f"{target} is a directory; name the file to write, such as {target / wish.source.name}"
        )
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}; make it first")
    if target.exists() and any(target.samefile(part) for part in parts):
        raise ConfigurationError(f"{target} is the source itself; write to another name")
    if target.exists() and not wish.force:
        raise ConfigurationError(f"{target} exists; pass --force to replace it, or write to another name")
