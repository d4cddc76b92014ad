"""Experiment (b): the whole node on two cores. Its figures stand in docs/adr/0002-threads-on-small-boxes.md.

Eight streams of server-sent events from a real node, with one and two engine threads and several ways in which OpenMP's
threads wait for each other, on a quiet machine and beside a neighbour that burns one core. Judged by the clients' p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import servers
from bench.load import SENTENCE, throughput, together
from bench.neighbour import neighbour
from edge.bench.machine import describe, largest_gap_s
from edge.bench.outcome import percentile

WAITING = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # what libgomp does if nobody says otherwise
    "spin 0": {"GOMP_SPINCOUNT": "0"},
    "spin 5000": {"GOMP_SPINCOUNT": "5000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


@dataclass(frozen=True)
class Cell:
    """One way to run, its clients' gaps in milliseconds and all streams' tokens per second."""

    model: str
    threads: int
    waiting: str
    neighbour: bool
    p50_ms: float
    p99_ms: float
    worst_ms: float
    tokens_per_s: float


def measure(model: Path, threads: int, waiting: str, *, beside: bool, streams: int, tokens: int, rounds: int) -> Cell:
    """Start a node, load it, read the clients' gaps; `beside` a neighbour or alone."""
    gaps: list[float] = []
    speeds: list[float] = []
    with servers.edge(model, slots=streams, context_tokens=1024, threads=threads, env=WAITING[waiting]) as server:
        prompts = [f"{n}: {SENTENCE}" for n in range(streams)]
        asyncio.run(together(server, prompts, 16))
        with neighbour() if beside else nullcontext():
            for _ in range(rounds):
                traces = asyncio.run(together(server, prompts, tokens))
                gaps += [g * 1000 for t in traces for g in t.gaps_s]
                speeds.append(throughput(traces))
    figures = [percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps), percentile(speeds, 0.5)]
    return Cell(model.stem, threads, waiting, beside, *(round(f, 2) for f in figures))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    cells: list[dict[str, Any]] = []
    begun = time.monotonic()
    for model in a.model:
        for beside in (False, True):
            for threads, waiting in [(1, "default"), *((2, w) for w in WAITING)]:
                load = {"streams": a.streams, "tokens": a.tokens, "rounds": a.rounds}
                cell = measure(model, threads, waiting, beside=beside, **load)
                cells.append(asdict(cell))
                print(cell, flush=True)
    gap = round(largest_gap_s(3.0) * 1000, 2)
    print(f"spin loop's own largest gap {gap} ms; {time.monotonic() - begun:.0f} s in all")
    if a.out:
        a.out.write_text(
            json.dumps({"machine": describe(), "spin_loop_largest_gap_ms": gap, "cells": cells}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
