"""A small Mamba with random weights: a model whose memory can be neither cut nor copied."""

from pathlib import Path

import gguf
import numpy as np

from bench.make_gguf import add_tokenizer

LAYERS, WIDTH, INNER, KERNEL, STATE, STEPS, VOCABULARY = 2, 64, 128, 4, 16, 4, 1024


def write_mamba(path: Path) -> None:
    writer, rng = gguf.GGUFWriter(str(path), "mamba"), np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)

    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(STEPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    add_tokenizer(writer, VOCABULARY, "qwen2")
    writer.add_tensor("token_embd.weight", matrix(VOCABULARY, WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        writer.add_tensor(at + "attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(at + "ssm_in.weight", matrix(2 * INNER, WIDTH))
        writer.add_tensor(at + "ssm_conv1d.weight", matrix(INNER, KERNEL))
        writer.add_tensor(at + "ssm_conv1d.bias", np.zeros(INNER, np.float32))
        writer.add_tensor(at + "ssm_x.weight", matrix(STEPS + 2 * STATE, INNER))
        writer.add_tensor(at + "ssm_dt.weight", matrix(INNER, STEPS))
        writer.add_tensor(at + "ssm_dt.bias", np.zeros(INNER, np.float32))
        writer.add_tensor(at + "ssm_a", -np.abs(matrix(INNER, STATE)))
        writer.add_tensor(at + "ssm_d", np.ones(INNER, np.float32))
        writer.add_tensor(at + "ssm_out.weight", matrix(WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
