"""The made encoders compute what encoders compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from bench.make_onnx import HEADS, INPUTS, SHAPES, vocabulary, write_encoder


def run(path: Path, texts: list[str] | list[tuple[str, str]]) -> list[Any]:
    tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    columns = ("ids", "attention_mask", "type_ids")
    feeds = {
        name: np.array([getattr(e, column) for e in encoded], np.int64)
        for name, column in zip(INPUTS, columns, strict=True)
    }
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_an_encoder_gives_states_that_padding_does_not_change(tmp_path: Path) -> None:
    path = write_encoder(tmp_path, SHAPES["tiny"])
    onnx.checker.check_model(str(path), full_check=True)
    alone, pooled_alone = run(path, ["Stop pump three."])
    both, pooled = run(path, ["Stop pump three.", "Read the temperature of the boiler, and tell me at once."])
    assert alone.shape[0] == 1 and alone.shape[2] == 64 and both.shape[1] > alone.shape[1]
    assert np.allclose(both[0, : alone.shape[1]], alone[0], atol=1e-5)
    assert np.allclose(pooled[0], pooled_alone[0], atol=1e-5)
    assert not np.allclose(pooled[0], pooled[1], atol=0.1)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_heads_give_logits_that_depend_on_both_texts(tmp_path: Path, head: Any) -> None:
    path = write_encoder(tmp_path, SHAPES["tiny"], head)
    (logits,) = run(path, [("pump", "is it on?"), ("pump", "close the valve"), ("boiler", "is it on?")])
    assert logits.shape == (3, HEADS[head])
    assert len({tuple(row) for row in logits.round(4).tolist()}) == 3


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    first = write_encoder(tmp_path / "a", SHAPES["tiny"]).read_bytes()
    assert write_encoder(tmp_path / "b", SHAPES["tiny"]).read_bytes() == first
    assert write_encoder(tmp_path / "c", SHAPES["tiny"], seed=1).read_bytes() != first


def test_vocabularies_have_the_size_of_the_embedding(tmp_path: Path) -> None:
    for shape in SHAPES.values():
        pieces = vocabulary(shape.vocabulary)
        assert len(pieces) == len(set(pieces)) == shape.vocabulary
    write_encoder(tmp_path, SHAPES["tiny"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPES["tiny"].vocabulary
    encoded = tokenizer.encode("Pump 3 hums.")
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-1] == "[SEP]" and "[UNK]" not in encoded.tokens
