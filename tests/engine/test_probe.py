"""What the measuring child says a layout takes is what a real engine then takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path

import pytest

from edge.engine.client import EngineClient
from edge.engine.probe import LayoutProbe
from edge.errors import ModelUnusable
from edge.messages import MeasureLayout
from tests.engine.conftest import LIMITS, Q4_0, load_of


def layout(kv_type: str = "f16", *, flash: str = "auto", slots: int = 4, unified: bool = False) -> MeasureLayout:
    return MeasureLayout(
        slots=slots,
        context_tokens=512,
        pass_tokens=64,
        kv_type=kv_type,
        unified=unified,
        flash_attention=flash,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("kv_type", "flash", "kv_layout"),
    [("f16", "off", "streams"), ("f16", "auto", "unified"), ("q8_0", "auto", "streams"), ("q4_0", "on", "streams")],
)
def test_it_tells_what_an_engine_will_allocate(kv_type: str, flash: str, kv_layout: str) -> None:
    with LayoutProbe(Q4_0, cores=1, gpu_layers=0) as probe:
        measured = probe.model()
        found = probe.layout(layout(kv_type, flash=flash, unified=kv_layout == "unified"))
    assert found is not None

    async def allocated() -> tuple[int, int, int]:
        load = load_of(
            Q4_0, slots=4, context_tokens=512, kv_type=kv_type, flash_attention=flash, kv_layout=kv_layout
        )  # fmt: skip
        client = EngineClient(load, LIMITS)
        await client.start()
        try:
            facts = await client.wait_ready()
            return facts.model_bytes, facts.kv_bytes, facts.compute_bytes
        finally:
            await client.stop()

    weights, cells, compute = asyncio.run(allocated())
    assert measured.weights_bytes == weights and measured.layers == 6 and measured.train_context_tokens == 2048
    assert found.cells_bytes == cells
    assert sum(found.compute_bytes.values()) + sum(found.output_bytes.values()) == pytest.approx(compute, rel=0.02)


def test_a_layout_that_the_library_refuses_is_none_and_the_next_is_answered() -> None:
    with LayoutProbe(Q4_0, cores=1, gpu_layers=0) as probe:
        probe.model()
        assert probe.layout(layout("q8_0", flash="off")) is None
        assert probe.layout(layout("f16")) is not None


def test_a_file_that_is_no_model_is_refused_in_the_librarys_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with LayoutProbe(broken, cores=1, gpu_layers=0) as probe, pytest.raises(ModelUnusable, match="cannot be loaded"):
        probe.model()


def test_a_child_that_dies_is_an_error_and_the_next_question_starts_another() -> None:
    with LayoutProbe(Q4_0, cores=1, gpu_layers=0) as probe:
        probe.model()
        assert probe._process is not None
        probe._process.kill()
        with pytest.raises(ModelUnusable, match="cannot be measured"):
            probe.layout(layout())
        assert probe.layout(layout()) is not None


def test_it_is_answered_in_a_process_with_more_files_than_select_takes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with contextlib.ExitStack() as files:
            for _ in range(1100):
                files.enter_context(Path(os.devnull).open("rb"))
            with LayoutProbe(Q4_0, cores=1, gpu_layers=0) as probe:
                assert probe.model().weights_bytes > 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
