"""What a compute graph's tensors look like from Python.

llama-cpp-python binds no `struct ggml_tensor`. The layout below is that of ggml.h of the version that pyproject.toml ties us to.
It is not trusted: `operations` builds two products with the library itself and reads them back through it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as ll

from edge.errors import EngineFault

_lib = ll._lib

_DIMENSIONS, _SOURCES, _PARAMETER_BYTES, _NAME_BYTES = 4, 10, 64, 64
_OBJECT_BYTES = 32
"""ggml's own bookkeeping in front of each tensor."""
_F32, _I32 = 0, 26
_PROBE_BYTES = 1 << 20


class _Tensor(ctypes.Structure):
    """struct ggml_tensor."""


_Pointer = ctypes.POINTER(_Tensor)
_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _DIMENSIONS),
    ("nb", ctypes.c_size_t * _DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * (_PARAMETER_BYTES // 4)),
    ("flags", ctypes.c_int32),
    ("src", ctypes.c_void_p * _SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _NAME_BYTES),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A prototype of our own: the ones that others set on the same library stay as they are."""
    address = ctypes.cast(getattr(_lib, name), ctypes.c_void_p).value
    return ctypes.CFUNCTYPE(result, *arguments)(address or 0)


_read = _function("ggml_backend_tensor_get", None, _Pointer, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_op_name = _function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)


class Node:
    """A view of one tensor. Valid only while libllama evaluates the graph that it belongs to."""

    __slots__ = ("_raw",)

    def __init__(self, address: int) -> None:
        self._raw = _Tensor.from_address(address)

    @property
    def op(self) -> int:
        """Number of the operation; compare with those that `operations` gives."""
        return int(self._raw.op)

    @property
    def name(self) -> str:
        """Name without the device's part, as in `CUDA0#blk.0.ffn_up.weight#0`."""
        name = bytes(self._raw.name).decode("utf-8", "replace")
        return name.split("#")[1] if name.count("#") >= 2 else name

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes, the contiguous one first."""
        a, b, c, d = self._raw.ne
        return a, b, c, d

    @property
    def is_float(self) -> bool:
        """Whether it holds float32."""
        return int(self._raw.type) == _F32

    @property
    def is_index(self) -> bool:
        """Whether it holds int32."""
        return int(self._raw.type) == _I32

    def source(self, number: int) -> Node | None:
        """The tensor that goes into it as its `number`-th operand."""
        address = self._raw.src[number]
        return Node(address) if address else None

    def floats(self) -> npt.NDArray[np.float32]:
        """A copy as float32[ne3, ne2, ne1, ne0], wherever it lies and whatever its strides are."""
        return self._copy(np.dtype(np.float32))

    def indices(self) -> npt.NDArray[np.int32]:
        """The same of a tensor of int32."""
        return self._copy(np.dtype(np.int32))

    def _copy(self, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        sizes, strides = list(self._raw.ne), list(self._raw.nb)
        room = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + kind.itemsize
        raw = np.empty(room, np.uint8)
        _read(ctypes.byref(self._raw), raw.ctypes.data, 0, room)
        shape, steps = tuple(reversed(sizes)), tuple(reversed(strides))
        return np.lib.stride_tricks.as_strided(raw.view(np.uint8)[: kind.itemsize].view(kind), shape, steps)


def operations() -> tuple[int, int]:
    """Numbers of the plain product and of the product with chosen experts. Raises EngineFault if the library's tensors are laid
    out otherwise than this module thinks: reading them would give nonsense, or end the process."""
    context = _function("ggml_init", ctypes.c_void_p, _InitParams)(_InitParams(_PROBE_BYTES, None, True))
    try:
        return _probe(context)
    finally:
        _function("ggml_free", None, ctypes.c_void_p)(context)


def _probe(context: int) -> tuple[int, int]:
    pointer, size, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    flat = _function("ggml_new_tensor_2d", pointer, pointer, kind, size, size)
    deep = _function("ggml_new_tensor_3d", pointer, pointer, kind, size, size, size)
    product = _function("ggml_mul_mat", pointer, pointer, pointer, pointer)
    chosen = _function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    named = _function("ggml_set_name", pointer, pointer, ctypes.c_char_p)
    weight, given = flat(context, _F32, 8, 3), flat(context, _F32, 8, 5)
    experts, tokens, ids = deep(context, _F32, 8, 3, 4), deep(context, _F32, 8, 1, 5), flat(context, _I32, 2, 5)
    named(weight, b"blk.0.probe.weight")
    one, other = product(context, weight, given), chosen(context, experts, tokens, ids)
    overhead = _function("ggml_tensor_overhead", ctypes.c_size_t)()
    facts = [
        overhead - _OBJECT_BYTES == ctypes.sizeof(_Tensor),
        Node(weight).name == "blk.0.probe.weight",
        Node(weight).is_float and Node(ids).is_index,
        Node(experts).shape == (8, 3, 4, 1) and list(_Tensor.from_address(experts).nb) == [4, 32, 96, 384],
        list(_Tensor.from_address(one).src[:3]) == [weight, given, None],
        list(_Tensor.from_address(other).src[:4]) == [experts, tokens, ids, None],
        Node(one).shape == (3, 5, 1, 1) and Node(other).shape == (3, 2, 5, 1),
        _op_name(Node(one).op) == b"MUL_MAT" and _op_name(Node(other).op) == b"MUL_MAT_ID",
    ]
    if not all(facts):
        raise EngineFault(
            f"this libllama lays its tensors out in a way that is not known here (check {facts.index(False) + 1} of "
            f"{len(facts)}): no importance matrix can be measured; use --imatrix off"
        )
    return Node(one).op, Node(other).op
