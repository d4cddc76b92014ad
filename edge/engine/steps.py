"""How long a forward pass takes on this machine: measured at load, corrected while running. Pure: no clock, no model.

Two kinds of pass: a decode pass (one row for each stream) and a prompt pass (rows of one prompt). Both grow with the rows,
and with the cells that the rows attend to. What the tables miss (heat, clocks, neighbours) shows as the ratio of actual to
predicted time; predictions that a promise rests on are multiplied by a high quantile of the last ratios.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Literal

import msgspec

CHUNKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes of prompt passes that do not end a prompt: few, since libllama builds a new graph for each."""
SAFE_QUANTILE = 0.95
_REMEMBERED = 128
_FEW = 8
_LEAST_RATIO, _LARGEST_RATIO = 0.5, 8.0

Kind = Literal["decode", "prompt"]


class StepTable(msgspec.Struct, frozen=True):
    """Times as measured, in seconds. Row counts ascend; `decode` and `prompt` map rows to the time on empty slots."""

    decode: list[tuple[int, float]]
    prompt: list[tuple[int, float]]
    decode_cell_s: float
    """More time for each cell that a decode row attends to."""
    prompt_cell_s: float
    """More time for each (prompt row, cell before the chunk) pair."""
    restore_byte_s: float
    """Time to copy a byte of a saved prefix into a slot."""


class StepModel:
    """Predicts passes. One owner, the engine's loop, tells it what each pass really took."""

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self._ratios: dict[tuple[Kind, int], _Ratios] = {}

    def decode_s(self, rows: int, cells: int, *, safe: bool = True) -> float:
        """Time of a decode pass of `rows` streams that hold `cells` cells together."""
        return self._decode(rows, cells) * self._factor("decode", rows, safe)

    def prompt_s(self, tokens: int, start: int, *, safe: bool = True) -> float:
        """Time of one prompt pass over `tokens` rows behind `start` computed ones."""
        return self._prompt(tokens, start) * self._factor("prompt", tokens, safe)

    def whole_prompt_s(self, tokens: int, start: int, chunk: int, *, safe: bool = True) -> float:
        """Time of all passes over `tokens` prompt rows in passes of at most `chunk`."""
        whole, rest = divmod(tokens, chunk)
        total = whole * self.prompt_s(chunk, start + (whole * chunk) // 2, safe=safe) if whole else 0.0
        return total + (self.prompt_s(rest, start + whole * chunk, safe=safe) if rest else 0.0)

    def restore_s(self, size_bytes: int) -> float:
        """Time to copy a saved prefix of `size_bytes` into a slot."""
        return size_bytes * self.table.restore_byte_s

    def largest_chunk(self, budget_s: float, start: int, wanted: int, most: int) -> int:
        """The most prompt rows, at most `wanted` and `most`, whose pass takes no longer than `budget_s`; 0 if none."""
        if wanted <= most and self.prompt_s(wanted, start) <= budget_s:
            return wanted
        for size in reversed(CHUNKS):
            if size < wanted and size <= most and self.prompt_s(size, start) <= budget_s:
                return size
        return 0

    def observe_decode(self, rows: int, cells: int, took_s: float) -> None:
        """A decode pass took this long."""
        self._observe("decode", rows, took_s / self._decode(rows, cells))

    def observe_prompt(self, tokens: int, start: int, took_s: float) -> None:
        """A prompt pass took this long."""
        self._observe("prompt", tokens, took_s / self._prompt(tokens, start))

    def corrected(self) -> StepTable:
        """The table as it turned out while running, for the next start."""
        return StepTable(
            [(n, s * self._factor("decode", n, False)) for n, s in self.table.decode],
            [(n, s * self._factor("prompt", n, False)) for n, s in self.table.prompt],
            self.table.decode_cell_s,
            self.table.prompt_cell_s,
            self.table.restore_byte_s,
        )

    def _decode(self, rows: int, cells: int) -> float:
        return _between(self.table.decode, rows) + self.table.decode_cell_s * cells

    def _prompt(self, tokens: int, start: int) -> float:
        return _between(self.table.prompt, tokens) + self.table.prompt_cell_s * tokens * start

    def _observe(self, kind: Kind, rows: int, ratio: float) -> None:
        self._ratios.setdefault((kind, rows.bit_length()), _Ratios()).add(ratio)

    def _factor(self, kind: Kind, rows: int, safe: bool) -> float:
        ratios = self._ratios.get((kind, rows.bit_length()))
        if ratios is None:
            return 1.0
        return ratios.safe if safe else ratios.typical


class _Ratios:
    """The last ratios of one bucket, kept sorted."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self.safe = self.typical = 1.0

    def add(self, ratio: float) -> None:
        ratio = min(max(ratio, _LEAST_RATIO), _LARGEST_RATIO)
        if len(self._recent) == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(ratio)
        insort(self._sorted, ratio)
        if len(self._recent) >= _FEW:  # before that the table is the better witness
            self.safe = self._sorted[int((len(self._sorted) - 1) * SAFE_QUANTILE)]
            self.typical = self._sorted[len(self._sorted) // 2]


def _between(points: list[tuple[int, float]], rows: int) -> float:
    """Linear between measured points, and beyond the last in proportion to it."""
    before = points[0]
    if rows <= before[0]:
        return before[1]
    for point in points[1:]:
        if rows <= point[0]:
            share = (rows - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1] * rows / before[0]
