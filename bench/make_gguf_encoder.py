"""The encoders of `bench.make_onnx` as GGUF files: the same weights and the same vocabulary, so that both forms can be compared.

`python -m bench.make_gguf_encoder minilm --out minilm-f16.gguf` writes a BERT as llama.cpp's converter does: WordPiece with a
mark for what begins a word, mean pooling in the header, or with `--head reranker` the layers of a reranker and rank pooling.
Deterministic for a seed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from bench.make_onnx import SHAPES, SPECIAL, Head, Shape, Values, Weights, encoder, random_weights, vocabulary

Kind = Literal["f32", "f16", "q8_0"]
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
_EPSILON = 1e-12
_WORD_START = "\u2581"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OUTSIDE = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_HEAD = {
    "pooler.dense.weight": "cls.weight",
    "pooler.dense.bias": "cls.bias",
    "classifier.weight": "cls.output.weight",
    "classifier.bias": "cls.output.bias",
}


def write_encoder(
    path: Path,
    shape: Shape,
    *,
    head: Head | None = None,
    kind: Kind = "f16",
    seed: int = 0,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
) -> Path:
    """Write a file with the weights that `bench.make_onnx.write_encoder` has for this seed. `pooling` None: the header does not
    say."""
    stated = gguf.PoolingType.RANK if head is not None else pooling
    kept = take_all(shape, random_weights(seed), head)
    return write_bert(path, shape, kept, vocabulary(shape.vocabulary), kind=kind, pooling=stated)


def take_all(shape: Shape, weights: Weights, head: Head | None = None) -> dict[str, Values]:
    """Every weight of an encoder, by its name in checkpoints."""
    kept: dict[str, Values] = {}

    def remember(name: str, axes: tuple[int, ...], spread: float, middle: float) -> Values:
        kept[name] = weights(name, axes, spread, middle)
        return kept[name]

    encoder(shape, remember, head)
    return kept


def write_bert(
    path: Path,
    shape: Shape,
    weights: Mapping[str, Values],
    pieces: Sequence[str],
    *,
    kind: Kind,
    pooling: gguf.PoolingType | None,
    name: str = "random weights",
) -> Path:
    """Write a BERT from weights by their names in checkpoints, and its WordPiece vocabulary as BERT writes it."""
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name(name)
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(_EPSILON)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
        if pooling == gguf.PoolingType.RANK and (labels := weights["classifier.weight"].shape[0]) > 1:
            writer.add_classifier_output_labels([f"label {number}" for number in range(labels)])
    writer.add_file_type(_FILE_TYPES[kind])
    _add_vocabulary(writer, pieces)
    for checkpoint, values in weights.items():
        if (named := _named(checkpoint, ranks=pooling == gguf.PoolingType.RANK)) is not None:
            _add(writer, named, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(checkpoint: str, *, ranks: bool) -> str | None:
    """The name in the file; None for what such a model does not have."""
    if found := _LAYER.match(checkpoint):
        return f"blk.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"
    return _HEAD.get(checkpoint) if ranks and checkpoint in _HEAD else _OUTSIDE.get(checkpoint)


def _add(writer: gguf.GGUFWriter, name: str, values: Values, kind: Kind) -> None:
    """Matrices in the wanted format; what is added or scales, and the small tables, stay exact."""
    exact = kind == "f32" or values.ndim == 1 or name.startswith(("position_embd", "token_types", "cls"))
    if exact or (kind == "q8_0" and values.shape[-1] % 32):
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        packed = gguf.quants.quantize(np.ascontiguousarray(values), _TYPES[kind])
        writer.add_tensor(name, packed, raw_dtype=_TYPES[kind])


def _add_vocabulary(writer: gguf.GGUFWriter, pieces: Sequence[str]) -> None:
    """Pieces that begin a word have a mark; those that go on with one have lost BERT's."""
    tokens, kinds = [], []
    for piece in pieces:
        special = piece in SPECIAL or piece.startswith("[unused")
        kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL)
        tokens.append(piece if special else piece[2:] if piece.startswith("##") else _WORD_START + piece)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    numbers = {piece: number for number, piece in enumerate(pieces)}
    writer.add_bos_token_id(numbers["[CLS]"])
    writer.add_sep_token_id(numbers["[SEP]"])
    writer.add_pad_token_id(numbers["[PAD]"])
    writer.add_unk_token_id(numbers["[UNK]"])
    writer.add_mask_token_id(numbers["[MASK]"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--head", choices=["reranker"], help="a reranker instead of embeddings")
    parser.add_argument("--type", choices=sorted(_FILE_TYPES), default="f16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    write_encoder(a.out, SHAPES[a.shape], head=a.head, kind=a.type, seed=a.seed)
    print(f"{a.out}: {a.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
