"""The number formats that a file can be written in, and which of them gain by an importance matrix."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from edge.errors import ModelUnusable

Choice = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One target. `block`: a row's length must be a multiple of it, else libllama takes another type for that tensor."""

    name: str
    about: str
    block: int
    takes_importance: bool
    """Whether libllama's quantizer of this type looks at an importance matrix. Where it does, it helps: docs/bench.md."""
    experts_only: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("q4_0", "4.5 bits a weight; repacked for AVX2 and NEON: the fastest on CPUs", 32, True),
        Kind("q4_k_m", "4.8 bits a weight; closer to the source; for GPUs, or where closeness counts", 256, True),
        Kind("iq4_xs", "4.3 bits a weight; the smallest; slower on CPUs", 256, True),
        Kind("q8_0", "8.5 bits a weight; hardly to be told from the source", 32, False),
        Kind(
            "mxfp4", "4.25 bits a weight for the experts of MoE models, 8.5 for the rest", 32, False, experts_only=True
        ),
    )
}


@dataclass(frozen=True, slots=True)
class OnnxKind:
    """One target for ONNX models. `packages`: what writing it imports beside onnx and onnxruntime."""

    name: str
    about: str
    bits: int
    packages: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    """How many weights may share a scale, the default first; empty: the format has no blocks."""
    calibrated: bool = False
    """Whether a text is read before it is written: the ranges of what is multiplied are fixed then."""


ONNX_KINDS = {
    kind.name: kind
    for kind in (
        OnnxKind(
            "int8-onnx", "8 bits a weight, and what it meets is rounded as it comes: the first to try", 8, ("sympy",)
        ),
        OnnxKind("int4-onnx", "4.5 to 5 bits a weight: the smallest", 4, ("ml_dtypes", "onnx_ir"), blocks=(32, 128)),
        OnnxKind(
            "fp8-onnx",
            "E4M3 on both sides, for GPUs that compute in it; slow on CPUs",
            8,
            ("ml_dtypes",),
            calibrated=True,
        ),
    )
}

_UNQUANTIZED = frozenset({"f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"})


def uses_importance(kind: Kind, choice: Choice) -> bool:
    """Whether an importance matrix is to be measured. `on` has no effect on kinds that do not look at one."""
    return choice != "off" and kind.takes_importance


def quantized_types(types: Collection[str]) -> list[str]:
    """Those of the number formats that have lost something already."""
    return sorted({name.lower() for name in types} - _UNQUANTIZED)


def check(kind: Kind, *, source: str, experts: int, types: Collection[str], allow_requantize: bool) -> None:
    """Raise ModelUnusable if the source must not be made into this. `types` are its tensors' number formats."""
    if kind.experts_only and not experts:
        raise ModelUnusable(
            f"{source} has no experts: {kind.name} is for mixture-of-experts models, whose experts' weights it is made for; "
            "everything else would become q8_0. Choose q4_0 or q4_k_m"
        )
    found = quantized_types(types)
    if found and not allow_requantize:
        raise ModelUnusable(
            f"{source} is quantized already ({', '.join(found)}): rounding it a second time adds the second loss to the first; "
            "start from the F16 or BF16 file, or pass --allow-requantize"
        )
