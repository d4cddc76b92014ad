"""Decode throughput while all streams run, edge beside llama-server; and one stream beside llama-bench.

`python -m bench.decode --llama-server PATH --llama-bench PATH --model FILE`. Prompts are not counted (`bench.compare` counts
them): the clock runs from the last stream's first token to the first stream's last. Rounds go in turns; each ratio is of two
neighbouring runs. One stream is compared with llama-bench at the depth that the stream's tokens have on average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import servers
from bench.load import SENTENCE, saturated_tokens_per_s, together
from bench.servers import Server
from edge.bench.machine import describe, largest_gap_s

CONTEXT_TOKENS = 512


def one(server: Server, streams: int, tokens: int) -> float:
    """Tokens per second of one run."""
    return saturated_tokens_per_s(asyncio.run(together(server, [f"{n}: {SENTENCE}" for n in range(streams)], tokens)))


def prompt_tokens(server: Server) -> int:
    """How long the prompts are."""
    return round(len(SENTENCE.split()) / server.words_per_token)


def llama_bench(binary: Path, model: Path, threads: int, tokens: int, depth: int) -> float:
    """Tokens per second by llama-bench, which has no server around it."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-p", "0", "-n", str(tokens), "-d", str(depth)]
    done = subprocess.run([*command, "-r", "1", "-ngl", "0", "-o", "json"], capture_output=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def compare(a: argparse.Namespace, streams: int) -> dict[str, Any]:
    """All rounds with so many streams."""
    common = {"slots": streams, "context_tokens": CONTEXT_TOKENS, "threads": a.threads}
    values: dict[str, list[float]] = {"edge": [], "llama-server": []}
    beside: list[float] = []
    with ExitStack() as stack:
        running = [
            stack.enter_context(servers.edge(a.model, **common)),
            stack.enter_context(servers.llama_server(a.llama_server, a.model, **common)),
        ]
        for server in running:  # not counted: first passes build graphs
            one(server, streams, 32)
        depth = prompt_tokens(running[0]) + a.tokens // 2
        for number in range(a.rounds):
            for server in running if number % 2 == 0 else running[::-1]:
                values[server.name].append(one(server, streams, a.tokens))
            if streams == 1 and a.llama_bench:
                beside.append(llama_bench(a.llama_bench, a.model, a.threads, a.tokens, depth))
        gap_ms = largest_gap_s(1.0) * 1000
    result: dict[str, Any] = {
        "tokens_per_s": {name: _figures(v) for name, v in values.items()},
        "edge to llama-server": _ratio(values["edge"], values["llama-server"]),
        "spin_loop_largest_gap_ms": round(gap_ms, 2),
    }
    if beside:
        result["tokens_per_s"]["llama-bench"] = _figures(beside)
        result["edge to llama-bench"] = _ratio(values["edge"], beside)
        result["llama-server to llama-bench"] = _ratio(values["llama-server"], beside)
        result["depth"] = depth
    return result


def _figures(values: list[float], digits: int = 1) -> dict[str, Any]:
    return {"median": round(statistics.median(values), digits), "rounds": [round(v, digits) for v in values]}


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    return _figures([x / y for x, y in zip(ours, theirs, strict=True)], 3)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/builtin/edge-builtin-q4_0.gguf"))
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "model": a.model.stem, "rounds": a.rounds, "threads": a.threads}
    for streams in map(int, a.streams.split(",")):
        result[f"{streams} streams"] = compare(a, streams)
        print(json.dumps({streams: result[f"{streams} streams"]}, indent=1), flush=True)
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
