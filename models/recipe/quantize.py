"""F16 GGUF to Q4_0, by libllama. The tied embedding keeps 6 bits, as libllama does for output tensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_cpp import llama_cpp as ll


def quantize(source: Path, out: Path) -> None:
    """Write `out`. Raises RuntimeError when libllama refuses."""
    params = ll.llama_model_quantize_default_params()
    params.ftype = ll.LLAMA_FTYPE_MOSTLY_Q4_0
    status = ll.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    if status != 0:
        raise RuntimeError(f"quantization failed with status {status}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    quantize(a.source, a.out)
    print(f"{a.out}: {a.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
