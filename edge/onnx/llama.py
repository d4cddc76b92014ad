"""GGUF models that read texts, by libllama: the same reading, batching and bounds as of an ONNX model, another engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge.engine.llama.embedder import Embedder, PassFailed, PooledBy
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model as Weights
from edge.engine.llama.model import Vocabulary
from edge.engine.llama.pairs import PairWriter
from edge.engine.steps import Kind
from edge.engine.threads import ThreadChoice, fewest_worth
from edge.errors import DoesNotFit, EngineFault, ModelUnusable
from edge.onnx.messages import LoadTensors, Reading
from edge.onnx.model import Engine, Model, resident
from edge.onnx.tasks import Floats, relevance
from edge.onnx.texts import Encoded, TextReader

_ALL_LAYERS = -1
_FEW_TOKENS = 64
"""Passes of up to so many have a number of threads of their own: there is less for a second one to do."""
_SHORT_TRIAL, _LONG_TRIAL, _TRIALS = 16, 128, 5
_STRAIN = 1.5
"""So many times as long as foreseen: other numbers of threads are tried."""
_SLOWLY = 0.2
_CELLS = (4096, 2048, 1024, 512, 256)
"""Tokens of a pass that are tried, besides those of the longest text."""


class LlamaReader(TextReader):
    """Reads as the vocabulary in the model's file says."""

    def __init__(self, reading: Reading, vocabulary: Vocabulary, pairs: PairWriter | None, max_tokens: int) -> None:
        super().__init__(reading, vocabulary.size, max(0, vocabulary.bos))
        self.max_tokens = max_tokens
        self._vocabulary, self._pairs = vocabulary, pairs

    def _read(self, texts: Sequence[str]) -> list[Encoded]:
        found = (self._vocabulary.tokenize(text, add_special=True, parse_special=False) for text in texts)
        return [Encoded(tokens, []) for tokens in found]

    def _read_pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        assert self._pairs is not None
        return [Encoded(tokens, []) for tokens in self._pairs.written(query, documents)]


