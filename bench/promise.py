"""What the node promises, one scenario each, beside llama-server with the same file in the same run.

`python -m bench.promise arrival herd prefix neighbour --model FILE [--llama-server PATH]`. Rounds go in turns between the
servers. The largest gap of a spin loop, taken in the same run, is in the JSON: no server there can promise less.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import servers
from bench.neighbour import neighbour
from bench.servers import Server
from edge.bench.machine import describe, largest_gap_s
from edge.bench.outcome import percentile
from edge.bench.stream import payloads, read
from edge.bench.wire import Connection

_WORDS = ("valve", "pump", "fan", "alarm", "motor", "sensor", "belt", "tank", "boiler", "filter", "gate", "line")
Round = Callable[[Server, random.Random], Coroutine[Any, Any, dict[str, float]]]


@dataclass(slots=True)
class Answer:
    """One stream as its client saw it. Times in milliseconds."""

    ttft_ms: float
    gaps_ms: list[float]
    admitted: bool
    computed_tokens: int
    """Prompt tokens that the server had to compute, by its own account."""


def words(chance: random.Random, count: int) -> str:
    """Text that no other call gives."""
    return " ".join(f"{chance.choice(_WORDS)} {chance.randrange(10_000)}" for _ in range(count // 2))


async def ask(server: Server, system: str, text: str, tokens: int) -> Answer:
    """One streamed chat answer of exactly `tokens` tokens."""
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "model": server.model,
        "messages": [*messages, {"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = await Connection.open(server.url)
    try:
        sent, exchange = await connection.post("/v1/chat/completions", json.dumps(body).encode())
    finally:
        connection.close()
    reading = read(exchange.chunks)
    times = reading.content_s
    return Answer(
        ttft_ms=(times[0] - sent) * 1000,
        gaps_ms=[(b - a) * 1000 for a, b in itertools.pairwise(times)],
        admitted=exchange.headers.get("x-edge-class") == "slo",
        computed_tokens=_computed(exchange.chunks),
    )


def _computed(chunks: list[tuple[float, bytes]]) -> int:
    """Prompt tokens less cached ones, from the usage chunk (or llama-server's timings)."""
    computed = 0
    for _, payload in payloads(chunks):
        if not payload.startswith(b"{"):
            continue
        event = json.loads(payload)
        if timings := event.get("timings"):
            computed = int(timings["prompt_n"])
        elif usage := event.get("usage"):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            computed = computed or usage["prompt_tokens"] - cached
    return computed


# --- scenarios --------------------------------------------------------------------------------------------------------


async def arrival(server: Server, chance: random.Random) -> dict[str, float]:
    """Three streams run; then a prompt of 300 words arrives. Do they stall, and when is it answered?"""
    running = []
    for _ in range(3):
        running.append(asyncio.create_task(ask(server, "", words(chance, 2), 160)))
        await asyncio.sleep(0.15)
    new = await ask(server, "", words(chance, 300), 8)
    answers = [await task for task in running]
    gaps = [g for a in answers for g in a.gaps_ms]
    return {
        "inter-token p99 of the three, ms": percentile(gaps, 0.99),
        "inter-token worst of the three, ms": max(gaps),
        "admitted of the three": sum(a.admitted for a in answers),
        "TTFT of the newcomer, ms": new.ttft_ms,
        "newcomer's prompt tokens": new.computed_tokens,
    }


async def herd(server: Server, chance: random.Random) -> dict[str, float]:
    """Eight requests at once, all with one new system prompt of about a thousand tokens."""
    system = words(chance, server.words_for(1000))
    answers = await asyncio.gather(*(ask(server, system, words(chance, 2), 8) for _ in range(8)))
    computed = sum(a.computed_tokens for a in answers)
    return {
        "last TTFT, ms": max(a.ttft_ms for a in answers),
        "prompt tokens computed, of one prompt": computed / max(a.computed_tokens for a in answers),
    }


async def prefix(server: Server, chance: random.Random) -> dict[str, float]:
    """A request with no prefix beside the second and third on a shared prefix of about a thousand tokens."""
    system = words(chance, server.words_for(1000))
    await ask(server, system, words(chance, 2), 4)
    plain = [(await ask(server, "", words(chance, 2), 4)).ttft_ms for _ in range(3)]
    shared = [(await ask(server, system, words(chance, 2), 4)).ttft_ms for _ in range(3)]
    return {
        "TTFT without a prefix, ms": statistics.median(plain),
        "TTFT on a known prefix, ms": statistics.median(shared),
        "difference, ms": statistics.median(shared) - statistics.median(plain),
    }


async def steady(server: Server, chance: random.Random) -> dict[str, float]:
    """Four streams for some seconds, one after the other begun anew."""
    gaps: list[float] = []
    first: list[float] = []

    async def stream() -> None:
        for _ in range(4):
            answer = await ask(server, "", words(chance, 2), 128)
            if answer.admitted or server.name != "edge":
                gaps.extend(answer.gaps_ms)
                first.append(answer.ttft_ms)

    await asyncio.gather(*(stream() for _ in range(4)))
    if not gaps:  # beside such a neighbour nothing could be promised
        return {"streams counted": 0}
    return {
        "inter-token p50, ms": percentile(gaps, 0.5),
        "inter-token p99, ms": percentile(gaps, 0.99),
        "inter-token worst, ms": max(gaps),
        "TTFT p99, ms": percentile(first, 0.99),
        "streams counted": len(first),
    }


SCENARIOS: dict[str, Round] = {"arrival": arrival, "herd": herd, "prefix": prefix, "neighbour": steady}


def measure(name: str, running: list[Server], rounds: int, seed: int) -> dict[str, Any]:
    """All rounds of one scenario, in turns. Every figure's values, and their median and worst."""
    values: dict[str, dict[str, list[float]]] = {server.name: {} for server in running}
    gaps: list[float] = []
    for number in range(-1, rounds):
        for server in running if number % 2 == 0 else running[::-1]:
            figures = asyncio.run(SCENARIOS[name](server, random.Random(f"{seed} {name} {number} {server.name}")))
            for figure, value in figures.items() if number >= 0 else ():  # the first round builds graphs
                values[server.name].setdefault(figure, []).append(round(value, 2))
        gaps.append(round(largest_gap_s(0.5) * 1000, 2))
    return {
        "spin_loop_largest_gaps_ms": gaps,
        "servers": {
            server: {
                figure: {"median": statistics.median(v), "worst": max(v), "rounds": v} for figure, v in figures.items()
            }
            for server, figures in values.items()
        },
    }


def after_restart(model: Path, common: dict[str, Any]) -> dict[str, float]:
    """A pinned prefix: TTFT of the very first request on it, after a restart that reads its cells from disk."""
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as home, ExitStack() as first:
        keep = {"EDGE_CACHE__PINNED_FILE": "pinned.jsonl"}
        server = first.enter_context(servers.edge(model, **common, env=keep, home=Path(home), prepare=_pin))
        plain = asyncio.run(ask(server, "", words(chance, 2), 4)).ttft_ms
        first.close()
        with servers.edge(model, **common, env=keep, home=Path(home)) as again:
            asyncio.run(ask(again, "", words(chance, 2), 4))
            answer = asyncio.run(ask(again, _system(), words(chance, 2), 4))
    return {
        "TTFT without a prefix, ms": round(plain, 2),
        "TTFT of the first request on the pinned prefix, ms": round(answer.ttft_ms, 2),
        "its prompt tokens computed": answer.computed_tokens,
    }


def _system() -> str:
    return words(random.Random(99), 220)


def _pin(home: Path) -> None:
    line = {"messages": [{"role": "system", "content": _system()}]}
    (home / "pinned.jsonl").write_text(json.dumps(line) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="+", choices=sorted(SCENARIOS))
    parser.add_argument("--model", type=Path, default=Path("models/builtin/edge-builtin-q4_0.gguf"))
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0: edge measures, llama-server takes all cores")
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    common: dict[str, Any] = {"slots": a.slots, "context_tokens": a.context_tokens, "threads": a.threads}
    result: dict[str, Any] = {"machine": describe(), "model": a.model.stem, **common, "scenarios": {}}
    for name in a.scenario:
        with ExitStack() as stack:
            running = [
                stack.enter_context(servers.edge(a.model, **common, env={"EDGE_ADMISSION__MODE": "best-effort"}))
            ]
            if a.llama_server:
                running.append(stack.enter_context(servers.llama_server(a.llama_server, a.model, **common)))
            if name == "neighbour":
                stack.enter_context(neighbour())
            result["scenarios"][name] = measure(name, running, a.rounds, a.seed)
        if name == "prefix":
            result["scenarios"]["after a restart"] = after_restart(a.model, common)
        print(json.dumps({name: result["scenarios"][name]}, indent=1), flush=True)
        if a.out:
            a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
