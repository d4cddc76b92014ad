"""Looking at ONNX models: whether one may be quantized, what of it would be, and what number formats it holds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper

from edge.errors import ConfigurationError, ModelUnusable
from edge.quantize.report import File

MOST_BYTES = (2 << 30) - (16 << 20)
"""A protobuf message ends at 2 GiB, and the quantizers hold the model as one."""
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

_FLOATS = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "f64",
}
_ROUNDED = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
}
_PACKED = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
"""Nodes whose weights are packed into bytes, and which input that is; what else they take are scales and zero points."""
_ROUNDING = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
    }
    | {"MatMulIntegerToFloat", "MatMulBnb4", "QAttention", "QEmbedLayerNormalization", "QGemm", *_PACKED}
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Names of the matrices that can be rounded: those that something is multiplied with, and those that rows are taken of."""

    products: frozenset[str]
    tables: frozenset[str]


def load(path: Path, target: Path | None = None) -> tuple[onnx.ModelProto, int]:
    """A model with all its weights, and the bytes of its files. Raises ModelUnusable, or ConfigurationError if one of these files
    is what will be written."""
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None
    except DecodeError:
        raise ModelUnusable(f"{path} is no ONNX model, or a damaged one; fetch it again") from None
    if not model.graph.node or not model.graph.output:
        raise ModelUnusable(f"{path} is no ONNX model, or a damaged one; fetch it again")
    size = path.stat().st_size
    for name in sorted(_beside(model)):
        other = path.parent / name
        if not other.is_file():
            raise ModelUnusable(f"{path} keeps weights in {name}, which is not beside it; get both")
        if target is not None and target.exists() and other.samefile(target):
            raise ConfigurationError(f"{target} holds the weights of {path}; write to another name")
        size += other.stat().st_size
    if size > MOST_BYTES:
        raise ModelUnusable(
            f"{path} has {size / 1e9:.2f} GB; a model is quantized as one protobuf message, which ends at "
            f"{MOST_BYTES / 1e9:.2f} GB: take a smaller model"
        )
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelUnusable(f"the weights beside {path} cannot be read: {error}") from None
    return model, size


def _beside(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold weights outside of the model's own."""
    outside = (tensor for tensor in model.graph.initializer if external_data_helper.uses_external_data(tensor))
    return {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}


def examine(model: onnx.ModelProto, source: str) -> Weights:
    """What of it can be rounded. Raises ModelUnusable if it must not be, or if there is nothing."""
    rounded = sorted({n.op_type for n in model.graph.node if n.op_type in _ROUNDING or n.op_type.startswith("QLinear")})
    if rounded:
        raise ModelUnusable(
            f"{source} is quantized already ({', '.join(rounded)}): rounding it a second time adds the second loss to the first; "
            "start from the FP32 model"
        )
    floats = {t.name: t for t in model.graph.initializer if t.data_type in _FLOATS and len(t.dims) == 2}
    other = sorted({_FLOATS[t.data_type] for t in floats.values() if t.data_type != TensorProto.FLOAT})
    if other:
        raise ModelUnusable(f"{source} has weights in {', '.join(other)}; start from the FP32 model")
    found = Weights(
        frozenset(n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in floats),
        frozenset(n.input[0] for n in model.graph.node if n.op_type == "Gather" and n.input[0] in floats),
    )
    if not found.products:
        raise ModelUnusable(
            f"{source} multiplies nothing with constant matrices (MatMul): these formats are for "
            "transformers, and would change nothing"
        )
    return found


def require_tokens(model: onnx.ModelProto, source: str) -> None:
    """Raise ModelUnusable for a model that cannot be tried out with sentences."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    if "input_ids" not in inputs or not set(inputs) <= set(TOKEN_INPUTS):
        raise ModelUnusable(
            f"{source} reads {', '.join(inputs)}, and what quantizing costs is measured on models that read tokens "
            f"({', '.join(TOKEN_INPUTS)}); --no-report writes int8-onnx and int4-onnx all the same"
        )


def vocabulary(model: onnx.ModelProto) -> int | None:
    """Rows of the table that `input_ids` pick from; None where that cannot be seen."""
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found = (n.input[0] for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    return next((rows[name] for name in found if name in rows), None)


def parameters(model: onnx.ModelProto) -> int:
    """How many weights a model has that is not quantized."""
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in _FLOATS)


def described(path: str, size: int, model: onnx.ModelProto, weights: int) -> File:
    """A model's file for the report. `weights`: how many the source has."""
    held = sum(_stored_bytes(tensor) for tensor in model.graph.initializer)
    return File(path, size, round(8 * held / weights, 3), dict(Counter(_formats(model)).most_common()))


def _stored_bytes(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _formats(model: onnx.ModelProto) -> list[str]:
    """The number format of each matrix."""
    packed, aside = dict[str, str](), set[str]()
    for node in model.graph.node:
        if (place := _PACKED.get(node.op_type)) is not None:
            bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
            packed[node.input[place]] = f"int{bits}"
            aside.update(name for index, name in enumerate(node.input) if index != place)
    known = {**_FLOATS, **_ROUNDED}
    matrices = (t for t in model.graph.initializer if len(t.dims) >= 2 and t.data_type in known and t.name not in aside)
    return [packed.get(tensor.name, known[tensor.data_type]) for tensor in matrices]
