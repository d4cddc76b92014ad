"""libllama's quantizer: what it would do with a file, and doing it."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as ll

from edge.engine.llama.library import Library
from edge.errors import ConfigurationError, EdgeError, ModelUnusable

_FTYPES = {
    "q4_0": ll.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": ll.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "iq4_xs": ll.LLAMA_FTYPE_MOSTLY_IQ4_XS,
    "q8_0": ll.LLAMA_FTYPE_MOSTLY_Q8_0,
    "mxfp4": ll.LLAMA_FTYPE_MOSTLY_MXFP4_MOE,
}

_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+- \[[\d, ]+\], type =\s*(\w+),")
_SIZE = re.compile(r"size =\s*[\d.]+ MiB ->\s*[\d.]+ MiB \((\w+)\)")
_TOTAL = re.compile(r"(model|quant) size\s+=\s*([\d.]+) MiB")
_FALLBACK = re.compile(r"warning: (\S+)\s+- ncols\s+(\d+) not divisible by\s+\d+ \(required for type\s+(\w+)\)")
_INSTEAD = re.compile(r"falling back to\s+(\w+)")
_FAILURE = re.compile(r"failed to quantize: (.+)")
_MIB = 1 << 20
_BUFFER_BYTES = 512 * _MIB
"""Rows of one tensor that are held in memory at a time; libllama would take all of them."""


@dataclass(frozen=True, slots=True)
class FallBack:
    """A tensor whose rows do not fit the type that it should have got."""

    tensor: str
    columns: int
    wanted: str
    got: str


@dataclass(slots=True)
class Outcome:
    """What libllama said about its work. Sizes in bytes, of all tensors, rounded by the library to 0.01 MiB."""

    types_before: dict[str, str] = field(default_factory=dict)
    """By tensor: its number format in the source, in lower case."""
    types_after: dict[str, str] = field(default_factory=dict)
    """By tensor: what it becomes; only a dry run tells."""
    fall_backs: list[FallBack] = field(default_factory=list)
    source_bytes: int = 0
    result_bytes: int = 0
    complaint: str = ""


class QuantizerLog:
    """Reads what libllama writes while it quantizes. `on_share` is told how much is done, 0..1."""

    def __init__(self, on_share: Callable[[float], None] | None = None) -> None:
        self.outcome = Outcome()
        self._on_share = on_share
        self._open: tuple[str, int, str] | None = None
        self._tensor = ""

    def line(self, text: str) -> None:
        """One piece of the log; a line may come in several."""
        outcome = self.outcome
        if found := _TENSOR.search(text):
            self._tensor = found[3]
            outcome.types_before[found[3]] = outcome.types_after[found[3]] = found[4].lower()
            if self._on_share is not None:
                self._on_share((int(found[1]) - 1) / int(found[2]))
        elif (found := _SIZE.search(text)) and self._tensor:
            outcome.types_after[self._tensor] = found[1].lower()
        if found := _FALLBACK.search(text):
            self._open = (found[1], int(found[2]), found[3].lower())
        if (found := _INSTEAD.search(text)) and self._open is not None:
            outcome.fall_backs.append(FallBack(*self._open, found[1].lower()))
            self._open = None
        if found := _TOTAL.search(text):
            size = int(float(found[2]) * _MIB)
            if found[1] == "model":
                outcome.source_bytes = size
            else:
                outcome.result_bytes = size
        if found := _FAILURE.search(text):
            outcome.complaint = found[1].strip()


def quantize(
    library: Library,
    source: Path,
    out: Path,
    kind: str,
    *,
    threads: int,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    requantize: bool = False,
    dry_run: bool = False,
    on_share: Callable[[float], None] | None = None,
) -> Outcome:
    """Write `source` as `kind` to `out`, or with `dry_run` only find out what that would be.

    Raises ModelUnusable in libllama's words, ConfigurationError if `out` cannot be written.
    """
    log = QuantizerLog(on_share)
    params = ll.llama_model_quantize_default_params()
    params.ftype = _FTYPES[kind]
    params.nthread = threads
    params.allow_requantize = requantize
    params.dry_run = dry_run
    params.max_buf_size = _BUFFER_BYTES
    table = _table(importance) if importance else None
    if table is not None:
        params.imatrix = table
    with library.heard(log.line):
        status = ll.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    if status != 0:
        raise _failure(source, out, log.outcome.complaint or f"libllama refuses it with status {status}")
    return log.outcome


def _failure(source: Path, out: Path, complaint: str) -> EdgeError:
    """libllama says of a full disk only that a stream has failed."""
    if "basic_ios" in complaint or "iostream" in complaint:
        free = shutil.disk_usage(out.parent).free
        return ConfigurationError(
            f"cannot write into {out.parent}, which has {free / 1e6:,.0f} MB left: the disk is full, or a quota reached"
        )
    return ModelUnusable(f"{source}: {complaint}")


def _table(importance: Mapping[str, npt.NDArray[np.float32]]) -> ctypes.Array[ll.llama_model_imatrix_data]:
    """An array that ends with an entry without a name, as libllama expects; the values stay where they are."""
    table = (ll.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(table, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = ctypes.cast(values.ctypes.data, ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return table  # type: ignore[no-any-return]
