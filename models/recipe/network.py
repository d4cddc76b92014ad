"""The network: a small Llama (RMSNorm, rotary positions, grouped queries, SwiGLU, tied embeddings) in PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes. Every row length is a multiple of 256, so that all quantization types apply."""

    vocabulary: int = 1536
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 768
    context: int = 2048
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    def as_dict(self) -> dict[str, float | int]:
        """For the checkpoint and the GGUF header."""
        return asdict(self)


class _FakeQ4(torch.autograd.Function):
    """Weights rounded as GGML's Q4_0 does: 32 to a block, scale = largest by magnitude / -8. Gradients pass through."""

    @staticmethod
    def forward(_: object, weight: Tensor) -> Tensor:
        blocks = weight.reshape(-1, 32)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = (largest / -8).half().float()
        inverse = torch.where(largest == 0, torch.zeros_like(largest), -8 / largest)
        levels = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
        return (levels * scale).reshape(weight.shape)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


class Linear(nn.Linear):
    """A bias-free matrix that can pretend to be quantized."""

    quantized = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = _FakeQ4.apply(self.weight) if self.quantized else self.weight
        return functional.linear(x, weight)


def rotary(positions: int, head: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, [positions, head/2]."""
    rates = base ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), rates)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of neighbours, as GGML does for the llama architecture. x: [batch, heads, time, head]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s, self.head = s, s.width // s.heads
        self.attn_norm, self.ffn_norm = nn.RMSNorm(s.width, s.norm_eps), nn.RMSNorm(s.width, s.norm_eps)
        self.attn_q, self.attn_output = Linear(s.width, s.width), Linear(s.width, s.width)
        self.attn_k, self.attn_v = (Linear(s.width, s.kv_heads * self.head) for _ in range(2))
        self.ffn_gate, self.ffn_up = (Linear(s.width, s.hidden) for _ in range(2))
        self.ffn_down = Linear(s.hidden, s.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        n = self.attn_norm(x)
        q = rotate(self.attn_q(n).view(b, t, self.s.heads, self.head).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(n).view(b, t, self.s.kv_heads, self.head).transpose(1, 2), cos, sin)
        v = self.attn_v(n).view(b, t, self.s.kv_heads, self.head).transpose(1, 2)
        groups = self.s.heads // self.s.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        attended = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + self.attn_output(attended.transpose(1, 2).reshape(b, t, -1))
        n = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(n)) * self.ffn_up(n))


class Network(nn.Module):
    """tokens [batch, time] -> logits [batch, time, vocabulary]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_eps)
        cos, sin = rotary(shape.context, shape.width // shape.heads, shape.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        nn.init.normal_(self.token_embd.weight, std=0.05)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and name != "token_embd.weight":
                nn.init.normal_(
                    weight, std=weight.shape[1] ** -0.5 * (0.3 if "output" in name or "down" in name else 1.0)
                )

    def forward(self, tokens: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Logits, or with targets the weighted mean cross-entropy over positions whose weight is not 0."""
        t = tokens.shape[1]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.cos[:t], self.sin[:t])
        x = self.output_norm(x)
        if targets is None or weights is None:
            return functional.linear(x, self.token_embd.weight)
        chosen = weights.flatten() > 0
        logits = functional.linear(x.flatten(0, 1)[chosen], self.token_embd.weight).float()
        losses = functional.cross_entropy(logits, targets.flatten()[chosen], reduction="none")
        kept = weights.flatten()[chosen]
        return (losses * kept).sum() / kept.sum()

    def quantize_weights(self, on: bool) -> None:
        """Train with the rounding that Q4_0 will do to the matrices; the tied embedding stays, it gets 6 bits."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.quantized = on
