"""How long passes take on this machine: measured at load, on the real context."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge.engine.calibrate import Threads
from edge.engine.llama.context import Context
from edge.engine.steps import StepModel, StepTable

_TABLE_BUDGET_S = 2.5
_SAMPLES = 5
_LONG_PASS_S = 0.4
_PROMPT_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DEPTH_TOKENS = 512
_PROBE_SIZES = (16, 64, 256)
_STILL_TRUE = 2.0


class StepGauge:
    """Measures a StepTable on a context whose slots are all empty, and leaves them empty."""

    def __init__(self, context: Context, threads: Threads) -> None:
        self._context = context
        self._threads = threads
        self._deadline_s = 0.0

    def measure(self) -> StepTable:
        """All of it; takes a few seconds at most where passes are not that long themselves."""
        self._deadline_s = time.monotonic() + _TABLE_BUDGET_S
        decode = self._growing(_powers(self._context.shape.slots), self._decode)
        prompt = self._growing([n for n in _PROMPT_SIZES if n <= self._context.rows_limit], self._prompt)
        decode_cell_s, prompt_cell_s, restore_byte_s = self._at_depth(decode[0][1], prompt)
        return StepTable(decode, prompt, decode_cell_s, prompt_cell_s, restore_byte_s)

    def confirms(self, table: StepTable) -> bool:
        """Whether an earlier table still holds: a few passes, and no more than twice as long or as short as it says."""
        model = StepModel(table)
        size = min(_PROBE_SIZES[0], self._context.rows_limit)
        decode_s = min(self._decode(1) for _ in range(_SAMPLES))
        prompt_s = min(self._prompt(size) for _ in range(_SAMPLES))
        ratios = (decode_s / model.decode_s(1, 0), prompt_s / model.prompt_s(size, 0))
        return all(1 / _STILL_TRUE < ratio < _STILL_TRUE for ratio in ratios)

    def _growing(self, sizes: list[int], one: Callable[[int], float]) -> list[tuple[int, float]]:
        """Medians for growing sizes, until time is up or a pass is so long that more of it would not be run in one."""
        points: list[tuple[int, float]] = []
        for size in sizes:
            taken = sorted(one(size) for _ in range(_SAMPLES if not points or points[-1][1] < 0.05 else 2))
            fastest_before = points[-1][1] if points else 0.0
            points.append((size, max(taken[len(taken) // 2], fastest_before)))
            if points[-1][1] > _LONG_PASS_S or time.monotonic() > self._deadline_s:
                break
        return points

    def _decode(self, rows: int) -> float:
        return self._pass([0] * rows, [0] * rows, list(range(rows)), [True] * rows, self._threads.decode)

    def _row(self, depth: int) -> float:
        return self._pass([0], [depth], [0], [True], self._threads.decode)

    def _prompt(self, tokens: int, start: int = 0) -> float:
        places = list(range(start, start + tokens))
        return self._pass([0] * tokens, places, [0] * tokens, [False] * (tokens - 1) + [True], self._threads.prefill)

    def _pass(
        self, tokens: list[int], positions: list[int], slots: list[int], outputs: list[bool], threads: int
    ) -> float:
        self._context.use_threads(threads)
        begun = time.monotonic()
        self._context.forward(tokens, positions, slots, outputs)
        took_s = time.monotonic() - begun
        for slot in set(slots):
            self._context.forget(slot, min(positions))
        return took_s

    def _at_depth(self, row_s: float, prompt: list[tuple[int, float]]) -> tuple[float, list[tuple[int, float]], float]:
        """What depth adds to a decode row and to a prompt row, for each cell; and the time to copy a byte."""
        context, times = self._context, dict(prompt)
        size = prompt[-1][0]
        depth, begun = 0, time.monotonic()
        most = min(_DEPTH_TOKENS, context.shape.context_tokens // 2)
        while depth < most and time.monotonic() - begun < _TABLE_BUDGET_S / 2:
            count = min(size, most - depth)
            context.forward([0] * count, list(range(depth, depth + count)), [0] * count, [False] * count)
            depth += count
        cell_s: list[tuple[int, float]] = []
        for rows in (n for n in _PROBE_SIZES if n in times):
            if deep := self._repeated(3, rows, self._prompt):
                cell_s.append((rows if cell_s else 1, max(0.0, deep[0] - times[rows]) / (rows * depth)))
        deep_rows = self._repeated(_SAMPLES, 1, lambda _, at: self._row(at)) or [row_s]
        byte_s = self._copy_byte_s()
        return max(0.0, deep_rows[len(deep_rows) // 2] - row_s) / depth, cell_s, byte_s

    def _repeated(self, times: int, rows: int, one: Callable[[int, int], float]) -> list[float]:
        """Times of the same pass behind what slot 0 holds, ascending; each goes deeper where the model's memory cannot be cut."""
        context, taken = self._context, list[float]()
        while len(taken) < times and (at := context.length(0)) + rows <= context.shape.context_tokens:
            taken.append(one(rows, at))
        return sorted(taken)

    def _copy_byte_s(self) -> float:
        """Of what slot 0 holds; it is empty afterwards."""
        context = self._context
        saved = context.save(0, context.length(0))
        context.forget(0)
        if saved is None or not saved.size_bytes:
            return 0.0
        begun = time.monotonic()
        context.restore(saved, 0)
        took_s = time.monotonic() - begun
        context.forget(0)
        context.release(saved)
        return took_s / saved.size_bytes


def _powers(most: int) -> list[int]:
    return sorted({*(1 << n for n in range(most.bit_length())), most})
