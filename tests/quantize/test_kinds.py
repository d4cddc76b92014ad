"""What may be made of what."""

from __future__ import annotations

import pytest

from edge.errors import ModelUnusable
from edge.quantize.kinds import KINDS, check, quantized_types, uses_importance


@pytest.mark.parametrize(
    ("kind", "choice", "used"),
    [
        ("q4_0", "auto", True),
        ("q4_k_m", "on", True),
        ("iq4_xs", "off", False),
        ("q8_0", "auto", False),
        ("q8_0", "on", False),
        ("mxfp4", "on", False),
    ],
)
def test_importance_is_measured_where_it_is_looked_at(kind: str, choice: str, used: bool) -> None:
    assert uses_importance(KINDS[kind], choice) is used  # type: ignore[arg-type]


def test_number_formats_that_have_lost_something_are_told_apart() -> None:
    assert quantized_types(["F32", "BF16", "f16", "I32"]) == []
    assert quantized_types({"F32", "Q6_K", "q4_0"}) == ["q4_0", "q6_k"]


def test_refusals_name_the_cure() -> None:
    with pytest.raises(ModelUnusable, match="Choose q4_0"):
        check(KINDS["mxfp4"], source="m", experts=0, types=["f16"], allow_requantize=False)
    with pytest.raises(ModelUnusable, match="--allow-requantize"):
        check(KINDS["q4_0"], source="m", experts=0, types=["q8_0", "f32"], allow_requantize=False)
    check(KINDS["q4_0"], source="m", experts=0, types=["q8_0", "f32"], allow_requantize=True)
    check(KINDS["mxfp4"], source="m", experts=8, types=["bf16", "f32"], allow_requantize=False)
