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

CHUNKS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 192, 256, 384, 512)
"""Sizes of prompt passes that do not end a prompt: few, since libllama builds a new graph for each, and multiples of 64 where
there is time, since its attention works on 64 rows at once."""
TILE_ROWS = 64
"""Fewer prompt rows than this go through libllama's attention one by one (GGML_FA_TILE_Q)."""
SAFE_QUANTILE = 0.98
STRAINED_RATIO = 1.5
_REMEMBERED = 128
_FEW = 8
_SAVING = 5
"""How many times longer it takes to save cells than to restore them: the copy's memory is new, and has to be mapped first."""
_WRITE_WEIGHT = 0.05
_ODD_WRITE_S = 0.001
"""A row that takes so much longer to write than rows do was interrupted."""
_LEAST_RATIO, _LARGEST_RATIO = 0.2, 8.0
_WRONG_TABLE = 0.75
"""A table whose times are this much too long was measured while others had the processor."""

Kind = Literal["decode", "prompt"]


class StepTable(msgspec.Struct, frozen=True):
    """Times as measured, in seconds. Row counts ascend; `decode` and `prompt` map rows to the time on empty slots."""

    decode: list[tuple[int, float]]
    prompt: list[tuple[int, float]]
    decode_cell_s: float
    """More time for each cell that a decode row attends to."""
    prompt_cell_s: list[tuple[int, float]]
    """More time for each (prompt row, cell before the pass) pair, by the least rows of a pass for which it holds: kernels
    that take many rows at a time cost a third of those that take one."""
    restore_byte_s: float
    """Time to copy a byte of a saved prefix into a slot."""


