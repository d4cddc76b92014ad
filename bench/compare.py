"""edge beside llama-server: the same file, slots, context and threads, in turns within one run.

`make bench ARGS="--llama-server PATH --model FILE"`. How to build llama-server from the same sources: docs/bench.md.
Without --llama-server only edge is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import servers
from bench.load import SENTENCE, Trace, throughput, together
from edge.bench.machine import describe, largest_gap_s
from edge.bench.outcome import percentile

PROMPT = SENTENCE * 2


@dataclass
class Figures:
    """Raw figures of one server, a value per round (gaps: all)."""

    single_tokens_per_s: list[float] = field(default_factory=list)
    eight_tokens_per_s: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    front_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    pss_mib: float = 0.0


async def one_round(server: servers.Server, figures: Figures, tokens: int, streams: int) -> None:
    """One stream alone, then several together."""
    (alone,) = await together(server, [PROMPT], tokens)
    figures.single_tokens_per_s.append(alone.decode_tokens_per_s)
    figures.ttft_ms.append(alone.ttft_s * 1000)
    if alone.engine_s is not None:
        figures.front_ms.append((alone.ttft_s - alone.engine_s) * 1000)
    many: list[Trace] = await together(server, [f"{n}: {PROMPT}" for n in range(streams)], tokens)
    figures.eight_tokens_per_s.append(throughput(many))
    figures.gaps_ms += [g * 1000 for t in many for g in t.gaps_s]


def summary(figures: Figures) -> dict[str, float]:
    """Medians, and tails of the gaps."""
    out = {
        "single stream, tokens/s": statistics.median(figures.single_tokens_per_s),
        "all streams, tokens/s": statistics.median(figures.eight_tokens_per_s),
        "TTFT of one stream, ms": statistics.median(figures.ttft_ms),
        "inter-token p50, ms": percentile(figures.gaps_ms, 0.5),
        "inter-token p99, ms": percentile(figures.gaps_ms, 0.99),
        "peak PSS, MiB": figures.pss_mib,
    }
    if figures.front_ms:
        out["front's share of TTFT p50, ms"] = statistics.median(figures.front_ms)
    return {k: round(v, 2) for k, v in out.items()}


def ratios(ours: Figures, theirs: Figures) -> dict[str, float]:
    """Medians of the round-by-round ratios edge / llama-server."""

    def median_ratio(a: list[float], b: list[float]) -> float:
        return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)

    return {
        "single stream": median_ratio(ours.single_tokens_per_s, theirs.single_tokens_per_s),
        "all streams": median_ratio(ours.eight_tokens_per_s, theirs.eight_tokens_per_s),
        "TTFT": median_ratio(ours.ttft_ms, theirs.ttft_ms),
    }


def run(a: argparse.Namespace) -> dict[str, Any]:
    """Start the servers, measure in turns, and return everything that the JSON holds."""
    common = {"slots": a.streams, "context_tokens": a.context_tokens, "threads": a.threads}
    with ExitStack() as stack:
        running = [stack.enter_context(servers.edge(a.model, **common))]
        if a.llama_server:
            running.append(stack.enter_context(servers.llama_server(a.llama_server, a.model, **common)))
        figures = {s.name: Figures() for s in running}
        for server in running:  # not counted: first passes build graphs and caches
            asyncio.run(one_round(server, Figures(), 16, a.streams))
        for number in range(a.rounds):
            for server in running if number % 2 == 0 else running[::-1]:
                asyncio.run(one_round(server, figures[server.name], a.tokens, a.streams))
                figures[server.name].pss_mib = max(figures[server.name].pss_mib, server.pss_bytes() / 2**20)
            print(f"round {number + 1} of {a.rounds}", flush=True)
        gap = largest_gap_s(2.0)
    result: dict[str, Any] = {
        "machine": describe(),
        "model": a.model.stem,
        "rounds": a.rounds,
        "tokens": a.tokens,
        "streams": a.streams,
        "threads": a.threads,
        "spin_loop_largest_gap_ms": round(gap * 1000, 2),
        "servers": {name: summary(f) for name, f in figures.items()},
    }
    if a.llama_server:
        result["ratios, edge to llama-server"] = ratios(figures["edge"], figures["llama-server"])
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/builtin/edge-builtin-q4_0.gguf"))
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    result = run(a)
    text = json.dumps(result, indent=1)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
