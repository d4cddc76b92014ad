"""The written model beside its source: how near its embeddings or scores are, and how long one sentence takes in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edge.quantize.job import OnnxJob
from edge.quantize.onnx.agreement import (
    Array,
    EmbeddingMeter,
    ScoreMeter,
    chosen_output,
    contests,
    embedding,
)
from edge.quantize.onnx.reading import Row, Session, Texts, mask_of, timed_in_turns
from edge.quantize.report import Agreement, Latency

_CANDIDATES = 4
_RUNS = 31
_TOKEN_LABELS = 3  # axes of scores for each token: [1, tokens, labels]

Pair = tuple[Array, Array]
"""Of the source and of the result."""


class Comparison:
    """Source and result of one job, loaded. Raises EdgeError."""

    def __init__(self, job: OnnxJob, texts: Texts, on_step: Callable[[str, float], None]) -> None:
        self._job, self._texts, self._on_step = job, texts, on_step
        on_step("loading both", 0.0)
        self._both = [Session(Path(path), job.threads) for path in (job.source, job.target)]
        source = self._both[0]
        found = source.run(source.feeds(texts.row(0)), source.outputs)
        given = dict(zip(source.outputs, found, strict=True))
        self._output, self._meaning = chosen_output(given)
        self._single = given[self._output].size == 1

    def agreement(self) -> Agreement:
        """Over the job's text, as far as its tokens go."""
        meter = EmbeddingMeter() if self._meaning != "scores" else ScoreMeter()
        read = 0
        for pairs in self._scores() if self._meaning == "scores" else self._embeddings():
            read += 1
            for ours, theirs in pairs:
                meter.add(ours, theirs)
        return Agreement(
            text=self._job.evaluation_name if self._job.tokenizer else "random tokens",
            tokenizer=Path(self._job.tokenizer).name,
            output=f"{self._output}, mean over tokens" if self._meaning == "states" else self._output,
            sentences=read,
            candidates=min(_CANDIDATES, self._texts.count - 1) if self._single else 0,
            **{name: value if value is None else float(f"{value:.6g}") for name, value in meter.figures().items()},
        )

    def latency(self) -> Latency:
        """Of the sentence that is the middle one by its tokens."""
        self._on_step("timing", 0.0)
        rows = sorted((self._texts.row(number) for number in range(self._texts.count)), key=lambda row: len(row.ids))
        row = rows[len(rows) // 2]
        source_ms, result_ms = timed_in_turns(self._both, row, self._output, _RUNS)
        return Latency(len(row.ids), self._job.threads, _RUNS, round(source_ms, 3), round(result_ms, 3))

    def _embeddings(self) -> Iterator[list[Pair]]:
        """Of each text, both embeddings."""
        for number in self._numbers(lambda number: len(self._texts.row(number).ids)):
            row = self._texts.row(number)
            values, mask = self._run(row)
            ours, theirs = (embedding(found, mask, self._meaning) for found in values)
            yield [(ours, theirs)]

    def _scores(self) -> Iterator[list[Pair]]:
        """Of each text, the labels' scores, of each token where tokens are labelled; where there is one label only, of each text
        as a query the scores of others as its candidates."""
        if self._single:
            found = contests(self._texts.count, _CANDIDATES)
            for query in self._numbers(lambda query: sum(len(self._texts.row(query, c).ids) for c in found[query][1])):
                scores = [self._run(self._texts.row(query, candidate))[0] for candidate in found[query][1]]
                yield [(_column(scores, 0), _column(scores, 1))]
            return
        for number in self._numbers(lambda number: len(self._texts.row(number).ids)):
            (ours, theirs), mask = self._run(self._texts.row(number))
            if ours.ndim < _TOKEN_LABELS:
                yield [(ours.reshape(-1), theirs.reshape(-1))]
            else:
                yield [(ours[0, place], theirs[0, place]) for place in mask[0].nonzero()[0]]

    def _numbers(self, tokens_of: Callable[[int], int]) -> Iterator[int]:
        """Texts by number, until the tokens are used up; at least one."""
        tokens, count = 0, self._texts.count
        for number in range(count):
            tokens += tokens_of(number)
            if number and tokens > self._job.most_tokens:
                return
            self._on_step("comparing", number / count)
            yield number

    def _run(self, row: Row) -> tuple[list[Array], Array]:
        feeds = self._both[0].feeds(row)
        return [session.run(feeds, [self._output])[0] for session in self._both], mask_of(row, feeds)


def _column(scores: list[list[Array]], whose: int) -> Array:
    return np.array([values[whose].reshape(-1)[0] for values in scores])
