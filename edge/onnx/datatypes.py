"""The number formats of the Open Inference Protocol, and what a client's tensors must be. Pure.

Source: KServe's Open Inference Protocol, version 2: "Tensor Data Types" and "Tensor Data".
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from edge.errors import InvalidRequest
from edge.onnx.messages import Tensor, TensorSpec

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one number. BYTES has any length."""
BYTES = "BYTES"
_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH = struct.Struct("<I")
_MOST_DEEP = 16
_MOST_BYTES = 1 << 40
"""Of a tensor, axes of length 0 counted as 1: even where it holds nothing, no array has a shape beyond what can be addressed."""
_REFERENCE_BYTES = 8
"""Of a text's place in an array."""


def check_inputs(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> None:
    """Raises InvalidRequest that names what was expected, unless these are the inputs of the model."""
    known = {spec.name: spec for spec in specs}
    for number, tensor in enumerate(tensors):
        if tensor.name not in known:
            raise InvalidRequest(f"unknown input {tensor.name[:100]!r}: the model has {_listed(specs)}", param="inputs")
        if any(other.name == tensor.name for other in tensors[:number]):
            raise InvalidRequest(f"the input {tensor.name!r} is given twice", param="inputs")
    missing = [name for name in known if all(tensor.name != name for tensor in tensors)]
    if missing:
        raise InvalidRequest(f"the input {missing[0]!r} is missing: the model has {_listed(specs)}", param="inputs")
    lengths: dict[str, tuple[int, str]] = {}
    for tensor in tensors:
        spec = known[tensor.name]
        _check_form(tensor, spec)
        for length, axis, fixed in zip(tensor.shape, spec.axes, spec.shape, strict=bool(spec.shape)):
            if fixed < 0 and axis:
                before, whose = lengths.setdefault(axis, (length, tensor.name))
                if before != length:
                    raise InvalidRequest(
                        f"the axis {axis!r} has length {before} in {whose!r} and {length} in {tensor.name!r}; they must be equal",
                        param="inputs",
                    )
    for tensor in tensors:
        _check_size(tensor)


def _check_form(tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"the input {spec.name!r} is {spec.datatype}, not {tensor.datatype[:100]}", param="inputs")
    if len(tensor.shape) > _MOST_DEEP:
        raise InvalidRequest(
            f"the input {spec.name!r} has {len(tensor.shape)} axes; at most {_MOST_DEEP} are taken", param="inputs"
        )
    wanted_shape = spec.shape or [-1] * len(tensor.shape)  # a scalar, and what has no shape in its file, look the same
    fits = len(tensor.shape) == len(wanted_shape) and all(
        given >= 0 and wanted in (-1, given) for given, wanted in zip(tensor.shape, wanted_shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"the input {spec.name!r} has shape {spec.shape} (-1: any), not {list(tensor.shape)[:_MOST_DEEP]}",
            param="inputs",
        )


def _check_size(tensor: Tensor) -> None:
    count = math.prod(tensor.shape)
    spanned = math.prod(max(1, length) for length in tensor.shape) * SIZES.get(tensor.datatype, _REFERENCE_BYTES)
    if spanned > _MOST_BYTES:
        raise InvalidRequest(
            f"the input {tensor.name!r} has shape {list(tensor.shape)}, which is too large even where it holds nothing",
            param="inputs",
        )
    if tensor.datatype == BYTES:
        found = sum(1 for _ in strings(tensor.data))
        if found != count:
            raise InvalidRequest(f"the input {tensor.name!r} has {found} texts, expected {count}", param="inputs")
        return
    expected = count * SIZES[tensor.datatype]
    if len(tensor.data) != expected:
        raise InvalidRequest(
            f"the input {tensor.name!r} has {len(tensor.data)} bytes, expected {expected} for {tensor.datatype} of shape "
            f"{list(tensor.shape)}",
            param="inputs",
        )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} ({spec.datatype} {spec.shape})" for spec in specs)


def to_bytes(name: str, datatype: str, values: Any) -> bytes:
    """JSON's numbers, nested or flat, as little-endian bytes. Raises InvalidRequest for what is no such number."""
    flat = list(_flat(values, 0))
    if datatype == BYTES:
        if not all(isinstance(value, str) for value in flat):
            raise InvalidRequest(f"the input {name!r} is BYTES: its data must be texts", param="inputs")
        texts = [_utf8(name, value) for value in flat]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    code = _CODES.get(datatype)
    if code is None:
        raise InvalidRequest(
            f"the input {name!r} is {datatype[:100]!r}; known are {', '.join([*SIZES, BYTES])}", param="inputs"
        )
    kinds: tuple[type, ...] = (bool,) if code == "?" else (int, float) if code in "efd" else (int,)
    if not all(type(value) in kinds for value in flat):
        raise InvalidRequest(f"the input {name!r} is {datatype}: its data holds something else", param="inputs")
    try:
        return struct.pack(f"<{len(flat)}{code}", *flat)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"the input {name!r} holds a number that {datatype} has not", param="inputs") from None


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"the input {name!r} holds text that is no Unicode", param="inputs") from None


def _flat(values: Any, depth: int) -> Iterator[Any]:
    if isinstance(values, list) and depth < _MOST_DEEP:
        for value in values:
            yield from _flat(value, depth + 1)
    else:
        yield values


def to_values(tensor: Tensor) -> list[Any]:
    """A tensor's numbers as JSON has them, row by row."""
    if tensor.datatype == BYTES:
        return [text.decode("utf-8", "replace") for text in strings(tensor.data)]
    code = _CODES[tensor.datatype]
    if code in "?e":
        return list(struct.unpack(f"<{len(tensor.data) // SIZES[tensor.datatype]}{code}", tensor.data))
    return floats(tensor.data) if code == "f" else _numbers(code, tensor.data)


def floats(data: bytes) -> list[float]:
    """float32 as Python's numbers."""
    return _numbers("f", data)


def _numbers(code: str, data: bytes) -> list[Any]:
    numbers = array(code)
    numbers.frombytes(data)
    return numbers.tolist()


def strings(data: bytes) -> Iterator[bytes]:
    """Texts of a BYTES tensor: each with its length before it. Raises InvalidRequest if they do not end where the data ends."""
    at = 0
    while at < len(data):
        end = at + _LENGTH.size
        size = _LENGTH.unpack_from(data, at)[0] if end <= len(data) else 0
        if end + size > len(data):
            raise InvalidRequest("a BYTES tensor ends in the middle of a text", param="inputs")
        yield data[end : end + size]
        at = end + size


def with_lengths(texts: Sequence[bytes]) -> bytes:
    """The data of a BYTES tensor."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
