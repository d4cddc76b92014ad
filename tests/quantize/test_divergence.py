"""The arithmetic of the report, against cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge.errors import ModelUnusable
from edge.quantize.divergence import DistanceMeter, divergence, log_probabilities

LOG2 = math.log(2)


def logits(*probabilities: float) -> np.ndarray:
    """Logits whose softmax is this; the shift must not matter."""
    return (np.log(np.array(probabilities)) + 7.0).astype(np.float32)


def test_the_divergence_is_that_of_the_textbook() -> None:
    # 1/2 log(1/2 / 1/4) + 1/4 log(1/4 / 1/2) + 1/4 log(1/4 / 1/4) = (1/2 - 1/4) log 2
    p, q = log_probabilities(logits(0.5, 0.25, 0.25), "p"), log_probabilities(logits(0.25, 0.5, 0.25), "q")
    assert divergence(p, q) == pytest.approx(LOG2 / 4, abs=1e-6)


def test_it_is_taken_from_the_source_to_the_result() -> None:
    meter = DistanceMeter()
    meter.add(logits(0.75, 0.25), logits(0.5, 0.5), 0)
    assert meter.distance().kl_mean == pytest.approx(0.75 * math.log(1.5) - 0.25 * LOG2, abs=1e-6)


def test_the_summary_of_three_positions() -> None:
    meter = DistanceMeter()
    meter.add(logits(0.5, 0.25, 0.25), logits(0.5, 0.25, 0.25), 0)  # alike: 0
    meter.add(logits(0.5, 0.25, 0.25), logits(0.25, 0.5, 0.25), 1)  # log(2)/4, another top token
    meter.add(logits(0.25, 0.5, 0.25), logits(0.125, 0.75, 0.125), 1)  # 1/2 log 2 + 1/2 log 2/3
    kl = [0.0, LOG2 / 4, LOG2 / 2 + math.log(2 / 3) / 2]
    found = meter.distance()
    assert found.tokens == meter.tokens == 3
    assert found.kl_mean == pytest.approx(sum(kl) / 3, abs=1e-6)
    assert found.kl_mean_error == pytest.approx(np.std(kl, ddof=1) / math.sqrt(3), abs=1e-6)
    assert found.kl_median == pytest.approx(sorted(kl)[1], abs=1e-6)
    assert found.kl_max == pytest.approx(max(kl), abs=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), abs=1e-6)
    assert found.top1_agreement == pytest.approx(2 / 3)
    # the text's own tokens: 1/2, 1/4, 1/2 in the source; 1/2, 1/2, 3/4 in the result
    assert found.source_perplexity == pytest.approx((2 * 4 * 2) ** (1 / 3), rel=1e-5)
    assert found.result_perplexity == pytest.approx((2 * 2 * 4 / 3) ** (1 / 3), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx((1 / 3) ** (1 / 3), rel=1e-5)


def test_tokens_that_the_source_rules_out_do_not_count() -> None:
    source = np.array([0.0, 0.0, -np.inf], np.float32)
    result = np.array([0.0, 0.0, 0.0], np.float32)
    p, q = log_probabilities(source, "source"), log_probabilities(result, "result")
    assert divergence(p, q) == pytest.approx(math.log(1.5), abs=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("whose", ["source", "result"])
def test_values_that_are_no_numbers_are_an_error(broken: float, whose: str) -> None:
    good, bad = logits(0.5, 0.5), np.array([1.0, broken], np.float32)
    with pytest.raises(ModelUnusable, match=whose):
        DistanceMeter().add(*((bad, good) if whose == "source" else (good, bad)), 0)


def test_a_model_that_is_sure_of_nonsense_has_a_finite_perplexity() -> None:
    meter = DistanceMeter()
    sure = np.array([5000.0, 0.0], np.float32)
    meter.add(sure, sure, 1)
    assert math.isfinite(meter.distance().source_perplexity)


@given(arrays(np.float32, 50, elements=st.floats(-40, 40, width=32)), st.integers(0, 49))
def test_a_model_beside_itself_is_no_distance_away(row: np.ndarray, token: int) -> None:
    meter = DistanceMeter()
    meter.add(row, row.copy(), token)
    found = meter.distance()
    assert (found.kl_mean, found.top1_agreement, found.perplexity_ratio) == (0.0, 1.0, 1.0)


@given(*[arrays(np.float32, 50, elements=st.floats(-40, 40, width=32))] * 2)
def test_it_is_never_below_zero_and_blind_to_a_shift(a: np.ndarray, b: np.ndarray) -> None:
    p, q = log_probabilities(a, "a"), log_probabilities(b, "b")
    shifted = log_probabilities(b + np.float32(64), "b")
    assert divergence(p, q) >= 0.0
    assert divergence(p, shifted) == pytest.approx(divergence(p, q), abs=1e-3)
