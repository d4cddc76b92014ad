"""Forward passes of decoders in numpy, from the file's own weights: what libllama's vectors and scores are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader

_EPSILON, _ROPE_BASE = 1e-5, 10_000.0


def yes_share(path: Path, tokens: list[int]) -> float:
    """What a reranker of Qwen3's kind says: the share of its first label."""
    head = {tensor.name: tensor.data for tensor in GGUFReader(str(path)).tensors}["cls.output.weight"]
    powers = np.exp(np.array(head, np.float64) @ last_states(path, tokens))
    return float(powers[0] / powers.sum())


def last_states(path: Path, tokens: list[int]) -> np.ndarray:
    """The normed state of the last token: float64[width]."""
    reader = GGUFReader(str(path))
    weights = {tensor.name: np.array(tensor.data, np.float64) for tensor in reader.tensors}
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()

    def number(key: str) -> int:
        return int(reader.fields[f"{architecture}.{key}"].parts[-1][0])

    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    states = weights["token_embd.weight"][tokens]
    size = states.shape[1] // heads
    for layer in range(number("block_count")):
        at = f"blk.{layer}."
        inner = _normed(states, weights[at + "attn_norm.weight"])
        query, key, value = (
            (inner @ weights[f"{at}attn_{part}.weight"].T).reshape(len(tokens), -1, size) for part in "qkv"
        )
        if architecture == "qwen3":
            query, key = (
                _normed(query, weights[at + "attn_q_norm.weight"]),
                _normed(key, weights[at + "attn_k_norm.weight"]),
            )
            query, key = _turned_halves(query), _turned_halves(key)
        else:
            query, key = _turned(query), _turned(key)
        key, value = (np.repeat(part, heads // kv_heads, axis=1) for part in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(size)
        scores += np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(len(tokens), -1)
        states = states + mixed @ weights[at + "attn_output.weight"].T
        inner = _normed(states, weights[at + "ffn_norm.weight"])
        gate = inner @ weights[at + "ffn_gate.weight"].T
        wide = gate / (1 + np.exp(-gate)) * (inner @ weights[at + "ffn_up.weight"].T)
        states = states + wide @ weights[at + "ffn_down.weight"].T
    last: np.ndarray = _normed(states, weights["output_norm.weight"])[-1]
    return last


def _normed(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + _EPSILON) * scale


def _turned(values: np.ndarray) -> np.ndarray:
    """Rotary places: pairs of neighbours, as this architecture's files have them. [tokens, heads, size]."""
    tokens, _, size = values.shape
    angles = np.outer(np.arange(tokens), _ROPE_BASE ** (-np.arange(0, size, 2) / size))[:, None, :]
    even, odd = values[..., 0::2], values[..., 1::2]
    out = np.empty_like(values)
    out[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return out


def _turned_halves(values: np.ndarray) -> np.ndarray:
    """The same with the first half of a head against the second."""
    half = values.shape[-1] // 2
    pairs = np.stack([values[..., :half], values[..., half:]], axis=-1).reshape(values.shape)
    turned = _turned(pairs)
    return np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)
