"""The result of a run: the shape of `edge bench --json`, and how requests add up to it. Pure.

`version` grows when a field changes its meaning or goes; new fields may come without that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edge.bench.outcome import Outcome, Slo, Status, cdf, percentile
from edge.bench.workload import LoadKind

_EXAMPLES = 3


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True)


class Latency(_Shape):
    """A distribution in milliseconds, null where there are no values. `cdf`: (ms, share of the values up to it)."""

    count: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    cdf: list[tuple[float, float]] = []


class Judged(_Shape):
    """Some requests against the SLO. `ttft`: of all that got a first token. `itl`: gaps between content events."""

    requests: int
    good: int
    good_share: float | None
    ttft: Latency
    itl: Latency


class RequestLine(_Shape):
    """One request. `itl_p99_ms` is the largest gap if there are fewer than 100."""

    round: int
    due_s: float
    status: Status
    good: bool
    long: bool
    ttft_ms: float | None
    itl_p99_ms: float | None
    itl_max_ms: float | None
    tokens: int
    edge_class: str
    edge_route: str


class Result(_Shape):
    """One server at one level of load, all rounds together.

    `goodput_rps` is good requests a second over `window_s`, the time in which requests were sent (closed loops and
    traces: until the last answer). `tokens_per_s` is over `busy_s`, until the last answer. `admitted` are the requests
    that the server marked `X-Edge-Class: slo`; null if it marks none.
    """

    target: str
    load_kind: LoadKind
    load_value: float
    load: str
    complete: bool
    window_s: float
    busy_s: float
    offered_rps: float
    goodput_rps: float
    goodput_rps_by_round: list[float]
    all: Judged
    admitted: Judged | None
    statuses: dict[Status, int]
    tokens: int
    tokens_from: Literal["usage", "events"]
    tokens_per_s: float
    largest_send_delay_ms: float
    edge_class: dict[str, int]
    edge_route: dict[str, int]
    error_examples: list[str]
    requests: list[RequestLine]


class TargetFacts(_Shape):
    """A server that was measured. `dropped_fields`: request fields that it refused and that were left out."""

    name: str
    url: str
    model: str
    api: str
    dropped_fields: list[str]


class Noise(_Shape):
    """Longest that a spinning loop on the client's machine was kept from running: no figure can be better than this."""

    before_ms: float
    after_ms: float | None


class Report(_Shape):
    """Everything that a run found. `interrupted`: why it ended early, or null."""

    format: Literal["edge-bench"] = "edge-bench"
    version: Literal[1] = 1
    started: str
    seconds: float
    interrupted: str | None
    machine: dict[str, Any]
    noise: Noise
    slo: dict[str, float]
    workload: dict[str, Any]
    targets: list[TargetFacts]
    results: list[Result]


class Part:
    """One server at one level in one round."""

    __slots__ = ("complete", "outcomes", "window_s")

    def __init__(self, outcomes: Sequence[Outcome], window_s: float | None, complete: bool) -> None:
        """`window_s`: seconds in which requests were sent; None: until the last answer."""
        self.outcomes = outcomes
        self.complete = complete
        self.window_s = window_s if window_s is not None else self.busy_s

    @property
    def busy_s(self) -> float:
        """Until the last answer."""
        return max((outcome.ended_s for outcome in self.outcomes), default=0.0)


def result(target: str, kind: LoadKind, value: float, label: str, parts: Sequence[Part], slo: Slo) -> Result:
    """Add up the rounds of one server at one level."""
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    window_s, busy_s = sum(part.window_s for part in parts), sum(part.busy_s for part in parts)
    whole = judge(outcomes, slo)
    marked = [outcome for outcome in outcomes if outcome.edge_class == "slo"]
    tokens = sum(outcome.tokens for outcome in outcomes)
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    return Result(
        target=target,
        load_kind=kind,
        load_value=value,
        load=label,
        complete=all(part.complete for part in parts),
        window_s=_round(window_s),
        busy_s=_round(busy_s),
        offered_rps=_per_second(len(outcomes), window_s),
        goodput_rps=_per_second(whole.good, window_s),
        goodput_rps_by_round=[_per_second(sum(o.good(slo) for o in p.outcomes), p.window_s) for p in parts],
        all=whole,
        admitted=judge(marked, slo) if marked else None,
        statuses=dict(Counter(outcome.status for outcome in outcomes)),
        tokens=tokens,
        tokens_from="usage" if all(outcome.tokens_counted for outcome in answered) else "events",
        tokens_per_s=_per_second(tokens, busy_s),
        largest_send_delay_ms=_round(max((o.late_s for o in outcomes), default=0.0) * 1000),
        edge_class=dict(Counter(o.edge_class for o in outcomes if o.edge_class)),
        edge_route=dict(Counter(o.edge_route for o in outcomes if o.edge_route)),
        error_examples=_examples(outcomes),
        requests=[_line(number, o, slo) for number, part in enumerate(parts, 1) for o in part.outcomes],
    )


def judge(outcomes: Sequence[Outcome], slo: Slo) -> Judged:
    """Measure requests against the SLO."""
    good = sum(outcome.good(slo) for outcome in outcomes)
    return Judged(
        requests=len(outcomes),
        good=good,
        good_share=round(good / len(outcomes), 4) if outcomes else None,
        ttft=latency([o.ttft_ms for o in outcomes if o.ttft_ms is not None]),
        itl=latency([gap for o in outcomes for gap in o.gaps_ms]),
    )


def latency(values_ms: Sequence[float]) -> Latency:
    """Sum up times in milliseconds."""
    if not values_ms:
        return Latency(count=0)
    p50, p90, p99 = (_round(percentile(values_ms, share)) for share in (0.5, 0.9, 0.99))
    return Latency(
        count=len(values_ms),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=_round(max(values_ms)),
        cdf=[(_round(value), round(share, 5)) for value, share in cdf(values_ms)],
    )


def _line(number: int, o: Outcome, slo: Slo) -> RequestLine:
    return RequestLine(
        round=number,
        due_s=_round(o.due_s),
        status=o.status,
        good=o.good(slo),
        long=o.long,
        ttft_ms=None if o.ttft_ms is None else _round(o.ttft_ms),
        itl_p99_ms=_round(percentile(o.gaps_ms, 0.99)) if o.gaps_ms else None,
        itl_max_ms=_round(max(o.gaps_ms)) if o.gaps_ms else None,
        tokens=o.tokens,
        edge_class=o.edge_class,
        edge_route=o.edge_route,
    )


def _examples(outcomes: Iterable[Outcome]) -> list[str]:
    details = Counter(o.detail for o in outcomes if o.status == "error")
    return [f"{count} times: {detail}" for detail, count in details.most_common(_EXAMPLES)]


def _per_second(count: float, seconds: float) -> float:
    return _round(count / seconds) if seconds > 0 else 0.0


def _round(value: float) -> float:
    return round(value, 3)
