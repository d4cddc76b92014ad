"""Small files with random weights of models whose memory can be neither cut nor copied: a Mamba, and a hybrid with attention."""

from pathlib import Path

import gguf
import numpy as np

from bench.make_gguf import add_tokenizer

WIDTH, VOCABULARY = 64, 1024
_INNER, _KERNEL, _STATE, _STEPS = 128, 4, 16, 4
_HEADS, _HEAD, _HIDDEN = 4, 16, 128


def write_mamba(path: Path) -> None:
    file = _File(path, "mamba", layers=2)
    file.writer.add_feed_forward_length(0)
    file.writer.add_head_count(0)
    file.writer.add_ssm_conv_kernel(_KERNEL)
    file.writer.add_ssm_inner_size(_INNER)
    file.writer.add_ssm_state_size(_STATE)
    file.writer.add_ssm_time_step_rank(_STEPS)
    file.ones("output_norm", WIDTH)
    for layer in ("blk.0.", "blk.1."):
        file.ones(layer + "attn_norm", WIDTH)
        file.matrix(layer + "ssm_in", 2 * _INNER, WIDTH)
        file.matrix(layer + "ssm_conv1d", _INNER, _KERNEL)
        file.add(layer + "ssm_conv1d.bias", np.zeros(_INNER, np.float32))
        file.matrix(layer + "ssm_x", _STEPS + 2 * _STATE, _INNER)
        file.matrix(layer + "ssm_dt", _INNER, _STEPS)
        file.add(layer + "ssm_dt.bias", np.zeros(_INNER, np.float32))
        file.add(layer + "ssm_a", -np.abs(file.drawn(_INNER, _STATE)))
        file.add(layer + "ssm_d", np.ones(_INNER, np.float32))
        file.matrix(layer + "ssm_out", WIDTH, _INNER)
    file.write()


def write_lfm2(path: Path) -> None:
    file = _File(path, "lfm2", layers=2)
    file.writer.add_feed_forward_length(_HIDDEN)
    file.writer.add_head_count(_HEADS)
    file.writer.add_head_count_kv([0, _HEADS])
    file.writer.add_shortconv_l_cache(3)
    file.ones("token_embd_norm", WIDTH)
    for layer in ("blk.0.", "blk.1."):
        file.ones(layer + "attn_norm", WIDTH)
        file.ones(layer + "ffn_norm", WIDTH)
        file.matrix(layer + "ffn_gate", _HIDDEN, WIDTH)
        file.matrix(layer + "ffn_up", _HIDDEN, WIDTH)
        file.matrix(layer + "ffn_down", WIDTH, _HIDDEN)
    file.matrix("blk.0.shortconv.conv", WIDTH, 3)
    file.matrix("blk.0.shortconv.in_proj", 3 * WIDTH, WIDTH)
    file.matrix("blk.0.shortconv.out_proj", WIDTH, WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        file.matrix(f"blk.1.{name}", WIDTH, WIDTH)
    file.ones("blk.1.attn_q_norm", _HEAD)
    file.ones("blk.1.attn_k_norm", _HEAD)
    file.write()


class _File:
    def __init__(self, path: Path, architecture: str, *, layers: int) -> None:
        self.writer, self._rng = gguf.GGUFWriter(str(path), architecture), np.random.default_rng(0)
        self.writer.add_context_length(2048)
        self.writer.add_embedding_length(WIDTH)
        self.writer.add_block_count(layers)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self.writer.add_rope_freq_base(10_000.0)
        self.writer.add_vocab_size(VOCABULARY)
        add_tokenizer(self.writer, VOCABULARY, "qwen2")
        self.matrix("token_embd", VOCABULARY, WIDTH)

    def drawn(self, rows: int, columns: int) -> np.ndarray:
        return self._rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)

    def add(self, name: str, array: np.ndarray) -> None:
        self.writer.add_tensor(name, array)

    def matrix(self, name: str, rows: int, columns: int) -> None:
        self.add(f"{name}.weight", self.drawn(rows, columns))

    def ones(self, name: str, columns: int) -> None:
        self.add(f"{name}.weight", np.ones(columns, np.float32))

    def write(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
