"""From texts to tensors, and from tensors to vectors: beside numpy's plainest way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge.errors import ContextLengthExceeded, InvalidRequest, ModelUnusable
from edge.onnx.tasks import cut, filled, pooled, probabilities, relevance
from edge.onnx.texts import Encoded
from edge.onnx.tokenizer import FileReader
from tests.onnx.conftest import reading_of

STATES = np.random.default_rng(0).standard_normal((3, 5, 4), np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], np.int64)


def test_a_mean_leaves_out_what_was_filled_up() -> None:
    assert pooled(STATES, MASK, "mean") == pytest.approx(
        np.stack([STATES[0, :3].mean(0), STATES[1].mean(0), STATES[2, 0]]), abs=1e-6
    )


def test_first_last_and_none() -> None:
    assert (pooled(STATES, MASK, "cls") == STATES[:, 0]).all()
    assert (pooled(STATES, MASK, "last") == np.stack([STATES[0, 2], STATES[1, 4], STATES[2, 0]])).all()
    assert (pooled(STATES[:, 0], MASK, "none") == STATES[:, 0]).all()


def test_a_cut_vector_has_length_one_again() -> None:
    short = cut(STATES[:, 0], 2, normalise=True)
    assert short.shape == (3, 2) and np.linalg.norm(short, axis=1) == pytest.approx([1, 1, 1])
    assert short[0] / STATES[0, 0, :2] == pytest.approx(short[0, 0] / STATES[0, 0, 0])
    assert (cut(STATES[:, 0], 2, normalise=False) == STATES[:, 0, :2]).all()
    assert np.isfinite(cut(np.zeros((1, 4), np.float32), None, normalise=True)).all()


def test_scores_are_probabilities_at_any_size() -> None:
    logits = np.array([[0.0], [1000.0], [-1000.0]], np.float32)
    assert relevance(logits) == pytest.approx([0.5, 1.0, 0.0])
    assert relevance(np.array([[0.0, 0.0], [0.0, 800.0]], np.float32)) == pytest.approx([0.5, 1.0])
    assert probabilities(np.array([[900.0, 0.0]], np.float32), multi_label=False)[0] == pytest.approx([1, 0])
    assert probabilities(np.array([[900.0, 0.0]], np.float32), multi_label=True)[0] == pytest.approx([1, 0.5])


def test_empty_rows_and_places_are_marked_so() -> None:
    tokens, mask, types = filled([Encoded([5, 6], [0, 1])], 2, 3, pad=9)
    assert tokens.tolist() == [[5, 6, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert types.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_texts_are_read_as_the_tokenizer_has_it(encoder: Path) -> None:
    reader = FileReader(reading_of(encoder, query_prompt="find: ", document_prompt="text: "))
    plain = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    assert reader.texts(["pump one"])[0].tokens == plain.encode("pump one").ids
    assert reader.texts(["pump one"], "query")[0].tokens == plain.encode("find: pump one").ids
    assert reader.texts(["pump one"], "document")[0].tokens == plain.encode("text: pump one").ids
    pair = reader.pairs("where", ["here"])[0]
    assert (pair.tokens, pair.types) == (plain.encode("where", "here").ids, plain.encode("where", "here").type_ids)
    mixed = reader.texts([[2, 7, 3], "pump", [2, 3]])
    assert [text.tokens for text in mixed] == [[2, 7, 3], plain.encode("pump").ids, [2, 3]]


def test_what_is_too_long_is_refused_with_its_place_and_never_cut(encoder: Path) -> None:
    reader = FileReader(reading_of(encoder, max_tokens=8))
    assert len(reader.texts(["a b c d e f"])[0].tokens) == 8
    with pytest.raises(ContextLengthExceeded, match="text 1 has 9 tokens, and the model reads 8") as caught:
        reader.texts(["a", "a b c d e f g"])
    assert caught.value.param == "input"
    with pytest.raises(ContextLengthExceeded, match="characters"):
        reader.texts([" " * 10_000])
    with pytest.raises(ContextLengthExceeded, match="text 0"):
        reader.pairs("a b c", ["d e f"])


@pytest.mark.parametrize("tokens", [[-1], [1024], []])
def test_tokens_that_the_vocabulary_has_not_are_refused(encoder: Path, tokens: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary of 1,024"):
        FileReader(reading_of(encoder)).texts([tokens])


def test_a_tokenizer_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnusable, match="cannot be read"):
        FileReader(reading_of(tmp_path))