class LlamaModel(Model):
    """Owner of one file's weights and of the context that pools."""

    reader: LlamaReader

    def __init__(self, load: LoadTensors, on_stage: Callable[[str, float], None]) -> None:
        """Load, try and measure. Raises ModelUnusable, DoesNotFit."""
        super().__init__(load)
        assert load.reading is not None
        self._library = Library()
        self._strained: dict[Kind, float] = {"decode": 1.0, "prompt": 1.0}
        self._at_leisure = False
        layers = 0 if load.provider == "cpu" else _ALL_LAYERS
        self._weights = weights = Weights(
            self._library,
            Path(load.path),
            gpu_layers=layers,
            on_progress=lambda share: on_stage("reading the weights", share),
        )
        self._pairs = PairWriter(weights) if load.task == "rerank" else None
        self._embedder = self._laid_out()
        self._require_fit()
        self.reader = LlamaReader(load.reading, weights.vocabulary, self._pairs, self._longest)
        offloaded = self._library.offloads and layers != 0
        self.engine = Engine("GPU" if offloaded else "CPU", f"libllama, {self._embedder.pooling} pooling")
        on_stage("measuring passes", 0.5)
        self._threads = self._chosen_threads()
        self._measure()
        assert self.costs is not None
        self.costs.spans = True
        self.most_rows = min(self.most_rows, self._embedder.most_texts)
        if not offloaded:  # a device's driver maps far more than it uses
            self._bound_memory()

    def _pass(self, texts: Sequence[Encoded], rows: int, length: int) -> Floats:
        """Texts as long as they are: nothing is filled up."""
        tokens = sum(len(text.tokens) for text in texts)
        kind: Kind = "prompt" if tokens > _FEW_TOKENS else "decode"
        threads = self._threads.for_pass(kind, strained=self._strained[kind] > _STRAIN or self._at_leisure)
        self._embedder.use_threads(threads)
        begun_s = time.monotonic()
        found = self._computed([text.tokens for text in texts])
        self._learn(kind, threads, time.monotonic() - begun_s, tokens)
        if self._pairs is None:
            return found
        return found[:, self._pairs.yes, None] if self._pairs.shares else relevance(found)[:, None]

    def beat(self) -> None:
        """A short pass; with another number of threads now and then, since nobody waits."""
        self._at_leisure = True
        try:
            super().beat()
        finally:
            self._at_leisure = False

    def _learn(self, kind: Kind, threads: int, took_s: float, tokens: int) -> None:
        """How long a pass took beside what was measured at the load says which number of threads does better."""
        if self.costs is None:
            return
        foreseen_s = self.costs.pass_s(1, tokens) / self.costs.strain
        ratio = took_s / max(1e-6, foreseen_s)
        if threads == self._threads.of(kind):
            self._strained[kind] += _SLOWLY * (ratio - self._strained[kind])
        self._threads.tried(kind, threads, ratio)
        if (longer := self._threads.decide(kind)) is not None:
            self._strained[kind] = longer

    def _chosen_threads(self) -> ThreadChoice:
        """All that may be used, or one where a neighbour or so small a model makes that the quicker way."""
        counts = [self._load.threads] if self._load.fixed_threads else sorted({1, self._load.threads})
        took = {count: (self._tried(count, _SHORT_TRIAL), self._tried(count, _LONG_TRIAL)) for count in counts}
        short = fewest_worth({count: seconds for count, (seconds, _) in took.items()})
        long = fewest_worth({count: seconds for count, (_, seconds) in took.items()})
        return ThreadChoice(decode=short, prompt=long, candidates=counts)

    def _tried(self, threads: int, tokens: int) -> float:
        """Seconds of a pass, the slow ones of a few."""
        self._embedder.use_threads(threads)
        text = self.reader.filler(min(tokens, self._longest))
        took = []
        for _ in range(_TRIALS):
            begun_s = time.monotonic()
            self._computed([text])
            took.append(time.monotonic() - begun_s)
        return sorted(took)[len(took) * 3 // 4]

    def stop_pass(self) -> None:
        """Its passes are over texts only, and those are bounded."""

    def _computed(self, texts: Sequence[Sequence[int]]) -> Floats:
        try:
            return self._embedder.vectors(texts)
        except PassFailed as failure:
            if failure.no_memory:
                raise MemoryError(str(failure)) from None
            raise EngineFault(f"libllama failed: {failure}; {self._library.complaint}") from None

    def _cells_within(self, longest: int, grown_bytes: int) -> int:
        return self._embedder.most_tokens

    # --- layout -------------------------------------------------------------------------------------------------------

    def _laid_out(self) -> Embedder:
        """The largest passes that the plan has room for; less long texts too, where the manifest leaves that open."""
        assert self._load.reading is not None
        trained, self._longest = self._weights.train_context_tokens, self._load.reading.max_tokens
        if 0 < trained < self._longest:
            raise ModelUnusable(
                f"the model was made for {trained:,} tokens, and its manifest says {self._longest:,}; lower context_tokens there"
            )
        for longest in self._lengths():
            for cells in self._cells(longest):
                embedder = self._embedder_of(cells)
                if embedder is None:
                    continue
                if resident() + embedder.buffer_bytes <= self._load.limit_bytes:
                    self._longest = longest
                    return embedder
                self._needed = embedder.buffer_bytes
                embedder.close()
        self._require_within_plan(
            f"for texts of {longest:,} tokens", "or lower context_tokens in its manifest", self._needed
        )
        raise DoesNotFit(f"no memory for texts of {longest:,} tokens: {self._library.complaint}")

    _needed = 0
    """Bytes of the last context that was too large."""

    def _lengths(self) -> Iterator[int]:
        """Longest texts to try, longest first."""
        assert self._load.reading is not None
        length, least = self._longest, self._load.reading.least_tokens or self._longest
        yield length
        while length // 2 >= least:
            length //= 2
            yield length

    def _cells(self, longest: int) -> Iterator[int]:
        """Tokens of a pass to try, most first."""
        most = longest * self._load.most_rows
        yield from (cells for cells in _CELLS if longest < cells <= most)
        yield longest

    def _embedder_of(self, cells: int) -> Embedder | None:
        assert self._load.reading is not None
        wanted = self._load.reading.pooling
        pooling: PooledBy | None = None if wanted == "file" else wanted
        try:
            return Embedder(
                self._library,
                self._weights,
                most_tokens=cells,
                most_texts=self._load.most_rows,
                threads=self._load.threads,
                pooling="rank" if self._load.task == "rerank" else pooling,
            )
        except DoesNotFit:
            return None

    def _require_fit(self) -> None:
        """Raises ModelUnusable where the file is for something else than the manifest says."""
        pooling = self._embedder.pooling
        if self._pairs is not None:
            self._pairs.require_scores(self._embedder.width)
        elif pooling == "rank":
            raise ModelUnusable("the file is a reranker's, and its manifest says embedding: set task to rerank there")
        elif pooling == "none":
            raise ModelUnusable(
                "the file does not say how its vectors are pooled: give it a manifest with [encoder] and `pooling`, mean, cls or "
                "last"
            )
