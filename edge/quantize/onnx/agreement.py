"""How near the result's embeddings or scores are to the source's. Arithmetic only.

Embeddings are compared by their cosine, text by text: it is what searches go by. Scores are compared by which is the highest
(top-1), and by how far they moved against how far they lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.errors import ModelUnusable

Array = npt.NDArray[Any]
Meaning = Literal["states", "embedding", "scores"]

_PREFERRED = ("sentence_embedding", "last_hidden_state", "token_embeddings", "logits")
_FEWEST_LABELS = 2


def chosen_output(found: Mapping[str, Array]) -> tuple[str, Meaning]:
    """Which output is judged, and what it means: states of tokens [1, tokens, width], an embedding [1, width] or scores.

    `found`: outputs for one text. Raises ModelUnusable if none is made of floats.
    """
    floats = [name for name, values in found.items() if values.dtype.kind == "f" and values.ndim >= 1]
    name = next((name for name in _PREFERRED if name in floats), floats[0] if floats else None)
    if name is None:
        raise ModelUnusable("the model gives no floating point numbers to compare; --no-report writes it all the same")
    values = found[name]
    if "logits" in name or "score" in name or values.ndim == 1 or values.shape[-1] == 1:
        return name, "scores"
    return name, "states" if values.ndim > 2 else "embedding"


def embedding(values: Array, mask: Array, meaning: Meaning) -> Array:
    """float64[width] of one text: as it is, or the mean over tokens [1, tokens, width] where the mask [1, tokens] is set."""
    wide: Array = values[0].astype(np.float64)
    if meaning == "embedding":
        return wide
    kept = mask[0].astype(bool)
    return np.asarray(wide[kept].mean(axis=0))


def cosine(a: Array, b: Array) -> float:
    """Of two vectors, -1..1; of nothing with nothing 1, of something with nothing 0."""
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not (a.any() or b.any()) else 0.0
    return min(1.0, max(-1.0, float(a @ b) / norms))


class EmbeddingMeter:
    """Takes pairs of embeddings. Owner of what was measured so far."""

    def __init__(self) -> None:
        self._cosines: list[float] = []

    def add(self, source: Array, result: Array) -> None:
        """Two float64[width]. Raises ModelUnusable if one is no numbers."""
        require_numbers(source, result)
        self._cosines.append(cosine(source, result))

    def figures(self) -> dict[str, float | None]:
        """Mean, first percentile and minimum. There must be at least one pair."""
        values = np.array(self._cosines)
        return {
            "cosine_mean": float(values.mean()),
            "cosine_p1": float(np.quantile(values, 0.01)),
            "cosine_min": float(values.min()),
        }


class ScoreMeter:
    """Takes pairs of rows of scores that compete: one text's labels, or one query's candidates."""

    def __init__(self) -> None:
        self._agreed = self._rows = 0
        self._source: list[Array] = []
        self._moved: list[Array] = []

    def add(self, source: Array, result: Array) -> None:
        """Two float[scores]. Raises ModelUnusable if one is no numbers."""
        require_numbers(source, result)
        if len(source) >= _FEWEST_LABELS:
            self._rows += 1
            self._agreed += int(np.argmax(source) == np.argmax(result))
        self._source.append(source.astype(np.float64))
        self._moved.append(result.astype(np.float64) - source)

    def figures(self) -> dict[str, float | None]:
        """Top-1 agreement, and how far scores moved; null where there was nothing to choose from, or all is the same."""
        spread = float(np.concatenate(self._source).std())
        moved = math.sqrt(float((np.concatenate(self._moved) ** 2).mean()))
        return {
            "top1_agreement": self._agreed / self._rows if self._rows else None,
            "score_error": moved / spread if spread > 0.0 else None,
        }


def require_numbers(source: Array, result: Array) -> None:
    """Raises ModelUnusable that says which of the two computes what are no numbers."""
    for whose, values in (("source", source), ("result", result)):
        if not np.isfinite(values).all():
            raise ModelUnusable(f"the {whose} computes values that are no numbers: it cannot be served")


def contests(count: int, candidates: int) -> list[tuple[int, Sequence[int]]]:
    """For a reranker: each text's number as a query, and those of the texts after it, round the end, as candidates."""
    most = min(candidates, count - 1)
    return [(query, [(query + step) % count for step in range(1, most + 1)]) for query in range(count)]
