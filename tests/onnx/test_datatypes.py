"""A client's tensors: what passes, and what is said of what does not."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InvalidRequest
from edge.messages import MAX_FRAME_BYTES, FrameReader, FrameTooLarge, frame
from edge.onnx.datatypes import SIZES, check_inputs, strings, to_bytes, to_values, with_lengths
from edge.onnx.messages import Embedded, Inferred, Scored, Tensor, TensorSpec, from_tensor_child
from edge.onnx.session import to_array

SPECS = [TensorSpec("ids", "INT64", [-1, 3], ["batch", ""]), TensorSpec("mask", "FP32", [-1], ["batch"])]
GOOD = [Tensor("ids", "INT64", [2, 3], bytes(48)), Tensor("mask", "FP32", [2], bytes(8))]


def test_what_fits_passes() -> None:
    check_inputs(GOOD, SPECS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([GOOD[0]], "the input 'mask' is missing: the model has 'ids' \\(INT64 \\[-1, 3\\]\\), 'mask'"),
        ([*GOOD, Tensor("x", "FP32", [1], bytes(4))], "unknown input 'x': the model has 'ids'"),
        ([*GOOD, GOOD[1]], "'mask' is given twice"),
        ([Tensor("ids", "INT32", [2, 3], bytes(24)), GOOD[1]], "'ids' is INT64, not INT32"),
        (
            [Tensor("ids", "INT64", [2, 4], bytes(64)), GOOD[1]],
            "'ids' has shape \\[-1, 3\\] \\(-1: any\\), not \\[2, 4\\]",
        ),
        ([Tensor("ids", "INT64", [6], bytes(48)), GOOD[1]], "not \\[6\\]"),
        ([GOOD[0], Tensor("mask", "FP32", [3], bytes(12))], "axis 'batch' has length 2 in 'ids' and 3 in 'mask'"),
        ([Tensor("ids", "INT64", [2, 3], bytes(47)), GOOD[1]], "'ids' has 47 bytes, expected 48 for INT64"),
    ],
)
def test_what_does_not_fit_is_told_what_was_expected(changed: list[Tensor], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_inputs(changed, SPECS)


def test_a_shape_of_more_axes_than_an_array_has_is_refused() -> None:
    """Where the model's file states no shape, any would do."""
    with pytest.raises(InvalidRequest, match="'x' has 100 axes; at most 16"):
        check_inputs([Tensor("x", "FP32", [1] * 100, bytes(4))], [TensorSpec("x", "FP32", [], [])])


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_tensor_that_holds_nothing_has_a_shape_that_an_array_can_have(datatype: str) -> None:
    spec = TensorSpec("x", datatype, [-1, -1, -1], ["", "", ""])
    most = 2**31 - 1
    with pytest.raises(InvalidRequest, match=r"'x' has shape \[0, 2147483647, 2147483647\], which is too large"):
        check_inputs([Tensor("x", datatype, [0, most, most], b"")], [spec])
    for shape in ([0, 1, most], [0, 0, most]):
        check_inputs([fits := Tensor("x", datatype, shape, b"")], [spec])
        assert list(to_array(fits).shape) == shape


@given(st.sampled_from(sorted(SIZES)), st.data())
def test_json_numbers_come_back_as_they_were(datatype: str, data: st.DataObject) -> None:
    kinds = {"B": st.booleans(), "F": st.floats(-1000, 1000, width=16)}
    size = SIZES[datatype]
    half = 0 if datatype[0] == "U" else 2 ** (8 * size - 1)
    whole = st.integers(-half, 2 ** (8 * size) - 1 - half)
    values = data.draw(st.lists(kinds.get(datatype[0], whole), min_size=1, max_size=20))
    coded = to_bytes("x", datatype, [values])
    tensor = Tensor("x", datatype, [len(values)], coded)
    assert to_values(tensor) == values
    assert to_array(tensor).tolist() == values


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT64", [1.5]),
        ("INT64", ["1"]),
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("BOOL", [1]),
        ("FP32", [True]),
        ("FP32", [1e39]),
        ("FP16", [70000]),
        ("BYTES", [1]),
        ("BF16", [1]),
        ("FP32", [[[None]]]),
        ("FP32", {"a": 1}),
        ("BYTES", ["\ud800"]),
    ],
)
def test_what_is_no_such_number_is_refused(datatype: str, values: Any) -> None:
    with pytest.raises(InvalidRequest):
        to_bytes("x", datatype, values)


@given(st.lists(st.binary(max_size=20)))
def test_texts_keep_their_lengths(texts: list[bytes]) -> None:
    assert list(strings(with_lengths(texts))) == texts


def test_a_text_that_is_cut_short_is_noticed() -> None:
    with pytest.raises(InvalidRequest, match="in the middle of a text"):
        list(strings(struct.pack("<I", 5) + b"abc"))
    with pytest.raises(InvalidRequest, match="has 1 texts, expected 2"):
        check_inputs([Tensor("t", "BYTES", [2], with_lengths([b"a"]))], [TensorSpec("t", "BYTES", [-1], ["n"])])


def test_bytes_are_read_as_rows() -> None:
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert (to_array(Tensor("x", "INT32", [2, 3], values.tobytes())) == values).all()


def test_a_large_answer_is_framed_as_a_small_one_is() -> None:
    """With room for all of it from the start: what is measured must be no less than what is written."""
    tensor = Tensor("y" * 200, "FP32", [3, 1 << 18], bytes(range(256)) * (3 << 12))
    for answer in (
        Inferred(1, [tensor, Tensor("z", "FP32", [], b"")]),
        Embedded(2, b"1234" * 1000, 500, 3),
        Scored(3, [[0.25] * 999], 7),
    ):
        whole = frame(answer)
        assert 0 < answer.bulk_bytes <= len(whole) + 4096
        (payload,) = FrameReader().feed(bytes(whole))
        assert from_tensor_child(payload) == [answer]
        assert msgspec.msgpack.encode([answer]) == payload


def test_a_frame_has_a_limit_whatever_is_in_it() -> None:
    with pytest.raises(FrameTooLarge):
        frame(Embedded(1, bytes(MAX_FRAME_BYTES), 1, 1))
