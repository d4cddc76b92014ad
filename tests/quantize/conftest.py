"""Small real models, made once."""

from __future__ import annotations

from pathlib import Path

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
