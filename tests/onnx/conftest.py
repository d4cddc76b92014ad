"""Small encoders that the tests make themselves, and real children on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bench.make_onnx import SHAPES, write_encoder
from edge.engine.supervised import EngineLimits
from edge.onnx.client import TensorClient
from edge.onnx.messages import LoadTensors, Looking, Reading
from tests.onnx.detectors import LABELS, SIDE

LIMITS = EngineLimits(max_waiting=64, wedge_timeout_s=60.0, load_timeout_s=600.0, restart_backoff_max_s=2.0)
"""Wide: a child on a busy machine may be long in loading, above all one that gets only what other processes leave."""
MIB = 1 << 20


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx` and `tokenizer.json` of an encoder."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), SHAPES["tiny"]).parent


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one logit."""
    return write_encoder(tmp_path_factory.mktemp("reranker"), SHAPES["tiny"], "reranker").parent


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four."""
    return write_encoder(tmp_path_factory.mktemp("classifier"), SHAPES["tiny"], "classifier").parent


def reading_of(directory: Path, **changes: Any) -> Reading:
    """How the made encoder is read."""
    return Reading(**{"tokenizer": str(directory / "tokenizer.json"), "max_tokens": 128, **changes})


def load_of(directory: Path, reading: Reading | None = None, **changes: Any) -> LoadTensors:
    """A load of the made encoder; without `reading`: for its tensors."""
    fields: dict[str, Any] = {
        "path": str(directory / "model.onnx"),
        "task": "embedding" if reading is not None else "tensors",
        "reading": reading,
        "provider": "auto",
        "threads": 1,
        "most_rows": 16,
        "slo_s": 0.05,
        "limit_bytes": 300 * MIB,
        "heartbeat_s": 1.0,
        "background": False,
    }
    return LoadTensors(**{**fields, **changes})


DETR: dict[str, Any] = {
    "labels": LABELS,
    "layout": "detr",
    "height": SIDE,
    "width": SIDE,
    "fit": "stretch",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "scores": "sigmoid",
    "boxes": "cxcywh",
    "threshold": 0.5,
    "overlap": 1.0,
    "scores_output": "",
    "boxes_output": "",
    "most_pixels": 4_000_000,
}
YOLO = {**DETR, "layout": "yolo", "scores": "probabilities", "overlap": 0.45}


def detector_load_of(path: Path, looking: dict[str, Any] = DETR, **changes: Any) -> LoadTensors:
    """A load of a made detector."""
    fields: dict[str, Any] = {
        "path": str(path),
        "task": "detection",
        "reading": None,
        "provider": "auto",
        "threads": 1,
        "most_rows": 16,
        "slo_s": 0.05,
        "limit_bytes": 250 * MIB,
        "heartbeat_s": 1.0,
        "background": False,
        "looking": Looking(**looking),
    }
    return LoadTensors(**{**fields, **changes})


def run_with_child(
    load: LoadTensors, use: Callable[[TensorClient], Coroutine[Any, Any, None]], limits: EngineLimits = LIMITS
) -> None:
    """Start a child, wait until it is ready, use it, stop it."""

    async def main() -> None:
        client = TensorClient(load, limits)
        await client.start()
        try:
            await asyncio.wait_for(client.wait_ready(), limits.load_timeout_s)
            await use(client)
        finally:
            await client.stop()

    asyncio.run(main())
