"""INT8 and INT4 by onnxruntime's own quantizers."""

from __future__ import annotations

from pathlib import Path

import onnx

_COMPUTE_IN_INT8 = 4  # MatMulNBits' `accuracy_level`: what is multiplied is rounded to eight bits, as CPUs are fast at


def write_int8(model: onnx.ModelProto, draft: Path) -> None:
    """Matrices in eight bits, one scale a column; what is multiplied with them gets its scale while the model runs.

    Columns use seven of the eight bits: CPUs without VNNI add two products in sixteen bits, and would cut off the sum of full
    ones. The library writes the model twice into the directory for temporary files on its way.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        draft,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def write_int4(model: onnx.ModelProto, draft: Path, block: int) -> None:
    """Matrices in four bits, one scale and one zero point for `block` weights of a column. Changes the model."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    settings = DefaultWeightOnlyQuantConfig(
        block_size=block,
        is_symmetric=False,
        accuracy_level=_COMPUTE_IN_INT8,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(draft))
