"""One ONNX model in memory. The only module that imports onnxruntime (a lint holds it to that)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import onnxruntime as ort
except ModuleNotFoundError:
    ort = None

from edge.errors import DoesNotFit, EngineFault, InvalidRequest, ModelUnusable
from edge.onnx.datatypes import BYTES, strings, with_lengths
from edge.onnx.messages import Provider, Tensor, TensorSpec
from edge.onnx.pulse import PassStopped

Array = npt.NDArray[Any]

_DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}
_PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_SEVERE_ONLY = 3
_NO_MEMORY = ("bad allocation", "bad_alloc", "failed to allocate", "out of memory", "cudaerrormemoryallocation")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which providers are asked for, best first, and why it is not the best there could be."""

    names: tuple[str, ...]
    note: str


def choose(wanted: Provider, available: Sequence[str]) -> Choice:
    """Execution providers, by what there is. Raises ModelUnusable if the one that is wanted is not there."""
    order = ("tensorrt", "cuda", "cpu") if wanted == "auto" else (wanted, "cuda", "cpu")
    names = tuple(dict.fromkeys(_PROVIDERS[key] for key in order if _PROVIDERS[key] in available))
    if wanted != "auto" and _PROVIDERS[wanted] not in available:
        raise ModelUnusable(
            f"onnx.provider is {wanted}, and this onnxruntime has {', '.join(available)}; install onnxruntime-gpu in place of "
            "onnxruntime, or set onnx.provider to auto"
        )
    if wanted == "cpu":
        return Choice((_PROVIDERS["cpu"],), "")
    if names[0] == _PROVIDERS["cpu"]:
        return Choice(names, "this onnxruntime has no CUDA or TensorRT provider")
    return Choice(names, "")


class Session:
    """Owner of one model. Several threads may run it; `stop` is for one that runs alone."""

    def __init__(self, path: Path, provider: Provider, threads: int) -> None:
        """Raises ModelUnusable, DoesNotFit."""
        if ort is None:
            raise ModelUnusable(
                "onnxruntime is not installed: pip install 'edge-node[onnx]', or 'edge-node[onnx-gpu]' on a machine with CUDA"
            )
        choice = choose(provider, ort.get_available_providers())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERE_ONLY
        # A thread that spins takes the core from the language model beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(choice.names))
        except Exception as error:  # its errors have no common base but this
            if _is_memory(error):
                raise DoesNotFit(f"memory is exhausted while {path} is read: {_said(error)}") from None
            raise ModelUnusable(f"onnxruntime cannot load {path}: {_said(error)}") from None
        self.provider = self._session.get_providers()[0]
        fell_back = self.provider != choice.names[0]
        self.note = f"{choice.names[0]} could not be set up on this machine" if fell_back else choice.note
        self.library = f"onnxruntime {ort.__version__}"
        self.inputs = [_spec(found) for found in self._session.get_inputs()]
        self.outputs = [_spec(found) for found in self._session.get_outputs()]
        self._run_options = ort.RunOptions()
        texts = {spec.name for spec in (*self.inputs, *self.outputs) if spec.datatype == BYTES}
        self._texts = frozenset(texts)
        """Inputs and outputs of strings: the library's bindings hold numbers only."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """One pass. Raises InvalidRequest for what the model does not take, PassStopped, EngineFault, MemoryError."""
        self._run_options = options = ort.RunOptions()  # a new one: `stop` is for this pass
        try:
            if self._texts & {*feeds, *outputs}:
                return list(self._session.run(list(outputs), dict(feeds), options))
            binding = self._session.io_binding()
            for name, values in feeds.items():
                binding.bind_cpu_input(name, values)
            for name in outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding, options)
            return list(binding.copy_outputs_to_cpu())
        except Exception as error:
            if options.terminate:
                raise PassStopped from None
            if _is_memory(error):
                raise MemoryError(_said(error)) from None
            if _is_about_input(error):
                raise InvalidRequest(f"the model does not take this: {_said(error)}", param="inputs") from None
            raise EngineFault(f"onnxruntime failed: {_said(error)}") from None

    def stop(self) -> None:
        """End the pass that runs, before the graph's next node; for another thread."""
        self._run_options.terminate = True


def to_array(tensor: Tensor) -> Array:
    """A tensor that the front has checked, as an array over its bytes."""
    if tensor.datatype == BYTES:
        texts = [text.decode("utf-8", "replace") for text in strings(tensor.data)]
        return np.array(texts, dtype=object).reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype=_DTYPES[tensor.datatype]).reshape(tensor.shape)


def to_tensor(spec: TensorSpec, values: Array) -> Tensor:
    """An output as it crosses the pipe."""
    if spec.datatype == BYTES:
        data = with_lengths([str(text).encode() for text in values.ravel()])
    else:
        data = np.ascontiguousarray(values).tobytes()
    return Tensor(spec.name, spec.datatype, list(values.shape), data)


def dtype_of(spec: TensorSpec) -> type:
    """The array type of an input or output."""
    return _DTYPES[spec.datatype]


def _spec(found: Any) -> TensorSpec:
    datatype = _TYPES.get(found.type)
    if datatype is None:
        raise ModelUnusable(f"the model's {found.name!r} is {found.type}, which no client can send or read")
    axes = list(found.shape)
    shape = [axis if isinstance(axis, int) else -1 for axis in axes]
    return TensorSpec(found.name, datatype, shape, [axis if isinstance(axis, str) else "" for axis in axes])


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY)


def _is_about_input(error: Exception) -> bool:
    """A node of the graph refused what it was given, such as an index beyond a table: no fault of the machine's."""
    words = str(error)
    refused = type(error).__name__ == "InvalidArgument" or "Non-zero status code returned while running" in words
    return refused and not any(device in words for device in ("CUDA", "CUDNN", "CUBLAS", "TensorRT"))


def _said(error: Exception) -> str:
    """The library's own words, in one line of bearable length."""
    return " ".join(str(error).split())[:300]
