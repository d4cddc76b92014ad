"""How often the built-in model is right on sentences that it was not trained on, in F16 and in INT4.

`python -m models.evaluate` prints the table, `--write` puts it into models/README.md, `--check` fails below the bars.
Needs no PyTorch: it runs the GGUF files through the same binding as the node.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.dialects.tools import ToolFormat, visible_tokens
from edge.engine.llama.greedy import Greedy
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.quantize import task
from edge.quantize.task import Dialect
from models.recipe.dialogues import (
    Dialogue,
    Speaker,
    extraction,
    facts,
    missing_tool,
    result_dialogue,
    talk,
    tool_dialogue,
)
from models.recipe.render import Renderer

HERE = Path(__file__).parent
FILES = {"F16": HERE / "builtin" / "edge-builtin-f16.gguf", "Q4_0": HERE / "builtin" / "edge-builtin-q4_0.gguf"}
BAR_PERCENT, BAR_LOSS_POINTS = 95.0, 1.0
MOST_TOKENS = 200
MARKS = ("<!-- table: made by python -m models.evaluate --write -->", "<!-- end of table -->")

Maker = Callable[[Speaker], Dialogue]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the evaluation: how its dialogues are made, how many, and whether they count for the headline."""

    make: Maker
    count: int
    name: str = ""
    headline: bool = False


PARTS = (
    Part(tool_dialogue, 900, headline=True),
    Part(lambda s: tool_dialogue(s, long=True), 100, "tool call behind a long system prompt"),
    Part(lambda s: result_dialogue(s, turns=3), 80, "third turn"),
    Part(result_dialogue, 100, "answer from a tool's result"),
    Part(missing_tool, 80, "needed tool not offered"),
    Part(talk, 120, "answers in words"),
    Part(facts, 60, "facts of the system prompt"),
    Part(extraction, 80, "JSON without a grammar"),
)


class Subject:
    """One GGUF file that answers."""

    def __init__(self, library: Library, path: Path) -> None:
        self._model = Model(library, path, gpu_layers=0)
        markers = visible_tokens(ToolFormat.HERMES)
        self._greedy = Greedy(library, self._model, context_tokens=2048, threads=1, visible=markers)

    def answer(self, prompt: str) -> str:
        """The text up to the end token."""
        tokens = self._model.vocabulary.tokenize(prompt, add_special=True, parse_special=True)
        return self._greedy.answer(tokens, MOST_TOKENS)

    def close(self) -> None:
        """Free native memory."""
        self._greedy.close()
        self._model.close()


def right(dialogue: Dialogue, answer: str) -> bool:
    """Exactly the calls that were asked for (names and all arguments), or exactly the words."""
    offered = frozenset(tool["function"]["name"] for tool in dialogue.tools)
    dialect = Dialect(ToolFormat.HERMES, None)
    return task.right(dialogue.messages[-1], answer, dialect=dialect, offered=offered, reasoning_open=False)


def cases(seed: int) -> Iterator[tuple[Part, Dialogue]]:
    """The held-out dialogues; the same for a given seed."""
    for number, part in enumerate(PARTS):
        speaker = Speaker(random.Random(seed * 1000 + number), evaluation=True)
        for _ in range(part.count):
            yield part, part.make(speaker)


@dataclass(slots=True)
class Score:
    """Right answers out of all."""

    right: int = 0
    all: int = 0

    @property
    def percent(self) -> float:
        """0..100."""
        return 100.0 * self.right / max(1, self.all)


def evaluate(path: Path, library: Library, *, seed: int, show: int) -> dict[str, Score]:
    """Scores by row; the row `tool calls, exact` is the headline."""
    subject, renderer = Subject(library, path), Renderer()
    scores: dict[str, Score] = defaultdict(Score)
    for part, dialogue in cases(seed):
        prompt = renderer.text(dialogue.messages[:-1], dialogue.tools, prompt_only=True)
        answer = subject.answer(prompt)
        good = right(dialogue, answer)
        rows = ["tool calls, exact", f"- {dialogue.intent}"] if part.headline else [part.name]
        for row in rows:
            scores[row].all += 1
            scores[row].right += good
        if not good and show > 0:
            show -= 1
            asked, wanted = dialogue.messages[-2]["content"], dialogue.messages[-1]
            print(f"{dialogue.intent}: {asked[:200]}\n  wanted {wanted}\n  got {answer}", file=sys.stderr)
    subject.close()
    return scores


def table(results: dict[str, dict[str, Score]]) -> str:
    """Markdown: a line per row, a column per file."""
    kinds = list(results)
    first = results[kinds[0]]
    order = sorted(first, key=lambda r: (not r.startswith(("tool calls", "- ")), not r.startswith("tool calls"), r))
    lines = ["| held-out sentences | n | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]
    for row in order:
        cells = " | ".join(f"{results[k][row].percent:.1f} %" for k in kinds)
        lines.append(f"| {row} | {first[row].all} | {cells} |")
    return "\n".join(lines)


def below_bars(results: dict[str, dict[str, Score]]) -> list[str]:
    """What is below the bars, as sentences; empty when all is well."""
    f16, q4 = (results[k]["tool calls, exact"].percent for k in ("F16", "Q4_0"))
    found = []
    if q4 < BAR_PERCENT:
        found.append(f"INT4 makes {q4:.1f} % exact tool calls; the bar is {BAR_PERCENT} %")
    if f16 - q4 > BAR_LOSS_POINTS:
        found.append(f"INT4 loses {f16 - q4:.1f} points to F16; the bar is {BAR_LOSS_POINTS}")
    return found


def write_table(readme: Path, text: str) -> None:
    """Replace what stands between the marks."""
    before, rest = readme.read_text().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into models/README.md")
    parser.add_argument("--check", action="store_true", help="fail when the model is below the bars")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="show the first N wrong answers of each file")
    parser.add_argument("--f16", type=Path, default=FILES["F16"])
    parser.add_argument("--q4", type=Path, default=FILES["Q4_0"])
    a = parser.parse_args()
    library = Library()
    results = {k: evaluate(p, library, seed=a.seed, show=a.show) for k, p in (("F16", a.f16), ("Q4_0", a.q4))}
    text = table(results)
    print(text)
    if a.write:
        write_table(HERE / "README.md", text)
    problems = below_bars(results)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if a.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
