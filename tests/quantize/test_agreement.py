"""The report's arithmetic, on cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.errors import ModelUnusable
from edge.quantize.onnx.agreement import (
    EmbeddingMeter,
    ScoreMeter,
    chosen_output,
    contests,
    cosine,
    embedding,
)
from edge.quantize.text import sentences


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([3, 4], [3, 4], 1.0),
        ([1, 0], [0, 2], 0.0),
        ([1, 0], [-5, 0], -1.0),
        ([1, 1], [1, 0], math.sqrt(0.5)),
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [1, 0], 0.0),
    ],
)
def test_cosines(a: list[float], b: list[float], wanted: float) -> None:
    assert cosine(np.array(a, float), np.array(b, float)) == pytest.approx(wanted)


def test_embeddings_are_told_by_mean_low_percentile_and_minimum() -> None:
    meter = EmbeddingMeter()
    for _ in range(100):
        meter.add(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    meter.add(np.array([1.0, 0.0]), np.array([0.6, 0.8]))
    found = meter.figures()
    assert found["cosine_mean"] == pytest.approx((100 + 0.6) / 101)
    assert found["cosine_min"] == pytest.approx(0.6)
    assert found["cosine_p1"] == pytest.approx(1.0)  # of 101 values the second smallest


def test_scores_are_told_by_the_best_one_and_by_how_far_they_moved() -> None:
    meter = ScoreMeter()
    meter.add(np.array([1.0, 3.0]), np.array([1.0, 2.0]))  # the second both times
    meter.add(np.array([1.0, 3.0]), np.array([3.0, 2.0]))  # the second, then the first
    found = meter.figures()
    assert found["top1_agreement"] == 0.5
    # moved by 0, -1, 2, -1: root mean square sqrt(6/4); the source's deviation from its mean 2 is 1
    assert found["score_error"] == pytest.approx(math.sqrt(1.5))


def test_single_scores_have_no_best_one() -> None:
    meter = ScoreMeter()
    for value in (1.0, -1.0):
        meter.add(np.array([value]), np.array([value + 0.5]))
    assert meter.figures() == {"top1_agreement": None, "score_error": pytest.approx(0.5)}


def test_scores_that_never_differ_have_no_spread_to_compare_with() -> None:
    meter = ScoreMeter()
    meter.add(np.array([2.0, 2.0]), np.array([2.0, 1.0]))
    assert meter.figures()["score_error"] is None


@pytest.mark.parametrize("meter", [EmbeddingMeter(), ScoreMeter()])
def test_what_is_no_number_is_named(meter: EmbeddingMeter | ScoreMeter) -> None:
    good, bad = np.array([1.0, 2.0]), np.array([1.0, np.nan])
    with pytest.raises(ModelUnusable, match="the source computes"):
        meter.add(bad, good)
    with pytest.raises(ModelUnusable, match="the result computes"):
        meter.add(good, bad)


def test_states_are_averaged_where_there_are_tokens() -> None:
    states = np.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]], np.float32)
    assert embedding(states, np.array([[1, 1, 0]]), "states").tolist() == [2.0, 4.0]
    assert embedding(np.array([[5.0, 6.0]]), np.array([[1]]), "embedding").tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        ({"last_hidden_state": (1, 5, 8), "pooler_output": (1, 8)}, ("last_hidden_state", "states")),
        ({"token_embeddings": (1, 5, 8), "sentence_embedding": (1, 8)}, ("sentence_embedding", "embedding")),
        ({"logits": (1, 4)}, ("logits", "scores")),
        ({"logits": (1, 5, 4)}, ("logits", "scores")),
        ({"relevance": (1, 1)}, ("relevance", "scores")),
        ({"relevance": (1,)}, ("relevance", "scores")),
        ({"output": (1, 5, 8)}, ("output", "states")),
    ],
)
def test_the_output_that_counts_is_found(outputs: dict[str, tuple[int, ...]], wanted: tuple[str, str]) -> None:
    given = {name: np.zeros(shape, np.float32) for name, shape in outputs.items()}
    assert chosen_output({"tokens": np.zeros((1, 5), np.int64), **given}) == wanted


def test_models_without_numbers_to_compare_are_refused() -> None:
    with pytest.raises(ModelUnusable, match="--no-report"):
        chosen_output({"tokens": np.zeros((1, 5), np.int64)})


def test_candidates_are_the_next_ones_round_the_end() -> None:
    assert contests(4, 2) == [(0, [1, 2]), (1, [2, 3]), (2, [3, 0]), (3, [0, 1])]
    assert contests(2, 4) == [(0, [1]), (1, [0])]


def test_texts_are_taken_apart_at_the_ends_of_sentences() -> None:
    text = "The first one is here. Is this the second?\nA third line without an end\nOK.\n\nThe first one is here.\n"
    assert sentences(text) == ["The first one is here.", "Is this the second?", "A third line without an end"]
