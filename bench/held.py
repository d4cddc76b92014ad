"""What a proof promised and whether it held; and proofs of several parts, each written down as soon as it is over."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.bench.machine import describe


class Held:
    """Owner of what was promised and whether it held."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def check(self, what: str, value: float, held: bool) -> None:
        """One promise and its figure."""
        self.all.append({"what": what, "value": round(value, 4), "held": held})
        print(f"{'held' if held else 'NOT HELD'}: {what}: {value:.4g}", flush=True)

    @property
    def everything(self) -> bool:
        """Whether no promise was broken."""
        return all(promise["held"] for promise in self.all)


def parser(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Of a proof with parts: which of them, and where to write the result."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("part", nargs="*", help=f"of {', '.join(parts)}; all if none is named")
    made.add_argument("--out", type=Path, help="JSON file to write")
    return made


def chosen(given: argparse.ArgumentParser, arguments: argparse.Namespace, parts: Sequence[str]) -> Sequence[str]:
    """The parts that were asked for. Ends the process if one is unknown."""
    if unknown := set(arguments.part) - set(parts):
        given.error(f"unknown: {', '.join(sorted(unknown))}")
    return arguments.part or parts


def prove(parts: Mapping[str, Callable[[Held], dict[str, Any]]], about: Mapping[str, Any], out: Path | None) -> int:
    """Run the parts in turn. `about` is written beside their results. Returns the exit status."""
    held = Held()
    result: dict[str, Any] = {"machine": describe(), **about, "parts": {}}
    for name, part in parts.items():
        begun_s = time.monotonic()
        result["parts"][name] = {**part(held), "part took, s": round(time.monotonic() - begun_s, 1)}
        result["promises"] = held.all
        print(json.dumps(result["parts"][name], indent=1), flush=True)
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if held.everything else 1


def until(what: Callable[[], Any], timeout_s: float, why: str) -> Any:
    """Wait for it. Raises RuntimeError."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := what():
            return found
        time.sleep(0.05)
    raise RuntimeError(f"waited {timeout_s:g} s in vain: {why}")
