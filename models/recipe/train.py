"""Train the network: short rows first, then rounding-aware, at the end rows of the full context. Resumable."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .network import Network, Shape


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by a Newton-Schulz iteration, for matrices (Jordan et al., 2024)."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * 0.01)
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    x = x.float()
    return x.T if g.shape[0] > g.shape[1] else x


class Rows:
    """Cuts a corpus into rows of equal length, each beginning at a random place; deterministic by step."""

    def __init__(self, path: Path, length: int, prompt_weight: float) -> None:
        data = np.load(path)
        self.tokens, self.weights = data["tokens"], data["weights"]
        self.length, self.prompt_weight = length, prompt_weight
        self.count = (len(self.tokens) - 1) // length

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, the tokens that follow them, and the weight of each of these; all [size, length]."""
        order = np.random.default_rng(step * size // max(1, self.count)).permutation(self.count)
        picked = [order[(step * size + i) % self.count] * self.length for i in range(size)]
        cut = np.stack([self.tokens[p : p + self.length + 1] for p in picked]).astype(np.int64)
        weight = np.stack([self.weights[p + 1 : p + self.length + 1] for p in picked]).astype(np.float32)
        weight = np.where(weight > 0, 1.0, self.prompt_weight).astype(np.float32)
        return torch.from_numpy(cut[:, :-1]), torch.from_numpy(cut[:, 1:]), torch.from_numpy(weight)


def schedule(step: int, total: int, warm: int = 60) -> float:
    """Share of the peak learning rate: warm-up, flat, then linear down to 2 % over the last 45 %."""
    if step < warm:
        return (step + 1) / warm
    down = int(total * 0.55)
    return 1.0 if step < down else max(0.02, (total - step) / (total - down))


def save(path: Path, network: Network, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Atomic checkpoint."""
    state = {
        "shape": network.shape.as_dict(),
        "step": step,
        "network": network.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    """Command line; see models/README.md for the phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from this checkpoint's weights, with a fresh schedule")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--prompt-weight", type=float, default=0.05)
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument(
        "--quantized-from", type=float, default=0.7, help="share of the steps after which weights are rounded"
    )
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    network = Network(Shape(vocabulary=a.vocabulary))
    optimizers = optimizers_for(network, a)
    start = 0
    if a.checkpoint.exists():
        state = torch.load(a.checkpoint, weights_only=False)
        network.load_state_dict(state["network"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        start = state["step"]
    elif a.init:
        network.load_state_dict(torch.load(a.init, weights_only=False)["network"])
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, from step {start}", flush=True)
    rows = Rows(a.corpus, a.length, a.prompt_weight)
    run(network, optimizers, rows, a, start)


def optimizers_for(network: Network, a: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and n != "token_embd.weight"]
    others = [p for n, p in network.named_parameters() if not (p.ndim == 2 and n != "token_embd.weight")]
    adam = torch.optim.AdamW(others, a.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, a.muon_lr), adam]


def run(
    network: Network, optimizers: list[torch.optim.Optimizer], rows: Rows, a: argparse.Namespace, start: int
) -> None:
    """The steps, with a line and a checkpoint now and then."""
    begun, mean = time.monotonic(), math.nan
    peaks = (a.muon_lr, a.adam_lr)
    for step in range(start, a.steps):
        network.quantize_weights(step >= a.steps * a.quantized_from)
        share = schedule(step, a.steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        tokens, targets, weights = rows.batch(step, a.batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(tokens, targets, weights)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if math.isnan(mean) else 0.97 * mean + 0.03 * loss.item()
        if step % 20 == 0:
            speed = (step + 1 - start) * a.batch * a.length / (time.monotonic() - begun)
            left = (a.steps - step) * a.batch * a.length / speed / 60
            print(f"step {step}/{a.steps} loss {mean:.4f} {speed:,.0f} tokens/s, {left:.1f} min left", flush=True)
        if step % 100 == 99 or step + 1 == a.steps:
            save(a.checkpoint, network, optimizers, step + 1)


if __name__ == "__main__":
    main()
