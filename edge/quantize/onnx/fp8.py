"""FP8 (E4M3) on both sides of every product, as QuantizeLinear and DequantizeLinear, which TensorRT takes for FP8 arithmetic.

onnxruntime has a writer for this too. It takes its scales from the spread of the values, which cuts off the few large ones
that transformers live on: all-MiniLM came out with a mean cosine of 0.66. Here the largest value that the calibration met
becomes the largest that E4M3 holds; small ones lose nothing by that, since the format has an exponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from edge.errors import EngineFault
from edge.quantize.onnx.graph import Weights

_LARGEST = 448.0  # that E4M3FN holds
_OPSET, _IR = 19, 9  # the first that have FP8
_ZERO = "fp8_zero"


def prepare(model: onnx.ModelProto) -> None:
    """Bring the model to an opset that has FP8. Raises EngineFault."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if versions.get("", _OPSET) < _OPSET:
        try:
            model.CopyFrom(version_converter.convert_version(model, _OPSET))
        except Exception as error:  # the converter raises whatever its C++ does
            raise EngineFault(f"the model cannot be brought to opset {_OPSET}, which FP8 needs: {error}") from None
    model.ir_version = max(model.ir_version, _IR)


def multiplied(model: onnx.ModelProto, weights: Weights) -> list[str]:
    """Names of the values that meet a constant matrix."""
    products = (n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights.products)
    return list(dict.fromkeys(node.input[0] for node in products))


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model as it would be if it also gave inner values."""
    outputs = model.graph.output
    count, known = len(outputs), {output.name for output in outputs}
    outputs.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known)
    try:
        data: bytes = model.SerializeToString()
        return data
    finally:
        del outputs[count:]


def write_fp8(model: onnx.ModelProto, draft: Path, weights: Weights, largest: Mapping[str, float]) -> None:
    """Changes the model. `largest`: of each of `multiplied`, the greatest absolute value that was met."""
    Fp8Writer(model, weights, largest).rewrite()
    onnx.save(model, str(draft))


class Fp8Writer:
    """One model on its way. `rewrite` once."""

    def __init__(self, model: onnx.ModelProto, weights: Weights, largest: Mapping[str, float]) -> None:
        self._graph, self._weights, self._largest = model.graph, weights, largest
        self._nodes: list[onnx.NodeProto] = []
        self._rounded: dict[str, str] = {}
        """By the name of a value or weight, the name of its rounded double."""

    def rewrite(self) -> None:
        """In place."""
        graph = self._graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        graph.initializer.append(helper.make_tensor(_ZERO, TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True))
        for node in graph.node:
            if node.op_type == "MatMul" and node.input[1] in self._weights.products:
                node.input[0] = self._value(node.input[0])
                node.input[1] = self._weight(constants[node.input[1]])
            elif node.op_type == "Gather" and node.input[0] in self._weights.tables:
                node.input[0] = self._weight(constants[node.input[0]])
            self._nodes.append(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        left = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(left)

    def _value(self, name: str) -> str:
        if name not in self._rounded:
            scale = self._scale(name, self._largest[name])
            self._nodes.append(helper.make_node("QuantizeLinear", [name, scale, _ZERO], [f"{name}_fp8"], f"{name}_fp8"))
            self._rounded[name] = self._widened(name, scale)
        return self._rounded[name]

    def _weight(self, tensor: TensorProto) -> str:
        name = tensor.name
        if name not in self._rounded:
            values = numpy_helper.to_array(tensor)
            largest = float(np.abs(values).max(initial=0.0))
            small = (values / np.float32(_unit(largest))).clip(-_LARGEST, _LARGEST).astype(ml_dtypes.float8_e4m3fn)
            data = small.tobytes()
            self._graph.initializer.append(
                helper.make_tensor(f"{name}_fp8", TensorProto.FLOAT8E4M3FN, values.shape, data, raw=True)
            )
            self._rounded[name] = self._widened(name, self._scale(name, largest))
        return self._rounded[name]

    def _widened(self, name: str, scale: str) -> str:
        wide = f"{name}_from_fp8"
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}_fp8", scale, _ZERO], [wide], wide))
        return wide

    def _scale(self, name: str, largest: float) -> str:
        scale = f"{name}_fp8_scale"
        self._graph.initializer.append(numpy_helper.from_array(np.array(_unit(largest), np.float32), scale))
        return scale


def _unit(largest: float) -> float:
    """What 1 in FP8 stands for."""
    return largest / _LARGEST if largest > 0.0 else 1.0
