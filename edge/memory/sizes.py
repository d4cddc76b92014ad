"""From what the library says of a layout to the parts of a plan: what lies in main memory, and what on the device. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import DoesNotFit
from edge.memory.layout import Layout, Part
from edge.messages import LaidOut, Measured

_LOOP_BYTES = 6 << 20
"""What the engine's process takes beyond what a measuring child shows: its loop, work areas of the kernels, threads (4 to 7 MiB
over seven models, bench/prove_memory.py)."""
_DEVICE_CONTEXT_BYTES = 400 << 20
"""What CUDA takes on a device for one process: 250 to 450 MiB by driver and card, as others report; not measured here."""


_TENSOR_PROCESS_BYTES = 72 << 20
"""A tensor child that has no model yet: Python, numpy, onnxruntime or libllama, and a tokenizer of 30,000 pieces."""
_PIECE_BYTES = 350
"""What libllama keeps of each piece of a vocabulary."""
_REPACKED = 1.15
"""Weights in memory beside those in the file: onnxruntime keeps copies of some in the order that its kernels like."""
_LEAST_PASS_BYTES, _GOOD_PASS_BYTES = 32 << 20, 128 << 20


def tensor_bytes(name: str, file_bytes: int, room_bytes: int, *, pieces: int = 0, further_bytes: int = 0) -> int:
    """What a model of tensors may take: its weights, its process, and working memory of as many texts at a time as there is room
    for. The child measures what a text takes, and keeps within this. `pieces`: of a vocabulary that libllama reads;
    `further_bytes`: what a pass takes besides. Raises DoesNotFit."""
    fixed = _TENSOR_PROCESS_BYTES + int(file_bytes * _REPACKED) + pieces * _PIECE_BYTES + further_bytes
    least = fixed + _LEAST_PASS_BYTES + file_bytes // 8
    if least > room_bytes:
        raise DoesNotFit.of(name, least, room_bytes)
    return min(room_bytes, fixed + max(_GOOD_PASS_BYTES, file_bytes // 2))


@dataclass(frozen=True, slots=True)
class WeightTable:
    """Where a file's weights belong. Sizes in bytes."""

    blocks: tuple[int, ...]
    """Of each repeating layer, first to last."""
    input_bytes: int
    """Token embeddings."""
    output_bytes: int
    """The output layer and its norm. Where the embeddings are used for it, this is their size once more."""


def parts(measured: Measured, weights: WeightTable, laid_out: LaidOut, layout: Layout) -> tuple[Part, ...]:
    """What a layout takes. The library offloads the output layer first, then the repeating ones from the last to the first."""
    offloaded = max(0, min(layout.gpu_layers - 1, len(weights.blocks))) if layout.gpu_layers else 0
    device_weights = sum(weights.blocks[len(weights.blocks) - offloaded :])
    if layout.gpu_layers:
        device_weights += weights.output_bytes
    host_weights = max(weights.input_bytes, measured.weights_bytes - device_weights)
    device_cells = laid_out.cells_bytes * offloaded // max(1, len(weights.blocks))
    host_compute, device_compute = _split(laid_out)
    if offloaded < len(weights.blocks):
        # Measured with all layers on the device. The processor computes as much for the others, and the passes of a prompt copy
        # their weights over there, matrix by matrix.
        host_compute += device_compute
        device_compute = device_compute + max(weights.blocks) if layout.gpu_layers else 0
    return (
        Part("weights", host_weights, device_weights),
        Part("attention", laid_out.cells_bytes - device_cells, device_cells),
        Part("compute", host_compute, device_compute),
        Part("prefixes", layout.cache_bytes),
        Part(
            "process",
            measured.process_bytes + measured.tables_bytes + _LOOP_BYTES,
            _DEVICE_CONTEXT_BYTES if layout.gpu_layers else 0,
        ),
    )


def _split(laid_out: LaidOut) -> tuple[int, int]:
    """Working memory in main memory and on the device. `CUDA_Host` and the like is main memory that the device can read."""
    host = device = 0
    for buffers in (laid_out.compute_bytes, laid_out.output_bytes):
        for place, size in buffers.items():
            if place.startswith("CPU") or place.endswith("_Host"):
                host += size
            else:
                device += size
    return host, device
