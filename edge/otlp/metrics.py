"""Metrics for the collector: latencies as exponential histograms under OpenTelemetry's names for generative models, and the
node's own counters and gauges as they stand on /metrics.

Nothing is instrumented a second time: at each export the node's own figures are put beside what the SDK has. Its own histograms
take ten times as long for each token.
Source: OpenTelemetry semantic conventions, GenAI metrics (server).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from edge.otlp.outcome import Outcome
from edge.telemetry.histogram import Histogram

T = TypeVar("T")
PROVIDER = "edge"
_NAMES = {
    "ttft": ("gen_ai.server.time_to_first_token", "Request read to first text written."),
    "itl": ("gen_ai.server.time_per_output_token", "Gap between two content events of one stream."),
    "whole": ("gen_ai.server.request.duration", "Request read to the end of its answer."),
}


class OnLoop(Protocol):
    """Runs a piece of work on the event loop, from another thread, and waits for what it returns."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Raises TimeoutError if the loop does not come to it."""
        ...


class Latencies:
    """Owner of the histograms. Lives on the event loop, so that counting takes no lock."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str, str], Histogram] = {}
        self.settle: Callable[[], None] = lambda: None
        """Set by who tells: has all told that is not told yet."""

    def observe_all(self, kind: str, operation: str, model: str, seconds: Sequence[float]) -> None:
        """Latencies of a kind: `ttft`, `itl` or `whole`."""
        key = (kind, operation, model)
        if (histogram := self._histograms.get(key)) is None:
            histogram = self._histograms[key] = Histogram()
        histogram.observe_all(seconds)

    def snapshot(self) -> dict[tuple[str, str, str], list[Any]]:
        """As they stand: `Histogram.packed` by (kind, operation, model)."""
        self.settle()
        return {key: histogram.packed() for key, histogram in self._histograms.items()}


def uptime(meter: Meter) -> None:
    """The SDK exports only if it has something itself: since when the node runs."""
    begun_s = time.monotonic()

    def seconds(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(time.monotonic() - begun_s)

    meter.create_observable_gauge("process.uptime", [seconds], unit="s", description="Since the node started.")


class NodeExporter(MetricExporter):
    """Adds the node's latencies, counters and gauges to each export."""

    def __init__(
        self,
        sender: MetricExporter,
        figures: Collector,
        latencies: Latencies,
        on_loop: OnLoop,
        scope: InstrumentationScope,
        outcome: Outcome,
    ) -> None:
        super().__init__()
        self._sender, self._outcome, self._scope = sender, outcome, scope
        self._figures, self._latencies, self._on_loop = figures, latencies, on_loop
        self._began_ns = time.time_ns()
        self._over = False
        self.sending = False
        """One export is under way."""

    def abandon(self) -> None:
        """Ask the event loop nothing any more: it is about to end."""
        self._over = True

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send all of it. On the SDK's thread."""
        if self._over:
            return MetricExportResult.FAILURE
        self.sending = True
        try:
            result = self._sender.export(self._with_the_nodes(metrics_data), timeout_millis=timeout_millis)
        finally:
            self.sending = False
        self._outcome.note(sent=result is MetricExportResult.SUCCESS, count=1)
        return result

    def _with_the_nodes(self, metrics_data: MetricsData) -> MetricsData:
        families, histograms = self._on_loop(lambda: (list(self._figures.collect()), self._latencies.snapshot()))
        now_ns = time.time_ns()
        made = [*latencies(histograms, self._began_ns, now_ns), *converted(families, self._began_ns, now_ns)]
        first = metrics_data.resource_metrics[0]
        own = ScopeMetrics(self._scope, made, "")
        return MetricsData([ResourceMetrics(first.resource, [*first.scope_metrics, own], first.schema_url)])

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """No more."""
        self._sender.shutdown(timeout_millis=timeout_millis)


def latencies(found: Mapping[tuple[str, str, str], list[Any]], began_ns: int, now_ns: int) -> list[Metric]:
    """Cumulative exponential histograms."""
    points: dict[str, list[ExponentialHistogramDataPoint]] = {}
    for (kind, operation, model), (scale, zeros, total, least, greatest, offset, counts) in found.items():
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
        point = ExponentialHistogramDataPoint(
            attributes, began_ns, now_ns, zeros + sum(counts), total, scale, zeros, Buckets(offset, counts),
            Buckets(0, []), 0, least, greatest,
        )  # fmt: skip
        points.setdefault(kind, []).append(point)
    return [
        Metric(*_NAMES[kind], "s", ExponentialHistogram(of_kind, AggregationTemporality.CUMULATIVE))
        for kind, of_kind in points.items()
    ]


def converted(families: Iterable[Family], began_ns: int, now_ns: int) -> list[Metric]:
    """Counters as cumulative sums, gauges as gauges. Histograms are left out: they are sent with finer buckets."""
    found: list[Metric] = []
    for family in families:
        counts = family.type == "counter"
        wanted = f"{family.name}_total" if counts else family.name
        if family.type not in ("counter", "gauge"):
            continue
        points = [
            NumberDataPoint(dict(sample.labels), began_ns if counts else 0, now_ns, float(sample.value))
            for sample in family.samples
            if sample.name == wanted
        ]
        if points:
            data = Sum(points, AggregationTemporality.CUMULATIVE, True) if counts else Gauge(points)
            found.append(Metric(family.name, family.documentation, "", data))
    return found
