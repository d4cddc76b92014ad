"""Detectors whose answers are known: four things, one in each quarter of the picture, as sure as that is red, green or blue.

Weights are few, but the graph is real: what is wrong in reading, turning or placing a picture changes scores or boxes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

LABELS = ["red", "green", "blue"]
SIDE = 64
QUARTERS = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]], np.float32)
"""Centres, row by row."""
_STEEP = 20.0


def write_detector(
    path: Path, layout: str, *, turned: bool = False, mask: bool = False, batch: int | str = "batch"
) -> Path:
    """`layout` detr: `logits` [1, 4, 3] and `pred_boxes` [1, 4, 4]; yolo: `output0` [1, 7, 8], each thing twice,
    or [1, 8, 7] where it is `turned`."""
    nodes = [
        helper.make_node(
            "AveragePool", ["pixels"], ["quarters"], kernel_shape=[SIDE // 2] * 2, strides=[SIDE // 2] * 2
        ),
        helper.make_node("Reshape", ["quarters", "flat"], ["colours"]),
        helper.make_node("Transpose", ["colours"], ["things"], perm=[0, 2, 1]),
        helper.make_node("Sub", ["things", "half"], ["around"]),
        helper.make_node("Mul", ["around", "steep"], ["numbers"]),
    ]
    constants: dict[str, np.ndarray] = {
        "flat": np.array([1, 3, 4], np.int64),
        "half": np.array(0.5, np.float32),
        "steep": np.array(_STEEP, np.float32),
    }
    boxes = np.concatenate([QUARTERS, np.full((4, 2), 0.5, np.float32)], axis=1)
    outputs: list[tuple[str, tuple[Any, ...]]]
    if layout == "detr":
        constants["all_boxes"] = boxes[None]
        nodes += [
            helper.make_node("Identity", ["numbers"], ["logits"]),
            helper.make_node("Identity", ["all_boxes"], ["pred_boxes"]),
        ]
        outputs = [("logits", (batch, 4, 3)), ("pred_boxes", (batch, 4, 4))]
    else:
        twice = np.concatenate([boxes, boxes + np.array([0.02, 0, 0, 0], np.float32)]) * SIDE
        constants |= {"all_boxes": twice[None], "less": np.array(0.9, np.float32)}
        nodes += [
            helper.make_node("Sigmoid", ["numbers"], ["sure"]),
            helper.make_node("Mul", ["sure", "less"], ["less_sure"]),
            helper.make_node("Concat", ["sure", "less_sure"], ["scores"], axis=1),
            helper.make_node("Concat", ["all_boxes", "scores"], ["table"], axis=2),
            helper.make_node("Identity", ["table"], ["output0"])
            if turned
            else helper.make_node("Transpose", ["table"], ["output0"], perm=[0, 2, 1]),
        ]
        outputs = [("output0", (batch, 8, 7) if turned else (batch, 7, 8))]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, (batch, 3, SIDE, SIDE))]
    if mask:
        inputs.append(helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, (batch, SIDE, SIDE)))
    graph = helper.make_graph(
        nodes,
        "detector",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name, axes in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def picture(width: int, height: int, quarters: str = "r..b", kind: str = "PNG", **options: Any) -> bytes:
    """A file whose quarters, row by row, are red, green, blue or black (`.`)."""
    colours = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), ".": (0, 0, 0), "w": (255, 255, 255)}
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate(quarters):
        left, top = (number % 2) * width // 2, (number // 2) * height // 2
        image.paste(colours[colour], (left, top, left + width // 2, top + height // 2))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
