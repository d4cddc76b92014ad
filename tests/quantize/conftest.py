"""Small real models, made once, and the child that works on them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from bench.make_gguf import SHAPES, write_model

BUILTIN = Path(__file__).resolve().parents[2] / "models/builtin/edge-builtin-f16.gguf"


@pytest.fixture(scope="session")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """F16 files by the shape's name."""
    directory = tmp_path_factory.mktemp("shapes")
    paths = {name: directory / f"{name}.gguf" for name in ("tinymoe", "tinynarrow")}
    for name, path in paths.items():
        write_model(path, SHAPES[name], kind="f16")
    return paths


def workers() -> list[psutil.Process]:
    """The children that quantize and are alive. Of others, which may end while they are looked at, nothing is wanted."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
            if "edge.quantize.worker" in child.cmdline():
                found.append(child)
    return found


def never_whole(target: Path) -> Path:
    """A target whose draft is a pipe that nobody reads: the child comes as far as writing it, however fast it is, and no
    further."""
    os.mkfifo(target.with_name(f".{target.name}.{os.getpid()}.part"))
    return target
