"""Metrics for the collector: latencies as exponential histograms under OpenTelemetry's names for generative models, and the
node's own counters and gauges as they stand on /metrics.

The registry is not instrumented a second time: at each export its families are put beside what the SDK has.
Source: OpenTelemetry semantic conventions, GenAI metrics (server).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import Counter, Histogram
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
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
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family

from edge.otlp.outcome import Outcome

Collect = Callable[[], Sequence[Family]]
MAX_BUCKETS = 160
PROVIDER = "edge"
_NAMES = {
    "ttft": ("gen_ai.server.time_to_first_token", "Request read to first text written."),
    "itl": ("gen_ai.server.time_per_output_token", "Gap between two content events of one stream."),
    "whole": ("gen_ai.server.request.duration", "Request read to the end of its answer."),
}


def views() -> list[View]:
    """All histograms with base-2 exponential buckets."""
    aggregation = ExponentialBucketHistogramAggregation(max_size=MAX_BUCKETS)
    return [View(instrument_type=Histogram, instrument_name="*", aggregation=aggregation)]


class Latencies:
    """The histograms. Fed on the event loop."""

    def __init__(self, meter: Meter) -> None:
        self._histograms = {
            kind: meter.create_histogram(name, unit="s", description=text) for kind, (name, text) in _NAMES.items()
        }
        self._attributes: dict[tuple[str, str], dict[str, str]] = {}
        begun_s = time.monotonic()

        def uptime(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(time.monotonic() - begun_s)

        meter.create_observable_gauge("process.uptime", [uptime], unit="s", description="Since the node started.")

    def observe(self, kind: str, operation: str, model: str, seconds: float) -> None:
        """One latency: `ttft`, `itl` or `whole`."""
        key = (operation, model)
        if (attributes := self._attributes.get(key)) is None:
            attributes = self._attributes[key] = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
            }
        self._histograms[kind].record(seconds, attributes)


class RegistryExporter(MetricExporter):
    """Adds the registry's counters and gauges to each export."""

    def __init__(self, sender: MetricExporter, collect: Collect, version: str, outcome: Outcome) -> None:
        super().__init__({Counter: AggregationTemporality.CUMULATIVE, Histogram: AggregationTemporality.CUMULATIVE})
        self._sender, self._collect, self._outcome = sender, collect, outcome
        self._scope = InstrumentationScope("edge.registry", version)
        self._began_ns = time.time_ns()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send all of it."""
        families = converted(self._collect(), self._began_ns, time.time_ns())
        first = metrics_data.resource_metrics[0]
        own = ScopeMetrics(self._scope, families, "")
        whole = MetricsData([ResourceMetrics(first.resource, [*first.scope_metrics, own], first.schema_url)])
        result = self._sender.export(whole, timeout_millis=timeout_millis)
        self._outcome.note(sent=result is MetricExportResult.SUCCESS, count=1)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """No more."""
        self._sender.shutdown(timeout_millis=timeout_millis)


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
