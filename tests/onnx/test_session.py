"""Which providers run a model, and that every number format that edge writes runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edge.errors import InvalidRequest, ModelUnusable
from edge.onnx.session import Session, choose

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_the_best_provider_that_is_there_is_taken_and_the_rest_is_said() -> None:
    assert choose("auto", [TENSORRT, CUDA, CPU]).names == (TENSORRT, CUDA, CPU)
    assert choose("auto", [CUDA, CPU]).names == (CUDA, CPU)
    alone = choose("auto", ["AzureExecutionProvider", CPU])
    assert alone.names == (CPU,) and "no CUDA or TensorRT" in alone.note
    assert choose("cpu", [CUDA, CPU]).names == (CPU,)
    assert choose("cuda", [TENSORRT, CUDA, CPU]).names == (CUDA, CPU)
    with pytest.raises(ModelUnusable, match="install onnxruntime-gpu in place of onnxruntime"):
        choose("cuda", [CPU])


def feeds(rows: int = 2, length: int = 16) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(1).integers(5, 1000, (rows, length))
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}


def quantized(encoder: Path, target: Path, kind: str) -> Path:
    source = str(encoder / "model.onnx")
    if kind == "int8":
        quantize_dynamic(source, str(target))
    elif kind == "int4":
        work = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
        work.process()
        work.model.save_model_to_file(str(target))
    else:
        onnx.save(_with_fp8_weights(onnx.load(source)), str(target))
    return target


def _with_fp8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every matrix as E4M3FN with a DequantizeLinear before its use."""
    matrices = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    nodes, weights = [], []
    for weight in model.graph.initializer:
        if weight.name not in matrices:
            weights.append(weight)
            continue
        values = numpy_helper.to_array(weight)
        scale = np.float32(np.abs(values).max() / 448)
        coded = helper.make_tensor(f"{weight.name}_8", TensorProto.FLOAT8E4M3FN, values.shape, (values / scale).ravel())
        weights += [coded, numpy_helper.from_array(scale, f"{weight.name}_scale")]
        nodes.append(helper.make_node("DequantizeLinear", [coded.name, f"{weight.name}_scale"], [weight.name]))
    nodes += model.graph.node
    graph = helper.make_graph(nodes, "fp8", model.graph.input, model.graph.output, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.02), ("int4", 0.12), ("fp8", 0.05)])
def test_quantized_models_run_and_stay_near_the_original(encoder: Path, tmp_path: Path, kind: str, near: float) -> None:
    exact = Session(encoder / "model.onnx", "cpu", 1).run(feeds(), ["last_hidden_state"])[0]
    coarse = Session(quantized(encoder, tmp_path / "model.onnx", kind), "cpu", 1).run(feeds(), ["last_hidden_state"])[0]
    assert 0 < 1 - (exact * coarse).sum() / (np.linalg.norm(exact) * np.linalg.norm(coarse)) < near


def test_a_file_that_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelUnusable, match="onnxruntime cannot load"):
        Session(tmp_path / "m.onnx", "cpu", 1)


def test_a_token_that_the_model_has_not_is_the_clients_mistake(encoder: Path) -> None:
    session = Session(encoder / "model.onnx", "cpu", 1)
    with pytest.raises(InvalidRequest, match="the model does not take this"):
        session.run({**feeds(), "input_ids": np.full((2, 16), 99_999)}, ["pooler_output"])
    assert session.run(feeds(), ["pooler_output"])[0].shape == (2, 64), "and the next pass is fine"
