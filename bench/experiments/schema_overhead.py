"""What a JSON schema costs per token through the whole engine, beside free text. Its figures stand in docs/bench.md.

One engine child, answers of equal length in turns: free text, then the same under a schema; alone, and eight at a time. The
time is the child's own, from an answer's first token to its last. On random weights nearly every token that the model
would like is forbidden, so that this is the dear case; `bench.experiments.sampler_cost` shows the cheap one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bench.machine import describe, largest_gap_s
from edge.dialects.tools import GrammarSpec, response_grammar
from edge.engine.client import EngineClient
from edge.engine.supervised import EngineLimits
from edge.messages import Finished, Load, Sampling, Submit, TextPrompt

READINGS: dict[str, Any] = {
    "type": "array",
    "minItems": 50,
    "items": {
        "type": "object",
        "properties": {
            "device": {"type": "string", "minLength": 4, "maxLength": 24},
            "value": {"type": "number", "minimum": 0, "maximum": 100},
            "state": {"enum": ["on", "off", "fault"]},
            "checked": {"type": "boolean"},
        },
        "required": ["device", "value", "state", "checked"],
        "additionalProperties": False,
    },
}
TEXTS: dict[str, Any] = {"type": "array", "minItems": 50, "items": {"type": "string", "minLength": 400}}
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "temperature": Sampling(seed=1),
    "top_k 40, top_p": Sampling(top_k=40, top_p=0.95, seed=1),
}
_LIMITS = EngineLimits(max_waiting=64, wedge_timeout_s=60.0, load_timeout_s=300.0, restart_backoff_max_s=2.0)
_PROMPT = TextPrompt("The readings of the last shift as JSON, one object for each device:")


@dataclass(frozen=True)
class Case:
    """Answers that are measured together, with and without a schema."""

    schema: str
    sampling: str
    rows: int


async def per_token_ms(
    client: EngineClient, sampling: Sampling, rows: int, tokens: int, grammar: GrammarSpec | None
) -> float:
    """Milliseconds from one token of an answer to its next, mean over `rows` answers at a time."""

    async def one() -> float:
        work = Submit(0, _PROMPT, sampling, tokens, grammar=grammar, ignore_eos=grammar is None)
        async for event in client.submit(work):
            if isinstance(event, Finished):
                if event.completion_tokens != tokens:
                    raise RuntimeError(f"an answer ended after {event.completion_tokens} of {tokens} tokens")
                return event.timing.decode_s / (tokens - 1) * 1000
        raise RuntimeError("no end came")

    return statistics.mean(await asyncio.gather(*(one() for _ in range(rows))))


async def measure(client: EngineClient, cases: list[Case], rounds: int, tokens: int) -> list[dict[str, Any]]:
    """All cases, in turns."""
    grammars = {"objects": response_grammar(READINGS), "texts": response_grammar(TEXTS)}
    free: dict[Case, list[float]] = {case: [] for case in cases}
    held: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            sampling = SAMPLINGS[case.sampling]
            sides: list[tuple[dict[Case, list[float]], GrammarSpec | None]] = [
                (free, None),
                (held, grammars[case.schema]),
            ]
            for times, grammar in sides if number % 2 == 0 else reversed(sides):
                took = await per_token_ms(client, sampling, case.rows, tokens if number else 8, grammar)
                if number:  # the first round only warms up
                    times[case].append(took)
    return [_cell(case, free[case], held[case]) for case in cases]


def _cell(case: Case, free: list[float], held: list[float]) -> dict[str, Any]:
    ratios = [h / f for f, h in zip(free, held, strict=True)]
    extra = [h - f for f, h in zip(free, held, strict=True)]
    return {
        "schema": case.schema,
        "sampling": case.sampling,
        "rows": case.rows,
        "free_ms": round(statistics.median(free), 3),
        "schema_ms": round(statistics.median(held), 3),
        "ratio": round(statistics.median(ratios), 4),
        "extra_ms_per_step": round(statistics.median(extra), 3),
        "ratios": [round(r, 4) for r in ratios],
    }


async def run(path: Path, threads: int, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Start a child, measure, stop it."""
    load = Load(
        path=str(path), slots=8, context_tokens=512, pass_tokens=64, threads=threads,
        cores=threads, gpu_layers=0, kv_layout="streams", kv_type="f16", flash_attention="off", heartbeat_s=30.0,
        ttft_target_s=0.05, itl_target_s=0.05, promises=False, cache_bytes=0, kept_bytes=0, isolate_keys=False,
        state_directory="",
    )  # fmt: skip
    cases = [Case("objects", sampling, 1) for sampling in SAMPLINGS]
    cases += [Case("texts", "temperature", 1), Case("objects", "temperature", 8), Case("texts", "temperature", 8)]
    client = EngineClient(load, _LIMITS)
    await client.start()
    try:
        await client.wait_ready()
        return await measure(client, cases, rounds, tokens)
    finally:
        await client.stop()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, such as bench.make_gguf's 500m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    cells = asyncio.run(run(a.model, a.threads, a.rounds, a.tokens))
    gap = round(largest_gap_s(1.0) * 1000, 2)
    print(
        "| schema | sampling | rows | free, ms | schema, ms | ratio | more per step, ms |\n|---|---|--:|--:|--:|--:|--:|"
    )
    for c in cells:
        figures = f"{c['free_ms']:.2f} | {c['schema_ms']:.2f} | {c['ratio']:.3f} | {c['extra_ms_per_step']:.2f}"
        print(f"| {c['schema']} | {c['sampling']} | {c['rows']} | {figures} |")
    if a.out:
        head = {"machine": describe(), "model": a.model.stem, "threads": a.threads, "tokens": a.tokens}
        a.out.write_text(json.dumps({**head, "spin_loop_largest_gap_ms": gap, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
