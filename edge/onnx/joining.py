"""Tensors of several clients in one pass, where a model's shapes allow it and its answers show that it may be.

A free first axis of one name in all inputs and outputs is most likely that of a batch; nothing in the file says so for certain.
So the first joined passes are computed client by client too. One that differs, and this model's tensors are never joined again.
Equal rows prove nothing, since a model that mixes them answers like one that does not: until enough is proved, they go apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edge.errors import EdgeError
from edge.onnx.datatypes import BYTES
from edge.onnx.messages import Infer, Tensor, TensorSpec
from edge.onnx.pulse import PassStopped

_PROOFS = 3
"""Joined passes that are held against separate ones."""
_CLOSE = 1e-3
"""Of the largest number of an output: what rounding in another order may change."""
_SHARE = 0.6
"""Part of the target that a joined pass may take."""
_SLOWLY = 0.2

_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


def may_join(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether all tensors begin with a free axis of the same name, and hold numbers."""
    specs = [*inputs, *outputs]
    first = {(spec.shape[0], spec.axes[0]) if spec.shape else (0, "") for spec in specs}
    plain = all(spec.datatype != BYTES for spec in specs)
    return bool(inputs) and plain and len(first) == 1 and all(length < 0 and name for length, name in first)


def joined(works: Sequence[Infer]) -> Infer:
    """One after the other along the first axis: their bytes, since that axis is the outermost."""
    inputs = []
    for tensor in works[0].inputs:
        parts = [next(other for other in work.inputs if other.name == tensor.name) for work in works]
        shape = [sum(part.shape[0] for part in parts), *tensor.shape[1:]]
        inputs.append(Tensor(tensor.name, tensor.datatype, shape, b"".join(part.data for part in parts)))
    return Infer(works[0].request_id, inputs, works[0].outputs)


def parted(outputs: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]] | None:
    """Each one's part of joined outputs; None if they are not as long as what went in."""
    total = sum(counts)
    if any(not tensor.shape or tensor.shape[0] != total for tensor in outputs):
        return None
    parts: list[list[Tensor]] = []
    before = 0
    for count in counts:
        parts.append([_rows(tensor, before, count) for tensor in outputs])
        before += count
    return parts


def alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two passes gave the same, but for rounding."""
    return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))


class Joiner:
    """Owner of what is known of one model's first axis. Used by the loop's thread."""

    def __init__(
        self,
        infer: Callable[[Infer], list[Tensor]],
        excuse: Callable[[Exception], EdgeError],
        *,
        possible: bool,
        most_rows: int,
        slo_s: float,
    ) -> None:
        """`infer` runs one pass; `excuse` makes an error for a client of what it raised."""
        self._infer, self._excuse = infer, excuse
        self._possible, self._most_rows, self._slo_s = possible, most_rows, slo_s
        self._proofs = 0
        self._row_s = 0.0

    def partners(self, first: Infer, waiting: Iterable[Infer]) -> list[Infer]:
        """Those that wait and may share a pass with `first`."""
        if not self._possible:
            return []
        rows, form = _count(first), _form(first)
        most = self._most_rows if not self._row_s else min(self._most_rows, int(_SHARE * self._slo_s / self._row_s))
        chosen: list[Infer] = []
        for other in waiting:
            if rows + _count(other) <= most and _form(other) == form:
                chosen.append(other)
                rows += _count(other)
        return chosen

    def run(self, works: Sequence[Infer]) -> list[list[Tensor] | EdgeError]:
        """What each of several gets: its outputs, or why there are none."""
        proved = self._proofs >= _PROOFS
        if not proved and not _differ(works):
            return [self._alone(work) for work in works]
        try:
            parts = parted(self._infer(joined(works)), [_count(work) for work in works])
        except (EdgeError, MemoryError, PassStopped):  # one of them may be to blame: that shows when each is alone
            return [self._alone(work) for work in works]
        if parts is None:
            self._possible = False
            return [self._alone(work) for work in works]
        if proved:
            return list(parts)
        apart = [self._alone(work) for work in works]
        answered: list[Infer] = []
        for work, part, whole in zip(works, parts, apart, strict=True):
            if isinstance(whole, EdgeError):
                continue
            answered.append(work)
            if not alike(part, whole):
                self._possible = False
        self._proofs += _differ(answered)
        return apart

    def took(self, works: Sequence[Infer], seconds: float) -> None:
        """Learn what a row costs, where rows are joined: a tensor of no axes has none."""
        if not self._possible:
            return
        row_s = seconds / max(1, sum(map(_count, works)))
        self._row_s = row_s if not self._row_s else self._row_s + _SLOWLY * (row_s - self._row_s)

    def _alone(self, work: Infer) -> list[Tensor] | EdgeError:
        try:
            return self._infer(work)
        except EdgeError as error:
            return error
        except (MemoryError, PassStopped) as error:
            return self._excuse(error)


def _count(work: Infer) -> int:
    return work.inputs[0].shape[0]


def _form(work: Infer) -> tuple[object, ...]:
    """What must be equal for a common pass; a request of no rows has none like it."""
    if _count(work) == 0:
        return (work.request_id,)
    tensors = sorted((tensor.name, tensor.datatype, *tensor.shape[1:]) for tensor in work.inputs)
    return (tuple(tensors), tuple(work.outputs))


def _differ(works: Sequence[Infer]) -> bool:
    """Whether two of them have other rows, in whatever order and number."""
    return len({_different_rows(work) for work in works}) > 1


def _different_rows(work: Infer) -> frozenset[bytes]:
    tensors = sorted(work.inputs, key=lambda tensor: tensor.name)
    return frozenset(b"".join(_rows(tensor, row, 1).data for tensor in tensors) for row in range(_count(work)))


def _rows(tensor: Tensor, before: int, count: int) -> Tensor:
    size = len(tensor.data) // tensor.shape[0] if tensor.shape[0] else 0
    data = tensor.data[before * size : (before + count) * size]
    return Tensor(tensor.name, tensor.datatype, [count, *tensor.shape[1:]], data)


def _alike(one: Tensor, other: Tensor) -> bool:
    if (one.datatype, one.shape) != (other.datatype, other.shape):
        return False
    kind = _FLOATS.get(one.datatype)
    if kind is None:
        return one.data == other.data
    a, b = (np.frombuffer(tensor.data, kind).astype(np.float64) for tensor in (one, other))
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return bool(np.isclose(a, b, rtol=_CLOSE, atol=_CLOSE * largest, equal_nan=True).all())
