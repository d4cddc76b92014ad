"""Average the weights of two checkpoints of one line of training: what each has unlearnt, the other still knows.

Source: Wortsman et al., "Model soups" (2022).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Command line; see models/README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    first, second = (torch.load(path, weights_only=False) for path in a.checkpoint)
    mean = {name: (weight + second["network"][name]) / 2 for name, weight in first["network"].items()}
    torch.save({"shape": second["shape"], "step": second["step"], "network": mean}, a.out)


if __name__ == "__main__":
    main()
