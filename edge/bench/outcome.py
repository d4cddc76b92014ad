"""What became of each request, and what one level's requests add up to. Pure: times come in as they were noted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edge.bench.load import TIMED_OUT, UNSENT, Attempt
from edge.bench.stream import Reading, read

Status = Literal["ok", "refused", "error", "timeout", "unsent"]
_REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good request keeps: time to the first token, and p99 of the gaps between content events."""

    ttft_ms: float = 50.0
    itl_ms: float = 50.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as the client saw it. `ended_s` and `due_s` count from the level's begin."""

    due_s: float
    late_s: float
    ended_s: float
    status: Status
    long: bool = False
    ttft_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()
    tokens: int = 0
    tokens_counted: bool = False
    """True if `tokens` is the server's count; else it is the number of content events."""
    edge_class: str = ""
    edge_route: str = ""
    detail: str = ""

    def good(self, slo: Slo) -> bool:
        """Answered whole, within both bounds. With fewer than 100 gaps their p99 is the largest."""
        if self.status != "ok" or self.ttft_ms is None or self.ttft_ms > slo.ttft_ms:
            return False
        return not self.gaps_ms or percentile(self.gaps_ms, 0.99) <= slo.itl_ms


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed (nearest rank). Needs one value at least."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def cdf(values: Iterable[float], points: int = 100) -> list[tuple[float, float]]:
    """(value, share of values up to it) at even shares and further into the tail; empty for no values."""
    ordered = sorted(values)
    if not ordered:
        return []
    ranks = {math.ceil(len(ordered) * n / points) for n in range(1, points + 1)} | {1}
    ranks |= {math.ceil(len(ordered) * share) for share in (0.995, 0.999, 0.9999)}
    return [(ordered[rank - 1], rank / len(ordered)) for rank in sorted(ranks)]


def outcome(attempt: Attempt) -> Outcome:
    """Read what came back."""
    exchange = attempt.exchange
    reading = read(exchange.chunks) if exchange is not None and exchange.status == 200 else Reading()
    status, detail = _judge(attempt, reading)
    if exchange is None:
        return Outcome(attempt.due_s, attempt.late_s, attempt.ended_s, status, attempt.job.long, detail=detail)
    first_s = reading.content_s[0] if reading.content_s else None
    return Outcome(
        due_s=attempt.due_s,
        late_s=attempt.late_s,
        ended_s=attempt.ended_s,
        status=status,
        long=attempt.job.long,
        ttft_ms=None if first_s is None else (first_s - exchange.sent_s) * 1000,
        gaps_ms=tuple((b - a) * 1000 for a, b in zip(reading.content_s, reading.content_s[1:], strict=False)),
        tokens=len(reading.content_s) if reading.tokens is None else reading.tokens,
        tokens_counted=reading.tokens is not None,
        edge_class=exchange.headers.get("x-edge-class", ""),
        edge_route=exchange.headers.get("x-edge-route", ""),
        detail=detail,
    )


def _judge(attempt: Attempt, reading: Reading) -> tuple[Status, str]:
    """The status, and in words what went wrong."""
    exchange = attempt.exchange
    if attempt.failure == UNSENT:
        return "unsent", UNSENT
    if attempt.failure == TIMED_OUT:
        return "timeout", TIMED_OUT
    if attempt.failure or exchange is None:
        return "error", attempt.failure
    if exchange.status in _REFUSALS:
        return "refused", f"HTTP {exchange.status}"
    if exchange.status != 200:
        return "error", f"HTTP {exchange.status}: {exchange.excerpt()}"
    if reading.error:
        return "error", reading.error
    if not reading.complete:
        return "error", "the stream ended without [DONE] or a finish reason"
    if not reading.content_s:
        return "error", "the answer held no content"
    return "ok", ""
