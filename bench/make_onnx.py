"""Small ONNX encoders with real structure and random weights, each with a tokenizer: what speed, memory and rounding depend on,
without anybody's weights.

`python -m bench.make_onnx minilm --out DIRECTORY` writes `model.onnx` and `tokenizer.json`. The graph is that of BERT as
exporters write it: int64 [batch, sequence] `input_ids`, `attention_mask` and `token_type_ids`, both axes free; out of it come
`last_hidden_state` [batch, sequence, width] and `pooler_output` [batch, width], or with `--head reranker` or `--head classifier`
the `logits` [batch, labels]. The vocabulary is WordPiece of letters, pairs and triples, so that a token costs about three
letters. Deterministic for a seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

Head = Literal["reranker", "classifier"]
Values = npt.NDArray[np.float32]
Weights = Callable[[str, tuple[int, ...], float, float], Values]
"""By name, axes, spread and middle: float32 of these axes. Names and axes are those of BERT checkpoints, [outputs, inputs]."""

HEADS: dict[Head, int] = {"reranker": 1, "classifier": 4}
"""How many labels each has."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_OPSET, _IR = 17, 8  # what exporters write; LayerNormalization is one node from 17 on
_EPSILON = 1e-12
_MASKED = -1e4
_LETTERS = "etaoinshrdlucmfwypvbgkjxqz"
_SIGNS = "0123456789.,;:!?-'\"()/%&+=*<>[]{}#@$_"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an encoder."""

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int
    positions: int = 512


SHAPES = {
    "tiny": Shape(2, 64, 2, 256, 1024, 128),
    "minilm": Shape(6, 384, 12, 1536, 30522),
    "base": Shape(12, 768, 12, 3072, 30522),
}


def write_encoder(directory: Path, shape: Shape, head: Head | None = None, *, seed: int = 0) -> Path:
    """Write `model.onnx` and `tokenizer.json` into a directory, which is made if need be; the model's path."""
    directory.mkdir(parents=True, exist_ok=True)
    model = encoder(shape, random_weights(seed), head)
    onnx.checker.check_model(model, full_check=True)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    tokenizer(shape.vocabulary).save(str(directory / "tokenizer.json"))
    return path


def random_weights(seed: int) -> Weights:
    """Normally distributed ones."""
    rng = np.random.default_rng(seed)

    def values(_name: str, axes: tuple[int, ...], spread: float, middle: float) -> Values:
        return rng.standard_normal(axes, np.float32) * np.float32(spread) + np.float32(middle)

    return values


def encoder(shape: Shape, weights: Weights, head: Head | None = None) -> onnx.ModelProto:
    """The model in memory."""
    graph = _Graph(weights)
    states = _embedded(graph, shape)
    mask = _mask(graph)
    for layer in range(shape.layers):
        states = _layer(graph, f"encoder.layer.{layer}.", shape, states, mask)
    first = graph.node("Gather", [states, graph.integers("first", 0)], axis=1)
    pooled = graph.node("Tanh", [_dense(graph, "pooler.dense", first, shape.width, shape.width)])
    outputs: list[tuple[str, str, Sequence[str | int]]]
    if head is None:
        outputs = [
            ("last_hidden_state", states, ("batch", "sequence", shape.width)),
            ("pooler_output", pooled, ("batch", shape.width)),
        ]
    else:
        labels = HEADS[head]
        outputs = [("logits", _dense(graph, "classifier", pooled, shape.width, labels), ("batch", labels))]
    for name, inner, _ in outputs:
        graph.nodes.append(helper.make_node("Identity", [inner], [name], name=name))
    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "sequence")) for name in INPUTS],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name, _, axes in outputs],
        graph.weights,
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(made, producer_name="edge bench", opset_imports=[opset], ir_version=_IR)


class _Graph:
    """Nodes and weights in the making."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add one; the name of what it gives."""
        name = f"/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        return self.weight(f"constant_{len(self.weights)}", np.array(value, np.float32))

    def integers(self, name: str, values: int | Sequence[int]) -> str:
        return self.weight(f"{name}_{len(self.weights)}", np.array(values, np.int64))

    def learned(self, name: str, *axes: int, spread: float, middle: float = 0.0) -> str:
        return self.weight(name, self._weights(name, axes, spread, middle))

    def matrix(self, name: str, outputs: int, inputs: int) -> str:
        """As MatMul wants it, [inputs, outputs]."""
        values = self._weights(name, (outputs, inputs), inputs**-0.5, 0.0)
        return self.weight(name, np.ascontiguousarray(values.T))


def _dense(graph: _Graph, name: str, inner: str, columns: int, rows: int) -> str:
    product = graph.node("MatMul", [inner, graph.matrix(f"{name}.weight", rows, columns)])
    return graph.node("Add", [product, graph.learned(f"{name}.bias", rows, spread=0.05)])


