"""A checkpoint and the tokenizer become a GGUF file in F16."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch

from .render import MARKERS, SPECIAL, TEMPLATE_PATH

NAME = "edge-builtin"
DESCRIPTION = "Turns operators' sentences into tool calls and short answers about devices, alarms, units and times."


def export(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write `out`. Matrices become F16, norms stay F32; the tied embedding is stored once."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    shape = state["shape"]
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    writer.add_context_length(int(shape["context"]))
    writer.add_embedding_length(int(shape["width"]))
    writer.add_block_count(int(shape["layers"]))
    writer.add_feed_forward_length(int(shape["hidden"]))
    writer.add_head_count(int(shape["heads"]))
    writer.add_head_count_kv(int(shape["kv_heads"]))
    writer.add_layer_norm_rms_eps(float(shape["norm_eps"]))
    writer.add_rope_freq_base(float(shape["rope_base"]))
    writer.add_rope_dimension_count(int(shape["width"] // shape["heads"]))
    writer.add_vocab_size(int(shape["vocabulary"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, tokenizer)
    for name, weight in state["network"].items():
        array = weight.float().numpy()
        writer.add_tensor(name, array.astype(np.float16) if array.ndim == 2 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """Vocabulary, merges, special tokens and chat template."""
    model = json.loads(path.read_text())["model"]
    by_id = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kinds = {**dict.fromkeys(SPECIAL, gguf.TokenType.CONTROL), **dict.fromkeys(MARKERS, gguf.TokenType.USER_DEFINED)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(by_id)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in by_id])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    writer.add_bos_token_id(by_id.index(SPECIAL[0]))
    writer.add_eos_token_id(by_id.index(SPECIAL[1]))
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE_PATH.read_text())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    export(a.checkpoint, a.tokenizer, a.out)
    print(f"{a.out}: {a.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
