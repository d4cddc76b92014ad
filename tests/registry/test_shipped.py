"""The manifests that come with an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.registry.manifest import read_manifest
from edge.registry.source import Builtin, Hub

MANIFESTS = sorted((Path(__file__).resolve().parents[2] / "models").glob("*.toml"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_shipped_manifest_is_valid_and_sober(path: Path) -> None:
    manifest = read_manifest(path)
    if manifest.where == Builtin():
        return
    assert manifest.name == path.stem
    assert isinstance(manifest.where, Hub)
    assert all(isinstance(part.where, Hub) for part in manifest.files)
    assert manifest.sha256 is None, "the hub states the sums: none is invented here"
    assert manifest.parameters
    assert manifest.licence in ("Apache-2.0", "MIT", "LicenseRef-Llama-3.2", "LicenseRef-Gemma")
    assert manifest.file == "", "an installation's directory is not written to"


def test_there_is_something_for_each_task() -> None:
    tasks = [read_manifest(path).task for path in MANIFESTS]
    assert {task: tasks.count(task) for task in tasks} == {
        "chat": 15,
        "embedding": 3,
        "rerank": 1,
        "detection": 1,
    }
