"""From texts to what a model takes, and from what it gives to vectors, scores and probabilities. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edge.errors import ContextLengthExceeded, InvalidRequest, ModelUnusable
from edge.onnx.messages import Kind, Pooling, Reading, Text

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_PIECE = 32
_LONGEST_TOKEN, _LEAST_LONG = 64, 4096
"""Characters: of a token, and what any text may have."""
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


class Encoded:
    """One text as the model takes it."""

    __slots__ = ("tokens", "types")

    def __init__(self, tokens: list[int], types: list[int]) -> None:
        self.tokens = tokens
        self.types = types


class Reader:
    """The tokenizer of one model. Any thread may read."""

    def __init__(self, reading: Reading) -> None:
        """Raises ModelUnusable."""
        self._reading = reading
        try:
            self._tokenizer = Tokenizer.from_file(reading.tokenizer)
        except Exception as error:  # the library raises plain Exception
            raise ModelUnusable(f"the tokenizer {reading.tokenizer} cannot be read: {error}") from None
        given = self._tokenizer.padding
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        named = (self._tokenizer.token_to_id(name) for name in _PADS)
        pad = given["pad_id"] if given else next((number for number in named if number is not None), None)
        self.pad = pad or 0

    def texts(self, texts: Sequence[Text], kind: Kind = "", param: str = "input") -> list[Encoded]:
        """Raises InvalidRequest, ContextLengthExceeded with the text's place."""
        self._require_readable(texts, param)
        prompt = {"": "", "query": self._reading.query_prompt, "document": self._reading.document_prompt}[kind]
        words = [prompt + text for text in texts if isinstance(text, str)]
        read = iter(self._encoded(words))
        encoded: list[Encoded] = []
        for text in texts:
            found = next(read) if isinstance(text, str) else Encoded(text, [0] * len(text))
            encoded.append(self._checked(found, len(encoded), param))
        return encoded

    def pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        """Query and document in one text each. Raises as `texts`."""
        self._require_readable([query], "query")
        self._require_readable(documents, "documents")
        read = self._encoded([(query, document) for document in documents])
        return [self._checked(found, number, "documents") for number, found in enumerate(read)]

    def filler(self, length: int) -> list[int]:
        """Any text of so many tokens, for trials."""
        return [self.pad] * length

    def _encoded(self, given: Sequence[str | tuple[str, str]]) -> list[Encoded]:
        """In pieces: what the library keeps of each text besides is many times as large as its tokens."""
        pieces = (list(given[at : at + _PIECE]) for at in range(0, len(given), _PIECE))
        return [Encoded(one.ids, one.type_ids) for piece in pieces for one in self._tokenizer.encode_batch(piece)]

    def _require_readable(self, texts: Sequence[Text], param: str) -> None:
        """Raises ContextLengthExceeded for a text that is far too long: to count its tokens costs more than to read it."""
        most = self._reading.max_tokens * _LONGEST_TOKEN + _LEAST_LONG
        for number, text in enumerate(texts):
            if len(text) > most:
                raise ContextLengthExceeded(
                    f"text {number} has {len(text):,} characters, and the model reads {self._reading.max_tokens:,} tokens; "
                    "shorten it",
                    param=param,
                )

    def _checked(self, found: Encoded, number: int, param: str) -> Encoded:
        tokens, most = found.tokens, self._reading.max_tokens
        if len(tokens) > most:
            raise ContextLengthExceeded(
                f"text {number} has {len(tokens):,} tokens, and the model reads {most:,}; shorten it", param=param
            )
        if not tokens or min(tokens) < 0 or max(tokens) >= self.vocabulary:
            raise InvalidRequest(
                f"text {number} is empty, or has a token that the vocabulary of {self.vocabulary:,} has not",
                param=param,
            )
        return found


def filled(texts: Sequence[Encoded], rows: int, length: int, pad: int) -> tuple[Integers, Integers, Integers]:
    """(tokens, mask, types), each [rows, length]. What is missing is filled up; empty texts see their first token alone, so that
    nothing is divided by zero."""
    tokens = np.full((rows, length), pad, np.int64)
    mask = np.zeros((rows, length), np.int64)
    types = np.zeros((rows, length), np.int64)
    for row, text in enumerate(texts):
        count = len(text.tokens)
        tokens[row, :count], mask[row, :count], types[row, :count] = text.tokens, 1, text.types
    mask[len(texts) :, 0] = 1
    return tokens, mask, types


def pooled(states: npt.NDArray[Any], mask: Integers, pooling: Pooling) -> Floats:
    """One vector for each text. `states`: [rows, length, width], or [rows, width] where the model pools itself."""
    values = states.astype(np.float32, copy=False)
    if pooling == "none":
        return values
    if pooling == "cls":
        return values[:, 0]
    if pooling == "last":
        last: Floats = values[np.arange(len(values)), mask.sum(axis=1) - 1]
        return last
    weights = mask[:, :, None].astype(np.float32)
    mean: Floats = (values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    return mean


def cut(vectors: Floats, dimensions: int | None, *, normalise: bool) -> Floats:
    """The first `dimensions` numbers of each vector, of length 1 if that is wanted."""
    short = vectors[:, :dimensions] if dimensions is not None else vectors
    if not normalise:
        return np.ascontiguousarray(short, np.float32)
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.ascontiguousarray(short / np.maximum(lengths, 1e-12), np.float32)


def relevance(logits: Floats) -> Floats:
    """One number from 0 to 1 for each pair: of one logit its logistic function, of two the second one's share."""
    if logits.shape[1] == 1:
        return _logistic(logits[:, 0])
    return shares(logits)[:, -1]


def probabilities(logits: Floats, *, multi_label: bool) -> Floats:
    """Of each label: for itself, or of one of them."""
    return _logistic(logits) if multi_label else shares(logits)


def shares(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def _logistic(values: Floats) -> Floats:
    result: Floats = np.where(values >= 0, 1 / (1 + np.exp(-np.abs(values))), 1 - 1 / (1 + np.exp(-np.abs(values))))
    return result.astype(np.float32)
