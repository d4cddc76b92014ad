"""The importance of each input column of each weight matrix: how large what is multiplied with it is, in the mean square.

A quantizer that knows it spends its rounding errors where they meet small inputs. What is measured is what llama.cpp's imatrix
tool measures; the graph's own evaluation callback shows the inputs of every product with a weight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.engine.llama.tensor import Node, operations
from edge.errors import EngineFault

Columns = npt.NDArray[np.float32]

_LEAST_ROWS = 16
"""Products with fewer rows are ignored, as the last few tokens of a text: they would cost a callback and say nothing."""


class _Sums:
    """Of one weight: float64[experts, columns] of squares, and how many rows went into each expert."""

    __slots__ = ("rows", "squares")

    def __init__(self, experts: int, columns: int) -> None:
        self.squares = np.zeros((experts, columns))
        self.rows = np.zeros(experts, np.int64)


class ImportanceMeter:
    """Collects while a context runs with `observe` as its callback. Raises nothing inside: libllama must not see exceptions;
    the first one is kept in `failure` and stops the pass."""

    def __init__(self) -> None:
        self._product, self._chosen = operations()
        self._sums: dict[str, _Sums] = {}
        self.failure: Exception | None = None

    def observe(self, address: int, ask: bool) -> bool:
        """libllama's evaluation callback: `ask` whether this node is wanted, later its values."""
        try:
            node = Node(address)
            if ask:
                return self._wanted(node)
            self._take(node)
            return True
        except Exception as error:  # crossing C frames would print it and go on
            self.failure = self.failure or error
            return False

    def _wanted(self, node: Node) -> bool:
        if node.op not in (self._product, self._chosen):
            return False
        weight, given = node.source(0), node.source(1)
        if weight is None or given is None or not given.is_float or not weight.name.startswith("blk."):
            return False  # a product of two activations; or the output matrix, which keeps more bits anyway
        return node.op == self._chosen or given.shape[1] >= _LEAST_ROWS

    def _take(self, node: Node) -> None:
        weight, given = node.source(0), node.source(1)
        assert weight is not None and given is not None
        columns, _, experts, _ = weight.shape
        sums = self._sums.get(weight.name)
        if sums is None:
            sums = self._sums[weight.name] = _Sums(experts, columns)
        elif sums.squares.shape != (experts, columns):
            raise EngineFault(f"tensor {weight.name} is used in two shapes; use --imatrix off")
        squares = np.square(given.floats(), dtype=np.float64)
        if node.op == self._chosen:
            ids = node.source(2)
            assert ids is not None
            add_chosen(sums.squares, sums.rows, squares[0], ids.indices()[0, 0])
        else:
            add_plain(sums.squares, sums.rows, squares)

    def columns(self) -> dict[str, Columns]:
        """Mean squares by tensor name, float32[experts * columns]. Raises EngineFault if a value is not finite: then the source
        itself computes nonsense."""
        found = {name: means(sums.squares, sums.rows) for name, sums in self._sums.items()}
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise EngineFault(f"the source computes values that are no numbers (before {name}); check the file")
        return found


def add_plain(total: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], squares: npt.NDArray[np.float64]) -> None:
    """Add squares[_, mats, rows, columns]; where there are more mats than the weight has, they take turns."""
    parts = len(total)
    _, mats, height, columns = squares.shape
    summed = squares.sum(axis=2).reshape(-1, columns)
    for number, row in enumerate(summed):
        total[number % mats % parts] += row
        rows[number % mats % parts] += height


def add_chosen(
    total: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    squares: npt.NDArray[np.float64],
    ids: npt.NDArray[np.int32],
) -> None:
    """Add squares[tokens, given, columns] to the experts that ids[tokens, used] name; `given` is 1 where all experts of a token
    get the same input, else `used`."""
    given, experts = squares.shape[1], np.arange(len(rows))
    for place in range(ids.shape[1]):
        taken = (ids[:, place] == experts[:, None]).astype(np.float64)
        total += taken @ squares[:, place % given]
        rows += taken.sum(axis=1).astype(np.int64)


def means(squares: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> Columns:
    """Mean of the squares. An expert that no token chose counts all its columns alike: nothing is known of them."""
    mean = np.where(rows[:, None] > 0, squares / np.maximum(rows, 1)[:, None], 1.0)
    return np.ascontiguousarray(mean, np.float32).reshape(-1)
