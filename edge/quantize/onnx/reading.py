"""Sentences as a model reads them, and the session that reads them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import onnxruntime

from edge.errors import ConfigurationError, EngineFault, ModelUnusable
from edge.quantize.onnx.agreement import Array

MOST_TOKENS = 128
"""A sentence's; what is longer is cut."""

_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_SEVERE_ONLY = 3
_WARM_UP = 3
_UNKNOWN_VOCABULARY = 1000
_SHORTEST, _LONGEST = 6, 40
_SEED = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One text, or two, as tokens."""

    ids: list[int]
    types: list[int]


class Texts(Protocol):
    """Numbered sentences."""

    count: int

    def row(self, first: int, second: int | None = None) -> Row:
        """One of them, or two of them as a pair."""


class Tokenized:
    """Sentences by the model's own tokenizer."""

    def __init__(self, path: Path, sentences: Sequence[str], vocabulary: int | None) -> None:
        """Raises ConfigurationError for what is no tokenizer, or not this model's."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # its errors have no type of their own
            raise ConfigurationError(f"{path} is no tokenizer in the form of tokenizer.json: {error}") from None
        pieces = self._tokenizer.get_vocab_size()
        if vocabulary is not None and pieces > vocabulary:
            raise ConfigurationError(
                f"{path} knows {pieces:,} pieces, the model only {vocabulary:,}: it is another model's; name the right one with "
                "--tokenizer"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._sentences = sentences
        self.count = len(sentences)

    def row(self, first: int, second: int | None = None) -> Row:
        """See Texts."""
        pair = self._sentences[second] if second is not None else None
        found = self._tokenizer.encode(self._sentences[first], pair)
        return Row(list(found.ids), list(found.type_ids))


class Random:
    """Random tokens in place of sentences, always the same ones: for a model without a tokenizer."""

    def __init__(self, count: int, vocabulary: int | None) -> None:
        rng = random.Random(_SEED)
        size = vocabulary or _UNKNOWN_VOCABULARY
        self._rows = [[rng.randrange(size) for _ in range(rng.randint(_SHORTEST, _LONGEST))] for _ in range(count)]
        self.count = count

    def row(self, first: int, second: int | None = None) -> Row:
        """See Texts."""
        one, other = self._rows[first], self._rows[second] if second is not None else []
        return Row([*one, *other], [0] * len(one) + [1] * len(other))


class Session:
    """One model that reads a row at a time, on the CPU. Owner of its memory, until it is dropped."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
        """Raises ModelUnusable for what onnxruntime does not load."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _SEVERE_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as a node runs it
        given = model if isinstance(model, bytes) else str(model)
        try:
            self._session: Any = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base but this
            what = "the model" if isinstance(model, bytes) else model
            raise ModelUnusable(f"onnxruntime cannot load {what}: {error}") from None
        self._inputs = {found.name: found for found in self._session.get_inputs()}
        self.outputs: list[str] = [found.name for found in self._session.get_outputs()]

    def feeds(self, row: Row) -> dict[str, Array]:
        """Inputs [1, tokens]; cut or padded where the model's length is fixed."""
        shape = self._inputs["input_ids"].shape
        fixed = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
        ids, types = (row.ids[:fixed], row.types[:fixed]) if fixed else (row.ids, row.types)
        padding = [0] * ((fixed or len(ids)) - len(ids))
        columns = {
            "input_ids": [*ids, *padding],
            "attention_mask": [1] * len(ids) + padding,
            "token_type_ids": [*types, *padding],
            "position_ids": list(range(len(ids) + len(padding))),
        }
        return {
            name: np.array([columns[name]], _INTEGERS.get(found.type, np.int64)) for name, found in self._inputs.items()
        }

    def run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Raises EngineFault."""
        try:
            return list(self._session.run(list(outputs), feeds))
        except Exception as error:  # as above
            raise EngineFault(f"onnxruntime cannot run the model: {error}") from None


def mask_of(row: Row, feeds: dict[str, Array]) -> Array:
    """[1, tokens]: 1 where there is a token."""
    mask = np.zeros(feeds["input_ids"].shape, np.int64)
    mask[:, : len(row.ids)] = 1
    return mask


def timed_in_turns(sessions: Sequence[Session], row: Row, output: str, runs: int) -> list[float]:
    """Median milliseconds of each, run in turns, so that what else the machine does hits all alike."""
    found: list[list[float]] = [[] for _ in sessions]
    feeds = [session.feeds(row) for session in sessions]
    for turn in range(_WARM_UP + runs):
        for session, fed, times in zip(sessions, feeds, found, strict=True):
            begun = time.perf_counter()
            session.run(fed, [output])
            if turn >= _WARM_UP:
                times.append((time.perf_counter() - begun) * 1e3)
    return [median(times) for times in found]
