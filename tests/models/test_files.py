"""The files that are delivered: what the manifest says of them, what is in them, and how large they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import pytest

from edge.quantize.task import read_task
from edge.registry.gguf import read_header
from edge.registry.manifest import read_manifest
from models.recipe import cases
from models.recipe.render import TEMPLATE_PATH

MODELS = Path(__file__).resolve().parents[2] / "models"
MANIFEST = MODELS / "builtin.toml"
F16, Q4_0 = (MODELS / "builtin" / f"edge-builtin-{kind}.gguf" for kind in ("f16", "q4_0"))


def test_the_manifest_is_right_about_its_file() -> None:
    manifest = read_manifest(MANIFEST)
    path = MANIFEST.parent / manifest.file
    header = read_header(path)
    assert manifest.name == header.name == "edge-builtin"
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.context_tokens == header.context_tokens == 2048
    assert (header.quantization, header.architecture) == ("Q4_0", "llama")


@pytest.mark.parametrize("path", [F16, Q4_0], ids=lambda path: path.stem)
def test_both_files_carry_the_template_of_the_recipe(path: Path) -> None:
    assert read_header(path).chat_template == TEMPLATE_PATH.read_text("utf-8")


def test_both_files_hold_the_same_tensors() -> None:
    shapes = [{t.name: tuple(t.shape.tolist()) for t in gguf.GGUFReader(path).tensors} for path in (F16, Q4_0)]
    assert shapes[0] == shapes[1]


def test_only_the_embedding_has_more_than_four_bits() -> None:
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(Q4_0).tensors}
    assert {kind for name, kind in kinds.items() if name.startswith("blk.") and "norm" not in name} == {"Q4_0"}
    assert {name: kind for name, kind in kinds.items() if "norm" not in name and kind != "Q4_0"} == {
        "token_embd.weight": "Q6_K"
    }


def test_the_cases_that_are_shipped_are_those_of_the_recipe() -> None:
    path = MANIFEST.parent / str(read_manifest(MANIFEST).evaluation)
    assert path == cases.OUT
    assert path.read_text("utf-8") == cases.text()
    assert len(read_task(path).cases) == 420


def test_the_repository_stays_small() -> None:
    delivered = [path for path in MODELS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in delivered) < 12_000_000
