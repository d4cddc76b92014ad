"""How far the result's predictions are from the source's, token by token. Arithmetic only.

For each position both models give logits over the whole vocabulary. The divergence is KL(source || result) in nats, over the full
distribution; the top token agrees or not; and the text's own next token has a probability in each, which makes the perplexities.
Rows are taken one by one in float64: a vocabulary of 152,000 costs some megabytes, whatever the length of the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.errors import ModelUnusable

_MOST_NATS = 300.0

Row = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Distance:
    """Over all positions of a text. Divergences in nats."""

    tokens: int
    kl_mean: float
    kl_mean_error: float
    """Standard error of the mean, as if the positions were independent."""
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    """Share of positions where both find the same token the likeliest, 0..1."""
    source_perplexity: float
    result_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """The result's perplexity over the source's; 1 if nothing was lost."""
        return self.result_perplexity / self.source_perplexity


class DistanceMeter:
    """Takes position after position. Owner of what was measured so far."""

    def __init__(self) -> None:
        self._divergences: list[float] = []
        self._agreed = 0
        self._source_nats = self._result_nats = 0.0

    @property
    def tokens(self) -> int:
        """Positions so far."""
        return len(self._divergences)

    def add(self, source: Row, result: Row, next_token: int) -> None:
        """Logits float[vocabulary] of both at one position, and the token that follows in the text.

        Raises ModelUnusable if one of the models computes what are no numbers.
        """
        p, q = log_probabilities(source, "source"), log_probabilities(result, "result")
        self._divergences.append(divergence(p, q))
        self._agreed += int(np.argmax(source) == np.argmax(result))
        self._source_nats -= float(p[next_token])
        self._result_nats -= float(q[next_token])

    def distance(self) -> Distance:
        """What it comes to. There must be at least one position."""
        values = np.array(self._divergences)
        count = len(values)
        error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return Distance(
            tokens=count,
            kl_mean=float(values.mean()),
            kl_mean_error=error,
            kl_median=float(np.median(values)),
            kl_p99=float(np.quantile(values, 0.99)),
            kl_max=float(values.max()),
            top1_agreement=self._agreed / count,
            source_perplexity=_perplexity(self._source_nats / count),
            result_perplexity=_perplexity(self._result_nats / count),
        )


def _perplexity(nats: float) -> float:
    """Bounded: models of random weights are surer of nonsense than a double can say."""
    return math.exp(min(nats, _MOST_NATS))


def log_probabilities(logits: Row, whose: str) -> npt.NDArray[np.float64]:
    """log softmax, float64[vocabulary]. Raises ModelUnusable for logits that are no numbers."""
    wide = logits.astype(np.float64)
    top = wide.max()
    if not math.isfinite(top):
        raise ModelUnusable(f"the {whose} computes values that are no numbers: it cannot be served")
    wide -= top
    wide -= math.log(float(np.exp(wide).sum()))
    return wide


def divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """KL(p || q) in nats of two rows of log probabilities; tokens that p rules out do not count."""
    weights = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(weights > 0.0, weights * (p - q), 0.0)
    return max(0.0, float(terms.sum()))
