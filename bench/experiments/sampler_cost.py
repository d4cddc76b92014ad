"""What choosing a token costs at a large vocabulary, by kind of request. Its figures stand in docs/bench.md.

Draws from the rows of one real forward pass, so that only the sampler and the grammar are timed. Kinds are interleaved, so
that drift of a shared machine hits all alike. `python -m bench.make_gguf tiny152k --type f16 --out tiny152k.gguf` makes a
file that suits: 151,936 tokens, hardly any weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.bench.machine import describe
from edge.dialects.template import DEFAULT_CHATML, ChatTemplate
from edge.dialects.tools import response_grammar
from edge.engine.grammar import GrammarCompiler, GrammarState
from edge.engine.intake import Intake
from edge.engine.llama.context import Context, ContextShape
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model, Vocabulary
from edge.engine.sampler import TokenSampler
from edge.messages import Sampling, Submit, TokenPrompt

ROWS = 8
STEP_MS = 50
_STEPS_PER_STATE = 64
_WARM_UP = 5
_DEFAULT = Sampling(seed=1)
_GREEDY = Sampling(temperature=0.0)
_USUAL = Sampling(top_k=40, top_p=0.95, seed=1)
_PENALTIES: dict[str, Any] = {"repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}
_FEW = ({"type": "array", "items": {"type": "integer"}}, "[1")
_THIRD = ({"type": "string", "pattern": "^[^etao]*$"}, '"b')
_NEARLY_ALL = ({"type": "string"}, '"b')


@dataclass(frozen=True)
class Kind:
    """A request, and for a grammar the beginning of an answer at which it is drawn from."""

    name: str
    sampling: Sampling
    top_logprobs: int | None = None
    schema: dict[str, Any] | None = None
    text: str = ""


KINDS = [
    Kind("greedy", _GREEDY),
    Kind("temperature", _DEFAULT),
    Kind("top_k 40, top_p", _USUAL),
    Kind("top_p alone", Sampling(top_p=0.95, seed=1)),
    Kind("min_p", Sampling(min_p=0.05, seed=1)),
    Kind("penalties", Sampling(seed=1, **_PENALTIES)),
    Kind("greedy, penalties", Sampling(temperature=0.0, **_PENALTIES)),
    Kind("logit_bias of 100 tokens", Sampling(seed=1, logit_bias={300 + i: 1.0 for i in range(100)})),
    Kind("temperature, logprobs", _DEFAULT, top_logprobs=0),
    Kind("temperature, top_logprobs 20", _DEFAULT, top_logprobs=20),
    Kind("schema, nearly all allowed: greedy", _GREEDY, None, *_NEARLY_ALL),
    Kind("schema, nearly all allowed: temperature", _DEFAULT, None, *_NEARLY_ALL),
    Kind("schema, nearly all allowed: top_k 40, top_p", _USUAL, None, *_NEARLY_ALL),
    Kind("schema, a third allowed: greedy", _GREEDY, None, *_THIRD),
    Kind("schema, a third allowed: temperature", _DEFAULT, None, *_THIRD),
    Kind("schema, a third allowed: top_k 40, top_p", _USUAL, None, *_THIRD),
    Kind("schema, twelve allowed: greedy", _GREEDY, None, *_FEW),
    Kind("schema, twelve allowed: temperature", _DEFAULT, None, *_FEW),
    Kind("schema, twelve allowed: top_k 40, top_p", _USUAL, None, *_FEW),
]
_WORDS = {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,20}$"}}
COMPILED: dict[str, dict[str, Any]] = {
    "one boolean": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    "twenty properties": {"type": "object", "properties": {f"p{i}": _WORDS for i in range(20)}, "required": ["p0"]},
    "400 words": {"enum": [f"word-{i * 7919}" for i in range(400)]},
}


@dataclass
class Bench:
    """A kind's samplers, one a row, and its times in microseconds."""

    kind: Kind
    samplers: list[TokenSampler]
    start: GrammarState | None
    allowed: int | None
    steps: int = 0
    times_us: list[float] = field(default_factory=list)

    def step(self, context: Context) -> None:
        """Every row once."""
        new = self.steps % _STEPS_PER_STATE == 0
        for row, sampler in enumerate(self.samplers):
            grammar = sampler.grammar
            if self.start is not None and grammar is not None and (new or grammar.finished):
                sampler.grammar = self.start.clone()
            begun = time.perf_counter()
            sampler.draw(context, row)
            self.times_us.append((time.perf_counter() - begun) * 1e6)
        self.steps += 1

    def figures(self) -> dict[str, Any]:
        """Median and p99 of a row, and what a full step's rows take of its time."""
        times = sorted(self.times_us[_WARM_UP * ROWS :])
        median = statistics.median(times)
        return {
            "kind": self.kind.name,
            "median_us": round(median, 1),
            "p99_us": round(times[len(times) * 99 // 100], 1),
            "share_of_step": round(ROWS * median / 1000 / STEP_MS, 4),
            "tokens_allowed": self.allowed,
        }


def prepare(kind: Kind, intake: Intake, vocabulary: Vocabulary) -> Bench:
    """Samplers as the engine makes them, grammars led to the kind's place."""
    spec = response_grammar(kind.schema) if kind.schema is not None else None
    prompt = TokenPrompt([300])
    request, _ = intake.accept(Submit(0, prompt, kind.sampling, 10, ROWS, (), kind.top_logprobs, spec), 0.0)
    samplers = [s.writer.sampler for s in request.sequences]
    start, allowed = samplers[0].grammar, None
    if start is not None:
        for token in vocabulary.tokenize(kind.text, add_special=False, parse_special=False):
            start.accept(token)
        allowed = int(start.mask().sum())
        start = start.clone()
    return Bench(kind, samplers, start, allowed)


def compile_times(compiler: GrammarCompiler, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds from schema to a state that can be asked."""
    cells = []
    for name, schema in COMPILED.items():
        spec, times = response_grammar(schema), []
        for _ in range(repeats):
            begun = time.perf_counter()
            compiler.compile(spec)
            times.append((time.perf_counter() - begun) * 1000)
        cells.append({"schema": name, "median_ms": round(statistics.median(times), 2), "max_ms": round(max(times), 2)})
    return cells


def run(path: Path, steps: int) -> dict[str, Any]:
    """All figures for one file."""
    library = Library()
    model = Model(library, path, gpu_layers=0)
    vocabulary = model.vocabulary
    context = Context(library, model, ContextShape(ROWS, 64, 64, 1, False, "f16", "off"))
    tokens = np.random.default_rng(1).integers(300, vocabulary.size - 8, ROWS).tolist()
    context.forward(tokens, [0] * ROWS, list(range(ROWS)), [True] * ROWS)
    intake = Intake(vocabulary, ChatTemplate(DEFAULT_CHATML, bos="", eos=""), DEFAULT_CHATML, context_tokens=64)
    begun = time.perf_counter()
    intake.grammars.warm()
    tables_s = round(time.perf_counter() - begun, 2)
    benches = [prepare(kind, intake, vocabulary) for kind in KINDS]
    for _ in range(_WARM_UP + steps):
        for bench in benches:
            bench.step(context)
    return {
        "vocabulary": vocabulary.size,
        "rows": ROWS,
        "draws_of_each": steps * ROWS,
        "grammar_tables_s": tables_s,
        "compile": compile_times(intake.grammars, 20),
        "draw": [b.figures() for b in benches],
    }


def table(result: dict[str, Any]) -> str:
    """Markdown for docs/bench.md."""
    lines = ["| kind of request | median, us | p99, us | 8 rows, share of 50 ms |", "|---|---:|---:|---:|"]
    for cell in result["draw"]:
        share = f"{cell['share_of_step']:.1%}"
        lines.append(f"| {cell['kind']} | {cell['median_us']:.0f} | {cell['p99_us']:.0f} | {share} |")
    lines += ["", "| schema | to compile, ms | longest, ms |", "|---|---:|---:|"]
    lines += [f"| {c['schema']} | {c['median_ms']} | {c['max_ms']} |" for c in result["compile"]]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file with a large vocabulary")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    result = {"machine": describe(), "model": a.model.stem, **run(a.model, a.steps)}
    print(table(result))
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
