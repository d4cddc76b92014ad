"""The cases that `edge quantize` counts for the built-in model: `python -m models.recipe.cases`.

A part of what `models.evaluate` asks, none of it trained: small enough to be shipped, the same for everybody.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from models import evaluate

from .catalogue import Tool

OUT = Path(__file__).parent.parent / "builtin" / "cases.json"
TOOL_CALLS = "tool calls"
_SEED = 2026
_COUNTS = {TOOL_CALLS: 300, "answer from a tool's result": 40, "answers in words": 50, "JSON without a grammar": 30}


def task() -> dict[str, Any]:
    """The file's content."""
    left, tools, cases = Counter(_COUNTS), dict[str, Tool](), list[dict[str, Any]]()
    for part, dialogue in evaluate.cases(_SEED):
        group = TOOL_CALLS if part.headline else part.name
        if left[group] <= 0:
            continue
        left[group] -= 1
        names = [tool["function"]["name"] for tool in dialogue.tools]
        tools |= {tool["function"]["name"]: tool for tool in dialogue.tools}
        cases.append({"group": group, "tools": names, "messages": dialogue.messages})
    return {
        "name": "held-out requests to the built-in model",
        "most_tokens": evaluate.MOST_TOKENS,
        "tools": dict(sorted(tools.items())),
        "cases": cases,
    }


def text() -> str:
    """As it is written: a case a line."""
    made = task()
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in made.pop("cases"))
    return f'{json.dumps(made, ensure_ascii=False)[:-1]},\n"cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    OUT.write_text(text(), "utf-8")
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")
