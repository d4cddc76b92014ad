"""Where the parts of a layout lie when some of its layers are on a device."""

from __future__ import annotations

import pytest

from edge.memory.layout import MIB, Layout, Part
from edge.memory.sizes import WeightTable, parts
from edge.messages import LaidOut, Measured

BLOCKS = 8
WEIGHTS = WeightTable(blocks=(100 * MIB,) * BLOCKS, input_bytes=50 * MIB, output_bytes=60 * MIB)
MEASURED = Measured(
    process_bytes=30 * MIB,
    tables_bytes=20 * MIB,
    weights_bytes=910 * MIB,
    train_context_tokens=4096,
    layers=9,
    offloads=True,
)
LAID_OUT = LaidOut(
    cells_bytes=80 * MIB,
    compute_bytes={"CUDA0": 40 * MIB, "CUDA_Host": 5 * MIB},
    output_bytes={"CUDA_Host": 1 * MIB},
)


def laid_out(gpu_layers: int) -> dict[str, Part]:
    layout = Layout(2, 2048, "q8_0", 64, 16 * MIB, gpu_layers)
    return {part.name: part for part in parts(MEASURED, WEIGHTS, LAID_OUT, layout)}


def test_with_all_layers_there_working_memory_is_what_the_library_says() -> None:
    found = laid_out(BLOCKS + 1)
    assert (found["compute"].host_bytes, found["compute"].device_bytes) == (6 * MIB, 40 * MIB)
    assert (found["attention"].host_bytes, found["weights"].device_bytes) == (0, 860 * MIB)


@pytest.mark.parametrize("layers", [1, 4, BLOCKS])
def test_with_some_of_them_there_both_sides_compute_and_weights_are_copied(layers: int) -> None:
    found = laid_out(layers)
    assert (found["compute"].host_bytes, found["compute"].device_bytes) == (46 * MIB, 140 * MIB)
    assert found["attention"].device_bytes == 10 * MIB * (layers - 1)
    assert found["weights"].host_bytes + found["weights"].device_bytes == MEASURED.weights_bytes


def test_with_none_there_nothing_lies_on_the_device() -> None:
    found = laid_out(0)
    assert sum(part.device_bytes for part in found.values()) == 0
    assert found["compute"].host_bytes == 46 * MIB


def test_each_layer_more_takes_more_there_and_less_here_between_none_and_all() -> None:
    split = [laid_out(layers) for layers in range(1, BLOCKS + 1)]
    there = [sum(part.device_bytes for part in found.values()) for found in split]
    here = [sum(part.host_bytes for part in found.values()) for found in split]
    assert there == sorted(there) and here == sorted(here, reverse=True)