def _normed(graph: _Graph, name: str, inner: str, width: int) -> str:
    scale = graph.learned(f"{name}.weight", width, spread=0.1, middle=1.0)
    shift = graph.learned(f"{name}.bias", width, spread=0.05)
    return graph.node("LayerNormalization", [inner, scale, shift], axis=-1, epsilon=_EPSILON)


def _embedded(graph: _Graph, shape: Shape) -> str:
    """Words, positions and types, added and normed."""
    at = "embeddings."
    words = graph.learned(f"{at}word_embeddings.weight", shape.vocabulary, shape.width, spread=1.0)
    places = graph.learned(f"{at}position_embeddings.weight", shape.positions, shape.width, spread=0.3)
    types = graph.learned(f"{at}token_type_embeddings.weight", 2, shape.width, spread=0.3)
    length = graph.node("Gather", [graph.node("Shape", ["input_ids"]), graph.integers("one", 1)], axis=0)
    numbers = graph.node("Range", [graph.integers("from", 0), length, graph.integers("step", 1)])
    total = graph.node("Add", [graph.node("Gather", [words, "input_ids"]), graph.node("Gather", [types, INPUTS[2]])])
    total = graph.node("Add", [total, graph.node("Gather", [places, numbers])])
    return _normed(graph, f"{at}LayerNorm", total, shape.width)


def _mask(graph: _Graph) -> str:
    """What is added to attention: 0 where there is a token, very little where there is none; float[batch, 1, 1, sequence]."""
    wide = graph.node("Unsqueeze", ["attention_mask", graph.integers("axes", [1, 2])])
    missing = graph.node("Sub", [graph.number(1.0), graph.node("Cast", [wide], to=TensorProto.FLOAT)])
    return graph.node("Mul", [missing, graph.number(_MASKED)])


def _layer(graph: _Graph, at: str, shape: Shape, states: str, mask: str) -> str:
    width = shape.width
    mixed = _attention(graph, f"{at}attention.", shape, states, mask)
    states = _normed(graph, f"{at}attention.output.LayerNorm", graph.node("Add", [mixed, states]), width)
    inner = _gelu(graph, _dense(graph, f"{at}intermediate.dense", states, width, shape.hidden))
    outer = _dense(graph, f"{at}output.dense", inner, shape.hidden, width)
    return _normed(graph, f"{at}output.LayerNorm", graph.node("Add", [outer, states]), width)


def _attention(graph: _Graph, at: str, shape: Shape, states: str, mask: str) -> str:
    width, size = shape.width, shape.width // shape.heads
    apart = graph.integers("heads", [0, 0, shape.heads, size])

    def part(name: str, order: list[int]) -> str:
        flat = _dense(graph, f"{at}self.{name}", states, width, width)
        return graph.node("Transpose", [graph.node("Reshape", [flat, apart])], perm=order)

    query, key = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1])
    scores = graph.node("Mul", [graph.node("MatMul", [query, key]), graph.number(size**-0.5)])
    shares = graph.node("Softmax", [graph.node("Add", [scores, mask])], axis=-1)
    mixed = graph.node("MatMul", [shares, part("value", [0, 2, 1, 3])])
    together = graph.integers("width", [0, 0, width])
    flat = graph.node("Reshape", [graph.node("Transpose", [mixed], perm=[0, 2, 1, 3]), together])
    return _dense(graph, f"{at}output.dense", flat, width, width)


def _gelu(graph: _Graph, inner: str) -> str:
    """x / 2 (1 + erf(x / sqrt 2)), in the nodes that exporters write."""
    bent = graph.node("Erf", [graph.node("Div", [inner, graph.number(2**0.5)])])
    product = graph.node("Mul", [inner, graph.node("Add", [bent, graph.number(1.0)])])
    return graph.node("Mul", [product, graph.number(0.5)])


def tokenizer(size: int) -> Tokenizer:
    """WordPiece over `size` pieces, lower case, `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""
    pieces = vocabulary(size)
    numbers = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")],
    )
    made.add_special_tokens(list(SPECIAL))
    return made


def vocabulary(size: int) -> list[str]:
    """Special pieces, single characters, then groups of two, three and four letters, each as a word's start and as its rest."""
    single = [*_LETTERS, *_SIGNS]
    least = len(SPECIAL) + 2 * len(single)
    if size < least:
        raise ValueError(f"a vocabulary needs at least {least} pieces, not {size}")
    groups = ("".join(letters) for count in (2, 3, 4) for letters in itertools.product(_LETTERS, repeat=count))
    both = (form for group in itertools.chain(single, groups) for form in (group, f"##{group}"))
    return [*SPECIAL, *itertools.islice(both, size - len(SPECIAL))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--head", choices=sorted(HEADS), help="logits instead of states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    a = parser.parse_args()
    path = write_encoder(a.out, SHAPES[a.shape], a.head, seed=a.seed)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
