"""What a quantization did and what it cost, as one JSON object. Sizes in bytes, times in seconds, divergences in nats."""

from __future__ import annotations

import msgspec

FORMAT, VERSION = "edge-quantize", 1


class File(msgspec.Struct, frozen=True):
    """One model file. `bits_per_weight` counts all tensors, those included that stay in 16 or 32 bits."""

    path: str
    bytes: int
    bits_per_weight: float
    tensors: dict[str, int]
    """How many tensors of each number format; of ONNX models the matrices only."""


class FellBack(msgspec.Struct, frozen=True):
    """A tensor that got another type, because its rows are no multiple of the wanted type's block."""

    tensor: str
    row_weights: int
    wanted: str
    got: str


class Importance(msgspec.Struct, frozen=True):
    """What the importance matrix was measured on."""

    text: str
    tokens: int
    tensors: int


class Divergence(msgspec.Struct, frozen=True):
    """The result beside the source on a text: KL(source || result) over the whole vocabulary, position by position."""

    text: str
    tokens: int
    kl_mean: float
    kl_mean_error: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    source_perplexity: float
    result_perplexity: float
    perplexity_ratio: float


class Score(msgspec.Struct):
    """Right answers out of `cases`."""

    cases: int = 0
    source_right: int = 0
    result_right: int = 0


class Accuracy(msgspec.Struct, frozen=True):
    """Greedy answers to the cases of a task, each compared with the one right answer."""

    task: str
    all: Score
    groups: dict[str, Score]


class Agreement(msgspec.Struct, frozen=True):
    """An ONNX model's result beside its source, sentence by sentence. Cosines where the output is an embedding, top-1 where it
    is scores; null else."""

    text: str
    tokenizer: str
    """Its file's name; empty: the tokens were random."""
    output: str
    sentences: int
    """How many were read; of rerankers, how many queries."""
    candidates: int = 0
    """Of rerankers, how many other sentences were scored for each query."""
    cosine_mean: float | None = None
    cosine_p1: float | None = None
    cosine_min: float | None = None
    top1_agreement: float | None = None
    """Share where both find the same label the likeliest, or of rerankers the same text the best, 0..1."""
    score_error: float | None = None
    """Root mean square of what scores moved by, over the standard deviation of the source's."""


class Latency(msgspec.Struct, frozen=True):
    """One sentence, the text's middle one by length: medians of runs in turns, in milliseconds, on this machine's CPU."""

    tokens: int
    threads: int
    runs: int
    source_ms: float
    result_ms: float


class Seconds(msgspec.Struct):
    """How long each part took."""

    importance: float = 0.0
    calibration: float = 0.0
    quantize: float = 0.0
    report: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """Everything. `divergence` and `accuracy` are null where they were not asked for, or where there is no task, and for ONNX
    models; these have `agreement` and `latency`."""

    kind: str
    source: File
    result: File
    fell_back: list[FellBack]
    importance: Importance | None
    divergence: Divergence | None
    accuracy: Accuracy | None
    seconds: Seconds
    agreement: Agreement | None = None
    latency: Latency | None = None
    format: str = FORMAT
    version: int = VERSION
