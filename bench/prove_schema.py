"""Proof that JSON-schema output is what was asked for: `make prove-schema`.

Real engine children answer under every schema of `bench.schema_cases`, on models of random weights (whatever they say, they
say it for no reason) and on the built-in one, until a thousand answers have ended by themselves. Each of these must be an
instance, judged by another implementation; and a schema that cannot be held to must be refused. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.make_gguf import SHAPES, write_model
from bench.schema_cases import HELD, REFUSED, Schema
from bench.schema_check import fault
from edge.dialects.tools import response_grammar
from edge.engine.client import EngineClient
from edge.engine.supervised import EngineLimits
from edge.errors import UnsupportedSchema
from edge.messages import ChatPrompt, Load, Sampling, Submit, TextPrompt, Token

BUILTIN = Path(__file__).resolve().parents[1] / "models/builtin/edge-builtin-q4_0.gguf"
_LIMITS = EngineLimits(max_waiting=4096, wedge_timeout_s=60.0, load_timeout_s=120.0, restart_backoff_max_s=2.0)
_ANSWERS = 4
_MOST_TOKENS = 200
_BAD_REQUEST = 400


@dataclass(frozen=True)
class Subject:
    """A model, and how to make its answers both varied and likely to end: random logits are far apart."""

    name: str
    path: Path
    temperature: float
    bias: float


@dataclass
class Tally:
    """What came of it."""

    valid: Counter[str] = field(default_factory=Counter)
    """By keyword."""
    ended: set[str] = field(default_factory=set)
    cut: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


async def answers(client: EngineClient, schema: Schema, sampling: Sampling) -> list[tuple[str, str]]:
    """Text and finish reason of each. Raises UnsupportedSchema."""
    prompt = ChatPrompt([{"role": "user", "content": "Answer in JSON."}])
    work = Submit(0, prompt, sampling, _MOST_TOKENS, _ANSWERS, grammar=response_grammar(schema))
    texts, finishes = [""] * _ANSWERS, [""] * _ANSWERS
    async for event in client.submit(work):
        if isinstance(event, Token):
            texts[event.index] += event.text
            finishes[event.index] = event.finish or finishes[event.index]
    return list(zip(texts, finishes, strict=True))


async def closers(client: EngineClient) -> list[int]:
    """Tokens that end texts, lists and objects."""
    found = [(await client.tokenize(TextPrompt(mark), add_special=False)).tokens for mark in '"]}']
    return [tokens[0] for tokens in found if len(tokens) == 1]


async def hold(client: EngineClient, subject: Subject, number: int, tally: Tally) -> None:
    """One round: every schema that must be held to. Odd rounds take the model as it is."""
    sampling = Sampling(seed=1000 * number)
    if number % 2 == 0:
        bias = dict.fromkeys(await closers(client), subject.bias)
        sampling = Sampling(seed=1000 * number, temperature=subject.temperature, logit_bias=bias)

    async def one(keyword: str, schema: Schema) -> None:
        try:
            for text, finish in await answers(client, schema, sampling):
                if finish != "stop":
                    tally.cut += 1
                elif (wrong := fault(schema, text)) is not None:
                    tally.faults.append(f"{keyword}, {subject.name}: {text!r} under {schema}: {wrong}")
                else:
                    tally.valid[keyword] += 1
                    tally.ended.add(repr(schema))
        except UnsupportedSchema as error:
            tally.faults.append(f"{keyword}: refused ({error.message}): {schema}")

    await asyncio.gather(*(one(k, s) for k, group in HELD.items() for s in group))


async def refuse(client: EngineClient, tally: Tally) -> None:
    """Every schema that may not be accepted, unless what comes is an instance all the same."""
    for keyword, group in REFUSED.items():
        for schema in group:
            try:
                given = await answers(client, schema, Sampling(seed=1))
            except UnsupportedSchema as error:
                tally.refused[keyword] += 1
                if error.status != _BAD_REQUEST:
                    tally.faults.append(f"{keyword}: refused with {error.status}")
                continue
            tally.faults.append(f"{keyword}: not refused, answers {given}: {schema}")


async def examine(subject: Subject, wanted: int, tally: Tally) -> None:
    """Rounds on one model until `wanted` of its answers ended."""
    load = Load(
        path=str(subject.path), slots=8, context_tokens=512, pass_tokens=64, threads=1, cores=1,
        gpu_layers=0, kv_layout="streams", kv_type="f16", flash_attention="off", heartbeat_s=5.0, ttft_target_s=0.05,
        itl_target_s=0.05, promises=False, cache_bytes=0, kept_bytes=0, isolate_keys=False, state_directory="",
    )  # fmt: skip
    client = EngineClient(load, _LIMITS)
    await client.start()
    try:
        await client.wait_ready()
        await refuse(client, tally)
        begun, number = tally.valid.total(), 0
        while tally.valid.total() - begun < wanted and not tally.faults:
            await hold(client, subject, number, tally)
            number += 1
    finally:
        await client.stop()


def report(tally: Tally, seconds: float) -> bool:
    """Print the counts. True if all is well."""
    schemas = [repr(s) for group in HELD.values() for s in group]
    unproven = [] if tally.faults else [s for s in schemas if s not in tally.ended]  # a fault ends the run early
    print(
        f"{tally.valid.total()} answers ended and are instances, over {len(schemas)} schemas; {tally.cut} were cut off"
    )
    print("  " + ", ".join(f"{k} {n}" for k, n in tally.valid.items()))
    print(f"{tally.refused.total()} refusals (400): " + ", ".join(f"{k} {n}" for k, n in tally.refused.items()))
    for line in [*tally.faults, *(f"no answer under it ended: {s}" for s in unproven)]:
        print("FAULT " + line)
    print(f"{seconds:.0f} s")
    return not tally.faults and not unproven


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1000, help="answers that end by themselves, of all models")
    a = parser.parse_args()
    tally, begun = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        subjects = [Subject("built-in", BUILTIN, 2.0, 6.0)]
        for shape in ("tiny", "tiny152k"):
            path = Path(directory) / f"{shape}.gguf"
            write_model(path, SHAPES[shape], kind="f16")
            subjects.append(Subject(f"random weights, {shape}", path, 16.0, 60.0))
        for subject in subjects:
            asyncio.run(examine(subject, -(-a.answers // len(subjects)), tally))
    return 0 if report(tally, time.monotonic() - begun) else 1


if __name__ == "__main__":
    sys.exit(main())
