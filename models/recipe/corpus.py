"""The training text as token arrays, made ahead of the training by worker processes."""

from __future__ import annotations

import argparse
import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .dialogues import MIXES, dialogue
from .render import SPECIAL, Renderer
from .requests import Speaker

Tokens = NDArray[np.uint16]
Weights = NDArray[np.uint8]


def make_part(job: tuple[int, int, float, str, str]) -> tuple[Tokens, Weights]:
    """(seed, dialogues, share of long ones, tokenizer file, mix) -> tokens [n], weight of each as a target [n]."""
    seed, count, long_share, path, mix = job
    tokenizer = Tokenizer.from_file(path)
    speaker = Speaker(random.Random(seed), evaluation=False)
    renderer = Renderer()
    ids_of = tokenizer.get_vocab()
    begin, end, assistant = (ids_of[t] for t in (SPECIAL[0], SPECIAL[1], SPECIAL[4]))
    tokens: list[int] = []
    weights: list[int] = []
    for _ in range(count):
        made = dialogue(speaker, long_share=long_share, mix=mix)
        ids = [begin, *tokenizer.encode(renderer.text(made.messages, made.tools)).ids]
        speaking = False
        for token in ids:
            weights.append(1 if speaking else 0)
            if token == assistant:
                speaking = True
            elif token == end:
                speaking = False
        tokens += ids
    return np.array(tokens, np.uint16), np.array(weights, np.uint8)


def write(
    path: Path, tokenizer: Path, *, dialogues: int, long_share: float, seed: int, workers: int, mix: str = "base"
) -> int:
    """Write `path`.npz; returns the number of tokens."""
    jobs = [(seed + i, 2000, long_share, str(tokenizer), mix) for i in range(dialogues // 2000)]
    with Pool(workers) as pool:
        parts = pool.map(make_part, jobs, chunksize=1)
    tokens = np.concatenate([t for t, _ in parts])
    np.savez(path, tokens=tokens, weights=np.concatenate([w for _, w in parts]))
    return len(tokens)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=100_000)
    parser.add_argument("--long-share", type=float, default=0.0)
    parser.add_argument("--mix", choices=sorted(MIXES), default="base")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    shape = {"dialogues": a.dialogues, "long_share": a.long_share, "seed": a.seed, "workers": a.workers, "mix": a.mix}
    count = write(a.out, a.tokenizer, **shape)
    print(f"{count:,} tokens")


if __name__ == "__main__":
    main()
