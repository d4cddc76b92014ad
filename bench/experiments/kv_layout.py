"""Experiment (a): how KV cells should be laid out. Its figures stand in docs/adr/0001-kv-layout.md.

Compares one shared area (unified) with one area per slot (streams), with and without flash attention, at several depths and
numbers of decoding rows; a step that mixes decode rows with a prompt chunk in one pass or in two; and what it costs to give
a slot the cells of another. Rounds are interleaved, so that drift of a shared machine hits all alike.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as ll

from edge.bench.machine import describe
from edge.engine.llama.context import Context, ContextShape
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model

SLOTS = 8
CHUNK = 64
LAYOUTS = {
    "unified, flash": (True, "on"),
    "unified, plain": (True, "off"),
    "streams, flash": (False, "on"),
    "streams, plain": (False, "off"),
}


@dataclass(frozen=True)
class Cell:
    """One cell of the table, times in milliseconds."""

    layout: str
    what: str
    depth: int
    rows: int
    median_ms: float
    p90_ms: float


class Bed:
    """A context whose slots are filled to a depth."""

    def __init__(self, library: Library, model: Model, layout: str, threads: int, context_tokens: int) -> None:
        unified, flash = LAYOUTS[layout]
        shape = ContextShape(SLOTS, context_tokens, 512, threads, unified, "f16", flash)  # type: ignore[arg-type]
        self.context = Context(library, model, shape)

    def fill(self, depth: int) -> None:
        """Give every slot `depth` tokens of its own: computed once, restored from a blob elsewhere."""
        context = self.context
        for slot in range(SLOTS):
            context.forget(slot)
        for start in range(0, depth, 512):
            count = min(512, depth - start)
            context.forward([300] * count, range(start, start + count), [0] * count, [False] * count)
        size = ll.llama_state_seq_get_size(context.handle, 0)
        blob = (ctypes.c_uint8 * size)()
        ll.llama_state_seq_get_data(context.handle, blob, size, 0)
        for slot in range(1, SLOTS):
            ll.llama_state_seq_set_data(context.handle, blob, size, slot)

    def decode(self, rows: int, depth: int) -> None:
        """One decode step of `rows` slots, undone afterwards."""
        slots = list(range(rows))
        self.context.forward([301] * rows, [depth] * rows, slots, [True] * rows)
        for slot in slots:
            self.context.forget(slot, depth)

    def mixed(self, rows: int, depth: int, passes: int) -> None:
        """Decode rows and a prompt chunk of another slot, in one pass or two."""
        slots, new = list(range(rows)), SLOTS - 1
        places = list(range(depth, depth + CHUNK))
        wanted = [False] * (CHUNK - 1) + [True]
        forward = self.context.forward
        if passes == 1:
            tokens, positions = [301] * rows + [302] * CHUNK, [depth] * rows + places
            forward(tokens, positions, slots + [new] * CHUNK, [True] * rows + wanted)
        else:
            forward([301] * rows, [depth] * rows, slots, [True] * rows)
            forward([302] * CHUNK, places, [new] * CHUNK, wanted)
        for slot in [*slots, new]:
            self.context.forget(slot, depth)

    def share(self) -> None:
        """Give every slot the cells of slot 0: shared where the layout can, copied elsewhere."""
        for slot in range(1, SLOTS):
            self.context.copy(0, slot)

    def copy(self, depth: int) -> None:
        """Give slot 1 the cells of slot 0, and make use of them."""
        self.context.copy(0, 1)
        self.context.forward([301], [depth], [1], [True])
        self.context.forget(1, depth)

    def blob(self) -> None:
        """Save slot 0 to host memory and restore it into slot 1."""
        handle = self.context.handle
        size = ll.llama_state_seq_get_size(handle, 0)
        data = (ctypes.c_uint8 * size)()
        ll.llama_state_seq_get_data(handle, data, size, 0)
        self.context.forget(1)
        ll.llama_state_seq_set_data(handle, data, size, 1)


def measure(
    beds: dict[str, Bed], what: str, depth: int, rows: int, work: Callable[[Bed], None], repeats: int
) -> list[Cell]:
    """Times of `work` on each bed, round by round."""
    times: dict[str, list[float]] = {name: [] for name in beds}
    for round_number in range(repeats + 2):
        for name, bed in beds.items():
            begun = time.perf_counter()
            work(bed)
            if round_number >= 2:
                times[name].append((time.perf_counter() - begun) * 1000)
    cells = []
    for name, values in times.items():
        p90 = sorted(values)[len(values) * 9 // 10]
        cells.append(Cell(name, what, depth, rows, round(statistics.median(values), 3), round(p90, 3)))
        print(
            f"{what:22} depth {depth:5} rows {rows} {name:16} {cells[-1].median_ms:8.2f} ms (p90 {p90:.2f})", flush=True
        )
    return cells


def run(path: Path, depths: list[int], threads: int, repeats: int) -> list[Cell]:
    """All cells for one model."""
    library = Library()
    model = Model(library, path, gpu_layers=0)
    context_tokens = max(depths) + 2 * CHUNK
    beds = {name: Bed(library, model, name, threads, context_tokens) for name in LAYOUTS}
    cells: list[Cell] = []
    for depth in depths:
        for bed in beds.values():
            bed.fill(depth)
        for rows in (1, 4, 8):
            cells += measure(beds, "decode", depth, rows, lambda b, r=rows, d=depth: b.decode(r, d), repeats)  # type: ignore[misc]
        for bed in beds.values():
            bed.share()
        cells += measure(beds, "decode, shared prefix", depth, 8, lambda b, d=depth: b.decode(8, d), repeats)  # type: ignore[misc]
        for bed in beds.values():
            bed.fill(depth)
        for passes in (1, 2):
            name = f"4 rows + chunk, {passes} pass{'es' if passes == 2 else ''}"
            cells += measure(beds, name, depth, 4, lambda b, p=passes, d=depth: b.mixed(4, d, p), max(5, repeats // 2))  # type: ignore[misc]
        cells += measure(beds, "copy a slot, 1 row", depth, 1, lambda b, d=depth: b.copy(d), max(5, repeats // 2))  # type: ignore[misc]
        cells += measure(beds, "blob out and in", depth, 1, lambda b: b.blob(), max(5, repeats // 2))
    return cells


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+", help="GGUF files, such as those of bench.make_gguf")
    parser.add_argument("--depths", type=int, nargs="+", default=[200, 600])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "threads": a.threads, "models": {}}
    for path in a.model:
        print(f"== {path.stem}", flush=True)
        result["models"][path.stem] = [asdict(c) for c in run(path, a.depths, a.threads, a.repeats)]
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
