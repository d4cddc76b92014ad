"""Byte-level BPE trained on the generated text, with the split that libllama calls `qwen2` (each digit alone)."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .dialogues import dialogue
from .render import MARKERS, SPECIAL, Renderer
from .requests import Speaker

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(vocabulary: int, *, dialogues: int, seed: int) -> Tokenizer:
    """A tokenizer of exactly `vocabulary` entries, all 256 bytes among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    special += [AddedToken(t, special=False, normalized=False) for t in MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    speaker, renderer = Speaker(random.Random(seed), evaluation=False), Renderer()
    texts = (renderer.text(d.messages, d.tools) for d in (dialogue(speaker, long_share=0.02) for _ in range(dialogues)))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument("--dialogues", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    a = parser.parse_args()
    made = train(a.vocabulary, dialogues=a.dialogues, seed=a.seed)
    made.save(str(a.out))
    print(f"{made.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