class StepModel:
    """Predicts passes. One owner, the engine's loop, tells it what each pass really took."""

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self._scale: dict[Kind, float] = {"decode": 1.0, "prompt": 1.0}
        self._ratios: dict[tuple[Kind, int], _Ratios] = {}
        self._write_s = 0.0
        """To draw one row's token and make text of it, lately on the mean: log-probabilities and grammars take several times as
        long as plain answers."""
        self._proofs: dict[Kind, deque[float]] = {"decode": deque(maxlen=_FEW), "prompt": deque(maxlen=_FEW)}

    def decode_s(self, rows: int, cells: int, *, safe: bool = True) -> float:
        """Time of a decode pass of `rows` streams that hold `cells` cells together, and to write their tokens."""
        return self._decode(rows, cells) * self._factor("decode", rows, safe) + rows * self._write_s

    def prompt_s(self, tokens: int, start: int, *, safe: bool = True) -> float:
        """Time of one prompt pass over `tokens` rows behind `start` computed ones."""
        return self._prompt(tokens, start) * self._factor("prompt", tokens, safe)

    def whole_prompt_s(self, tokens: int, start: int, chunk: int, *, safe: bool = True) -> float:
        """Time of all passes over `tokens` prompt rows in passes of at most `chunk`. Safe: the dearest of them is a slow
        one. That each of them is would be far too much."""
        whole, rest = divmod(tokens, chunk)
        middle = start + (whole - 1) * chunk // 2  # depth costs in proportion: the mean pass is the middle one
        total = whole * self.prompt_s(chunk, middle, safe=False) if whole else 0.0
        total += self.prompt_s(rest, start + whole * chunk, safe=False) if rest else 0.0
        if safe and tokens:
            size, at = (chunk, start + (whole - 1) * chunk) if whole else (rest, start)
            total += self.prompt_s(size, at) - self.prompt_s(size, at, safe=False)
        return total

    def restore_s(self, size_bytes: int) -> float:
        """Time to copy a saved prefix of `size_bytes` into a slot."""
        return size_bytes * self.table.restore_byte_s

    def save_s(self, size_bytes: int) -> float:
        """Time to make a copy of a slot's cells."""
        return _SAVING * self.restore_s(size_bytes)

    def largest_chunk(self, budget_s: float, start: int, wanted: int, most: int) -> int:
        """The most prompt rows, at most `wanted` and `most`, whose pass takes no longer than `budget_s`; 0 if none. The last
        pass of a prompt is the deepest, so it is left with a tile's rows where it can be."""
        if wanted <= most and self.prompt_s(wanted, start) <= budget_s:
            return wanted
        for size in reversed(CHUNKS):
            if size < wanted and size <= most and self.prompt_s(size, start) <= budget_s:
                less = size - (TILE_ROWS - (wanted - size))
                leaves = size >= 2 * TILE_ROWS and less < size and self.prompt_s(less, start) <= budget_s
                return less if leaves else size
        return 0

    def best_start(self, tokens: int, known: int) -> int:
        """Where to begin with a prompt of which `known` tokens have cells: to compute a few of them again can be faster than
        to compute less than a tile."""
        start = tokens - TILE_ROWS
        if not 0 <= start < known:
            return known
        again_s = self.prompt_s(TILE_ROWS, start, safe=False)
        return start if again_s < self.prompt_s(tokens - known, known, safe=False) else known

    def raw_s(self, kind: Kind, rows: int, cells: int) -> float:
        """What the table says for a pass, without the correction by what passes lately took."""
        return (self._decode(rows, cells) if kind == "decode" else self._prompt(rows, cells)) * self._scale[kind]

    def observe(self, kind: Kind, rows: int, cells: int, took_s: float) -> None:
        """A pass took this long. `cells`: what the decode rows attend to together, or what lies before the prompt rows."""
        ratio = took_s / self.raw_s(kind, rows, cells)
        self._ratios.setdefault((kind, rows.bit_length()), _Ratios()).add(ratio)

    def wrote(self, rows: int, took_s: float) -> None:
        """The tokens of so many rows were written in this time."""
        row_s = min(took_s / rows, self._write_s + _ODD_WRITE_S)
        self._write_s += _WRITE_WEIGHT * (row_s - self._write_s)

    def clocks_changed(self) -> None:
        """The machine runs at another speed from now on: what passes took before counts until as many new ones are known, and no
        longer than _FEW passes. Sizes of pass that are rare would else be judged by the old speed for hours."""
        for ratios in self._ratios.values():
            ratios.age()

    def proved(self, kind: Kind, ratio: float) -> None:
        """A pass of an idle engine took `ratio` times what the table says. If all do, the table is put right."""
        proofs = self._proofs[kind]
        proofs.append(ratio)
        if len(proofs) == _FEW and max(proofs) < _WRONG_TABLE:
            self.rescale(kind, max(proofs))
            proofs.clear()

    def doubt(self, ratio: float) -> None:
        """What passes took before keeps an idle engine from admitting anybody, so that nothing is learned any more; at present
        they take `ratio` times what the table says. Slower times are forgotten, some at each call."""
        for ratios in self._ratios.values():
            ratios.fade(max(ratio, 1.0))

    def strained(self, kind: Kind, rows: int) -> bool:
        """Whether passes of this size take much longer than the table says."""
        ratios = self._ratios.get((kind, rows.bit_length()))
        return ratios is not None and ratios.typical > STRAINED_RATIO

    def rescale(self, kind: Kind, ratio: float) -> None:
        """Passes of a kind take `ratio` times as long from now on: they are run in another way."""
        self._scale[kind] *= ratio
        for key in [key for key in self._ratios if key[0] == kind]:
            del self._ratios[key]

    def corrected(self) -> StepTable:
        """The table as it turned out while running, for the next start."""

        def prompt(rows: int) -> float:
            return self._factor("prompt", rows, False)

        return StepTable(
            [(n, s * self._factor("decode", n, False)) for n, s in self.table.decode],
            [(n, s * prompt(n)) for n, s in self.table.prompt],
            self.table.decode_cell_s * self._factor("decode", 1, False),
            [(n, s * prompt(n)) for n, s in self.table.prompt_cell_s],
            self.table.restore_byte_s,
        )

    def _decode(self, rows: int, cells: int) -> float:
        return _between(self.table.decode, rows) + self.table.decode_cell_s * cells

    def _prompt(self, tokens: int, start: int) -> float:
        cell_s = next((s for least, s in reversed(self.table.prompt_cell_s) if tokens >= least), 0.0)
        return _between(self.table.prompt, tokens) + cell_s * tokens * start

    def _factor(self, kind: Kind, rows: int, safe: bool) -> float:
        ratios = self._ratios.get((kind, rows.bit_length()))
        if ratios is None:
            return self._scale[kind]
        return self._scale[kind] * (ratios.safe if safe else ratios.typical)


class _Ratios:
    """The last ratios of one bucket, kept sorted."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self.safe = self.typical = 1.0
        self._aged = 0
        """How many of the oldest are replaced one by one, since they are of another time."""

    def age(self) -> None:
        while len(self._recent) > _FEW:
            self._drop_oldest()
        self._aged = len(self._recent)

    def fade(self, ratio: float) -> None:
        for _ in range(min(_FEW // 2, len(self._recent)) if ratio < self.safe else 0):
            if not self._aged:
                self._drop_oldest()
            self.add(ratio)

    def _drop_oldest(self) -> None:
        del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def add(self, ratio: float) -> None:
        ratio = min(max(ratio, _LEAST_RATIO), _LARGEST_RATIO)
        if self._aged:
            self._drop_oldest()
            self._aged -= 1
        elif len(self._recent) == _REMEMBERED:
            self._drop_oldest()
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
