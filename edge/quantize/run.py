"""The parent's half: what can be refused is refused here, the rest is done by a child that may die without taking us along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edge.errors import ConfigurationError
from edge.quantize.gguf_job import gguf_job
from edge.quantize.kinds import KINDS, ONNX_KINDS
from edge.quantize.onnx.job import onnx_job
from edge.quantize.report import Report
from edge.quantize.supervise import draft_beside, supervise
from edge.quantize.wish import Wish
from edge.registry.manifest import Manifest
from edge.registry.source import writable

_GGUF_MAGIC = b"GGUF"

__all__ = ["Wish", "quantize"]


def quantize(
    wish: Wish, manifests: Mapping[str, tuple[Manifest, Path]], on_step: Callable[[str, float], None]
) -> Report:
    """Write the file, and say what it cost. `manifests`: those that this node knows, by name.

    Raises EdgeError with the reason; then there is no half file, and what lay under the target's name before is untouched,
    unless the message says that the file was written and only the report failed.
    """
    for path in (wish.source, wish.target):
        writable(str(path))
    _check_pairing(wish)
    with draft_beside(wish.target) as draft:
        job = onnx_job(wish, draft) if wish.kind in ONNX_KINDS else gguf_job(wish, manifests, draft)
        return supervise(job, on_step)


def _check_pairing(wish: Wish) -> None:
    """Formats of GGUF are for GGUF files, those of ONNX for ONNX files."""
    is_onnx = wish.source.suffix == ".onnx" and not _is_gguf(wish.source)
    wants_onnx = wish.kind in ONNX_KINDS
    if is_onnx and not wants_onnx:
        raise ConfigurationError(
            f"{wish.source} is an ONNX model, and {wish.kind} a format of GGUF files; choose {', '.join(ONNX_KINDS)}"
        )
    if wants_onnx and _is_gguf(wish.source):
        raise ConfigurationError(
            f"{wish.source} is a GGUF file, and {wish.kind} a format of ONNX models; choose {', '.join(KINDS)}"
        )
    other = ".gguf" if wants_onnx else ".onnx"
    if wish.target.suffix == other:
        raise ConfigurationError(
            f"{wish.target} would hold {'an ONNX model' if wants_onnx else 'a GGUF file'} under a name that ends in {other}; "
            "choose another name"
        )


def _is_gguf(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:  # whoever reads it says so
        return False
