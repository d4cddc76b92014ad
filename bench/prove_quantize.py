"""The accuracy table of the built-in model: `make prove-quantize`.

`edge quantize` writes the F16 file in every format, each without an importance matrix, with one measured on the package's own
text (the default), and with one measured on text of the model's own kind. Judged on held-out dialogues and on the task's cases.
The built-in model has no experts, so mxfp4 is shown on a mixture of experts with random weights. Exit status 1 if what the
defaults rest on does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.make_gguf import SHAPES, write_model
from edge.bench.machine import describe
from edge.quantize.kinds import KINDS
from models.evaluate import cases
from models.recipe.dialogues import dialogue
from models.recipe.render import Renderer
from models.recipe.requests import Speaker

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "models/builtin/edge-builtin-f16.gguf"
NEUTRAL = ROOT / "edge/quantize/texts/calibration.txt"
_TEXT_SEED, _CALIBRATION_SEED = 4242, 77
_DIALOGUES, _CALIBRATION_DIALOGUES = 420, 300
_MOST_TOKENS = 65_536

Figures = dict[str, Any]


def held_out_text() -> str:
    """Dialogues that were not trained, of all kinds; other ones than those in models/builtin/cases.json."""
    found = [made for _, made in cases(_TEXT_SEED)]
    random.Random(_TEXT_SEED).shuffle(found)
    renderer = Renderer()
    return "".join(renderer.text(made.messages, made.tools) + "\n" for made in found[:_DIALOGUES])


def training_text() -> str:
    """Dialogues as they are trained."""
    speaker, renderer = Speaker(random.Random(_CALIBRATION_SEED), evaluation=False), Renderer()
    made = (dialogue(speaker, long_share=0.05) for _ in range(_CALIBRATION_DIALOGUES))
    return "".join(renderer.text(d.messages, d.tools) + "\n" for d in made)


def quantized(source: Path, kind: str, *arguments: str) -> Figures:
    """One call of the command line; its JSON without this machine's paths."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "edge", "quantize", str(source), str(Path(directory) / f"{kind}.gguf")]
        command += ["--to", kind, "--json", "--tokens", str(_MOST_TOKENS), "--threads", "1", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout)
    for file in (found["source"], found["result"]):
        file["path"] = Path(file["path"]).name
    return found


def built_in(scratch: Path) -> list[Figures]:
    """Every format, without and with importance."""
    text, own = scratch / "held-out dialogues", scratch / "training dialogues"
    text.write_text(held_out_text(), "utf-8")
    own.write_text(training_text(), "utf-8")
    rows = []
    for kind in KINDS.values():
        if kind.experts_only:
            continue
        ways = {"none": ["--imatrix", "off"]}
        if kind.takes_importance:
            ways |= {"neutral text": ["--calibration", str(NEUTRAL)], "own text": ["--calibration", str(own)]}
        for importance, arguments in ways.items():
            rows.append({"calibration": importance, **quantized(SOURCE, kind.name, "--text", str(text), *arguments)})
            print(line(rows[-1]), flush=True)
    return rows


def mixture(scratch: Path) -> list[Figures]:
    """Formats for a mixture of experts, on random weights."""
    source = scratch / "tinymoe.gguf"
    write_model(source, SHAPES["tinymoe"], kind="f16")
    rows = []
    for kind, importance in (("mxfp4", "none"), ("q4_0", "none"), ("q4_0", "neutral text"), ("q8_0", "none")):
        switch = "off" if importance == "none" else "on"
        rows.append({"calibration": importance, **quantized(source, kind, "--imatrix", switch)})
        print(line(rows[-1]), flush=True)
    return rows


HEAD = (
    "| format | importance | size, MB | bits a weight | KL mean, 10^-3 nats | KL p99 | same top token | perplexity ratio |"
    " tool calls | all cases |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: Figures) -> str:
    """One row of the table."""
    d, a = row["divergence"], row["accuracy"]
    calls = a["groups"]["tool calls"] if a else None
    return " | ".join(
        [
            f"| {row['kind']}",
            row["calibration"],
            f"{row['result']['bytes'] / 1e6:.2f}",
            f"{row['result']['bits_per_weight']:.2f}",
            f"{d['kl_mean'] * 1e3:.3f} +- {d['kl_mean_error'] * 1e3:.3f}",
            f"{d['kl_p99']:.4f}",
            f"{d['top1_agreement']:.2%}",
            f"{d['perplexity_ratio']:.4f}",
            f"{calls['result_right'] / calls['cases']:.1%}" if calls else "",
            f"{a['all']['result_right'] / a['all']['cases']:.1%} |" if a else "|",
        ]
    )


def promises(rows: list[Figures]) -> list[tuple[str, bool]]:
    """What the defaults rest on, and whether it is so."""
    kl = {(row["kind"], row["calibration"]): row["divergence"]["kl_mean"] for row in rows}
    found = [("q8_0 is the nearest to the source", kl["q8_0", "none"] == min(kl.values()))]
    for kind in KINDS.values():
        if kind.takes_importance:
            nearer = kl[kind.name, "neutral text"] < kl[kind.name, "none"]
            found.append((f"{kind.name}: importance measured on the package's text brings it nearer", nearer))
    for row in rows:
        calls = row["accuracy"]["groups"]["tool calls"]
        lost = (calls["source_right"] - calls["result_right"]) / calls["cases"]
        found.append((f"{row['kind']}, {row['calibration']}: at most one point of exact tool calls lost", lost <= 0.01))
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    a = parser.parse_args()
    begun = time.monotonic()
    print(HEAD)
    with tempfile.TemporaryDirectory() as directory:
        rows, experts = built_in(Path(directory)), mixture(Path(directory))
    held = promises(rows)
    for what, true in held:
        print(f"{'held' if true else 'NOT HELD'}: {what}")
    seconds = time.monotonic() - begun
    print(f"{seconds:.0f} s")
    if a.out:
        checks = [{"what": what, "held": true} for what, true in held]
        content = {
            "machine": describe(),
            "seconds": round(seconds, 1),
            "built_in": rows,
            "mixture": experts,
            "checks": checks,
        }
        a.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0 if all(true for _, true in held) else 1


if __name__ == "__main__":
    sys.exit(main())
