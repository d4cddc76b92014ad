"""From a detector's outputs to things in a picture. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ModelUnusable
from edge.onnx.messages import Looking, Thing
from edge.onnx.picture import Placed
from edge.onnx.tasks import shares

Floats = npt.NDArray[np.float32]
_BESIDE_CLASSES = 4
_MOST_CANDIDATES = 1000
"""Boxes that are held against each other."""


def require_shapes(looking: Looking, outputs: list[npt.NDArray[Any]], names: list[str]) -> None:
    """Raises ModelUnusable that says what was expected, unless a pass's outputs are laid out as the manifest says."""
    classes = _classes(looking)
    if looking.layout == "yolo":
        (found,) = outputs
        wide = _BESIDE_CLASSES + classes
        if found.ndim != 3 or found.shape[0] != 1 or (found.shape[1] == wide) == (found.shape[2] == wide):
            raise ModelUnusable(
                f"the output {names[0]!r} has shape {list(found.shape)}; for layout yolo with {len(looking.labels)} labels it "
                f"must be [1, {wide}, things] or [1, things, {wide}]"
            )
        return
    scores, boxes = outputs
    things = scores.shape[1] if scores.ndim == 3 else "things"
    if scores.shape != (1, things, classes):
        beside = " and one for nothing" if looking.scores == "softmax" else ""
        raise ModelUnusable(
            f"the output {names[0]!r} has shape {list(scores.shape)}; with {len(looking.labels)} labels{beside} it must be "
            f"[1, things, {classes}]"
        )
    if boxes.shape != (1, things, 4):
        raise ModelUnusable(f"the output {names[1]!r} has shape {list(boxes.shape)}; it must be [1, {things}, 4]")


def things_in(
    looking: Looking, outputs: list[npt.NDArray[Any]], picture: Placed, *, threshold: float, most: int
) -> list[Thing]:
    """What is in a picture, the surest first, in its own pixels."""
    scores, boxes = _read(looking, outputs)
    labels = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), labels]
    sound = np.isfinite(best) & np.isfinite(boxes).all(axis=1)
    order = np.argsort(-np.where(sound, best, -1), kind="stable")
    order = order[(best[order] >= threshold) & sound[order]][:_MOST_CANDIDATES]
    labels, best, boxes = labels[order], best[order], _in_picture(_corners(boxes[order], looking), picture)
    kept = _apart(boxes, labels, looking.overlap)[:most]
    return [
        Thing(int(labels[n]), float(best[n]), (float(left), float(top), float(right), float(bottom)))
        for n in kept
        for left, top, right, bottom in [boxes[n]]
    ]


def _classes(looking: Looking) -> int:
    return len(looking.labels) + (1 if looking.scores == "softmax" else 0)


def _read(looking: Looking, outputs: list[npt.NDArray[Any]]) -> tuple[Floats, Floats]:
    """Scores [things, labels] from 0 to 1 and boxes [things, 4] in the model's pixels, as the manifest says they are."""
    if looking.layout == "yolo":
        table = outputs[0][0].astype(np.float32)
        if table.shape[0] == _BESIDE_CLASSES + _classes(looking):
            table = table.T
        boxes, numbers = table[:, :_BESIDE_CLASSES], table[:, _BESIDE_CLASSES:]
    else:
        numbers = outputs[0][0].astype(np.float32)
        boxes = outputs[1][0].astype(np.float32) * np.array([looking.width, looking.height] * 2, np.float32)
    if looking.scores == "softmax":
        return shares(numbers)[:, :-1], boxes
    if looking.scores == "sigmoid":
        numbers = 0.5 * (1 + np.tanh(0.5 * numbers))  # the logistic function, without overflow
    return numbers, boxes


def _corners(boxes: Floats, looking: Looking) -> Floats:
    if looking.boxes == "xyxy":
        return boxes
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _in_picture(boxes: Floats, picture: Placed) -> Floats:
    """In the picture's own pixels, and within it."""
    moved = boxes - np.array([picture.left, picture.top] * 2, np.float32)
    own = moved / np.array(picture.scale * 2, np.float32)
    most = np.array([picture.width, picture.height] * 2, np.float32)
    return np.clip(own, 0, most)


def _apart(boxes: Floats, labels: npt.NDArray[Any], overlap: float) -> list[int]:
    """Of boxes of one label that cover each other the surest one (non-maximum suppression). They come in that order."""
    if overlap >= 1:
        return list(range(len(boxes)))
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    gone = np.zeros(len(boxes), bool)
    for n in range(len(boxes)):
        if gone[n]:
            continue
        kept.append(n)
        corners = np.maximum(boxes[n, :2], boxes[:, :2]), np.minimum(boxes[n, 2:], boxes[:, 2:])
        common = (corners[1] - corners[0]).clip(0).prod(axis=1)
        gone |= (labels == labels[n]) & (common > overlap * np.maximum(areas[n] + areas - common, 1e-9))
    return kept
