"""From texts to what a model takes, and from what it gives to vectors, scores and probabilities. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.onnx.messages import Pooling
from edge.onnx.texts import Encoded

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def filled(texts: Sequence[Encoded], rows: int, length: int, pad: int) -> tuple[Integers, Integers, Integers]:
    """(tokens, mask, types), each [rows, length]. What is missing is filled up; empty texts see their first token alone, so that
    nothing is divided by zero."""
    tokens = np.full((rows, length), pad, np.int64)
    mask = np.zeros((rows, length), np.int64)
    types = np.zeros((rows, length), np.int64)
    for row, text in enumerate(texts):
        count = len(text.tokens)
        tokens[row, :count], mask[row, :count], types[row, :count] = text.tokens, 1, text.types
    mask[len(texts) :, 0] = 1
    return tokens, mask, types


def pooled(states: npt.NDArray[Any], mask: Integers, pooling: Pooling) -> Floats:
    """One vector for each text. `states`: [rows, length, width], or [rows, width] where the model pools itself."""
    values = states.astype(np.float32, copy=False)
    if pooling == "none":
        return values
    if pooling == "cls":
        return values[:, 0]
    if pooling == "last":
        last: Floats = values[np.arange(len(values)), mask.sum(axis=1) - 1]
        return last
    weights = mask[:, :, None].astype(np.float32)
    mean: Floats = (values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    return mean


def cut(vectors: Floats, dimensions: int | None, *, normalise: bool) -> Floats:
    """The first `dimensions` numbers of each vector, of length 1 if that is wanted."""
    short = vectors[:, :dimensions] if dimensions is not None else vectors
    if not normalise:
        return np.ascontiguousarray(short, np.float32)
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.ascontiguousarray(short / np.maximum(lengths, 1e-12), np.float32)


def relevance(logits: Floats) -> Floats:
    """One number from 0 to 1 for each pair: of one logit its logistic function, of two the second one's share."""
    if logits.shape[1] == 1:
        return _logistic(logits[:, 0])
    return shares(logits)[:, -1]


def probabilities(logits: Floats, *, multi_label: bool) -> Floats:
    """Of each label: for itself, or of one of them."""
    return _logistic(logits) if multi_label else shares(logits)


def shares(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def _logistic(values: Floats) -> Floats:
    result: Floats = np.where(values >= 0, 1 / (1 + np.exp(-np.abs(values))), 1 - 1 / (1 + np.exp(-np.abs(values))))
    return result.astype(np.float32)
