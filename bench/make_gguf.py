"""GGUF files with real shapes and random weights: what speed and memory depend on, without anybody's weights.

`python -m bench.make_gguf 135m --type q4_0 --out 135m-q4_0.gguf`. The tokenizer is a byte-level BPE of English letter
pairs and quadruples, so that text costs about three characters a token. Deterministic for a seed.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.quantize.kinds import KINDS
from edge.quantize.run import Wish, quantize

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_JUDGING = {
    "name": "rerank",
    "template": "<|im_start|>user\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n",
}
_LETTERS = "etaoinshrdlucmfwypvbgkjxqz"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a llama-architecture model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    context: int = 4096
    experts: int = 0
    """In each layer, two of which answer each token; 0: no mixture of experts."""
    sharpness: float = 1.0
    """Scale of the embedding, which is also the output: how far apart the logits are."""
    judges: bool = False
    """A reranker as Qwen3's: no logits but for yes and no, asked by a template in the file."""
    splitter: str = "qwen2"
    """Whose expression cuts a text before the tokenizer sees it."""


SHAPES = {
    "tiny": Shape(2, 256, 4, 2, 512, 1024, 2048),
    "tinymoe": Shape(2, 256, 4, 2, 256, 1024, 2048, experts=4, sharpness=0.15),
    "tinynarrow": Shape(2, 192, 3, 3, 320, 1024, 2048, sharpness=0.15),
    "tinyjudge": Shape(2, 256, 4, 2, 512, 1024, 2048, judges=True),
    "tiny152k": Shape(1, 64, 2, 1, 128, 151936, 2048),
    "15m": Shape(6, 384, 6, 2, 1024, 8192),
    "135m": Shape(30, 576, 9, 3, 1536, 49152),
    "500m": Shape(24, 896, 14, 2, 4864, 151936),
    "1.5b": Shape(28, 1536, 12, 2, 8960, 151936),
}


def write_model(
    path: Path,
    shape: Shape,
    *,
    kind: str,
    seed: int = 0,
    tensors_a_part: int = 0,
    pooling: gguf.PoolingType | None = None,
) -> None:
    """Write a file of `kind` f16, or any that `edge quantize` knows. `tensors_a_part`: f16 only, in files of so many tensors
    named `NAME-00001-of-00003.gguf` and so on; 0: one file. `pooling`: it is an embedding model. Raises EdgeError when libllama
    cannot quantize."""
    if kind == "f16":
        _write_f16(path, shape, seed, tensors_a_part, pooling)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        source = Path(scratch) / "f16.gguf"
        _write_f16(source, shape, seed, pooling=pooling)
        wish = Wish(source, path, kind, importance="off", report=False, force=True)
        quantize(wish, {}, lambda _stage, _share: None)


def _write_f16(
    path: Path, shape: Shape, seed: int, tensors_a_part: int = 0, pooling: gguf.PoolingType | None = None
) -> None:
    writer = gguf.GGUFWriter(str(path), "qwen3" if shape.judges else "llama", split_max_tensors=tensors_a_part)
    writer.add_name("random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    if shape.judges:
        writer.add_key_length(shape.width // shape.heads)
        writer.add_value_length(shape.width // shape.heads)
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
    elif pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, shape.vocabulary, shape.splitter)
    writer.add_chat_template([{"name": "default", "template": CHATML}, _JUDGING] if shape.judges else CHATML)
    for name, array in _tensors(shape, np.random.default_rng(seed)):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(shape: Shape, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(scale / columns**0.5)
        return np.asarray(values, np.float16)

    narrow = shape.kv_heads * (shape.width // shape.heads)
    ones = np.ones(shape.width, np.float32)
    yield "token_embd.weight", matrix(shape.vocabulary, shape.width, shape.sharpness * shape.width**0.5)
    yield "output_norm.weight", ones
    if shape.judges:
        yield "cls.output.weight", np.asarray(matrix(2, shape.width), np.float32)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", ones
        if shape.judges:
            for part in "qk":
                yield f"{at}attn_{part}_norm.weight", np.ones(shape.width // shape.heads, np.float32)
        yield at + "ffn_norm.weight", ones
        yield at + "attn_q.weight", matrix(shape.width, shape.width)
        yield at + "attn_k.weight", matrix(narrow, shape.width)
        yield at + "attn_v.weight", matrix(narrow, shape.width)
        yield at + "attn_output.weight", matrix(shape.width, shape.width)
        if shape.experts:
            yield at + "ffn_gate_inp.weight", np.asarray(matrix(shape.experts, shape.width), np.float32)
        for name, rows, columns in (
            ("ffn_gate", shape.hidden, shape.width),
            ("ffn_up", shape.hidden, shape.width),
            ("ffn_down", shape.width, shape.hidden),
        ):
            if shape.experts:
                yield f"{at}{name}_exps.weight", np.stack([matrix(rows, columns) for _ in range(shape.experts)])
            else:
                yield f"{at}{name}.weight", matrix(rows, columns)


def add_tokenizer(writer: gguf.GGUFWriter, size: int, splitter: str) -> None:
    """A vocabulary of `size` tokens."""
    tokens, merges = _vocabulary(size - len(SPECIAL))
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(SPECIAL)
    tokens += SPECIAL
    while len(tokens) < size:
        tokens.append(f"<|unused_{len(tokens)}|>")
        kinds.append(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)


def _vocabulary(room: int) -> tuple[list[str], list[str]]:
    """Bytes first, then letter pairs, then pairs of pairs, up to `room` tokens; and the merges that make them."""
    letters = _byte_letters()
    tokens = list(letters.values())
    merges: list[str] = []
    space = letters[ord(" ")]
    pairs = [(a, b) for a, b in itertools.product([space, *_LETTERS], _LETTERS)][: max(0, room - len(tokens))]
    tokens += [a + b for a, b in pairs]
    merges += [f"{a} {b}" for a, b in pairs]
    doubles = ((a + b, c + d) for (a, b), (c, d) in itertools.product(pairs, pairs) if c != space)
    for a, b in itertools.islice(doubles, max(0, room - len(tokens))):
        tokens.append(a + b)
        merges.append(f"{a} {b}")
    return tokens, merges


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    for count, byte in enumerate(b for b in range(256) if b not in letters):
        letters[byte] = chr(256 + count)
    return letters


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--type", choices=("f16", *KINDS), default="q4_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    write_model(a.out, SHAPES[a.shape], kind=a.type, seed=a.seed)
    print(f"{a.out}: {a.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
