"""First metrics, in Prometheus's text form. Counters live here; gauges are read from the engine at scrape time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.admission.decisions import DecisionLog
from edge.engine.port import Engine
from edge.fleet.central import Central
from edge.telemetry.collector import DURATION, ITL, TTFT
from edge.telemetry.node import Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Gauged(Protocol):
    """Metric families made at scrape time."""

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The families."""
        ...


class Timed:
    """A latency, for this page's histogram and for the uplink's."""

    def __init__(self, histogram: Histogram, name: str, telemetry: Telemetry | None) -> None:
        self._histogram, self._name = histogram, name
        self._latencies = telemetry.latencies if telemetry is not None else None

    def observe(self, seconds: float) -> None:
        """One of them."""
        self._histogram.observe(seconds)
        if self._latencies is not None:
            self._latencies.observe(self._name, seconds)


class NodeMetrics:
    """Owner of the node's metric registry."""

    def __init__(
        self, engine: Engine, decisions: DecisionLog, fleet: Central | None, telemetry: Telemetry | None = None
    ) -> None:
        self._registry = self.registry = CollectorRegistry()
        self._registry.register(_EngineGauges(engine))
        self._registry.register(_Decisions(decisions))
        if fleet is not None:
            self._registry.register(_FleetGauges(fleet))
        if telemetry is not None:
            self._registry.register(_OutboxGauges(telemetry))
        self.requests = Counter("edge_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        ttft = self._histogram("edge_ttft_seconds", "Request read to first text written.")
        itl = self._histogram("edge_itl_seconds", "Gap between two content events of one stream.")
        duration = self._histogram("edge_answer_seconds", "Request given to the engine to the end of its answer.")
        self.ttft, self.itl = Timed(ttft, TTFT, telemetry), Timed(itl, ITL, telemetry)
        self.duration = Timed(duration, DURATION, telemetry)
        self.violations = Counter(
            "edge_slo_violations",
            "Admitted answers' first tokens (ttft) and gaps (itl) that took longer than promised.",
            ["kind"],
            registry=self._registry,
        )
        self.continued = Counter(
            "edge_answers_continued",
            "Answers that the engine began and the fleet went on with.",
            registry=self._registry,
        )
        self.queue = self._histogram("edge_queue_seconds", "Request read by the engine to its first step.")
        self.prefill = self._histogram("edge_prefill_seconds", "First step of the prompt to the first token.")
        self.prompt_tokens = Counter(
            "edge_prompt_tokens", "Prompt tokens of finished requests.", registry=self._registry
        )
        self.answer_tokens = Counter(
            "edge_answer_tokens", "Tokens generated for finished requests.", registry=self._registry
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)

    def text(self) -> bytes:
        """The whole page."""
        return generate_latest(self._registry)


class _EngineGauges(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        status, stats = self._engine.status, self._engine.stats
        yield GaugeMetricFamily("edge_engine_ready", "1 while the engine answers.", float(status.phase == "ready"))
        yield CounterMetricFamily("edge_engine_restarts", "Times the engine was started anew.", float(status.restarts))
        yield GaugeMetricFamily("edge_requests_in_flight", "Requests in the engine.", float(self._engine.in_flight))
        if stats is None:
            return
        yield GaugeMetricFamily("edge_answers_running", "Answers that hold a slot.", stats.running)
        yield GaugeMetricFamily("edge_answers_waiting", "Answers that wait for a slot.", stats.waiting)
        yield GaugeMetricFamily("edge_slots", "Slots.", stats.slots)
        yield GaugeMetricFamily("edge_kv_cells_used", "KV cells in use.", stats.cells_used)
        yield GaugeMetricFamily("edge_kv_cells", "KV cells.", stats.cells)
        yield GaugeMetricFamily("edge_prefix_cache_bytes", "Memory of saved beginnings of prompts.", stats.cache_bytes)
        yield CounterMetricFamily("edge_prefix_cache_hits", "Prompts that began with known cells.", stats.cache_hits)
        yield CounterMetricFamily("edge_prefix_cache_evictions", "Saved beginnings given up.", stats.cache_evictions)
        yield CounterMetricFamily("edge_prefix_cache_tokens", "Prompt tokens not computed.", stats.cached_tokens)
        yield GaugeMetricFamily("edge_step_p50_seconds", "Median of the last 512 passes.", stats.step_p50_s)
        yield GaugeMetricFamily("edge_step_p99_seconds", "99th percentile of the last 512 passes.", stats.step_p99_s)
        yield GaugeMetricFamily("edge_forward_age_seconds", "Since the last forward pass.", stats.forward_age_s)
        yield GaugeMetricFamily("edge_engine_resident_bytes", "Resident memory of the engine.", stats.resident_bytes)


class _Decisions(Collector):
    def __init__(self, decisions: DecisionLog) -> None:
        self._decisions = decisions

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "edge_admission", "Requests by where they went, and why.", labels=["decision", "reason"]
        )
        for labels, count in self._decisions.counts.items():
            family.add_metric(labels, count)
        yield family


class _OutboxGauges(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        account = self._telemetry.account()
        yield GaugeMetricFamily("edge_uplink_connected", "1 while there is a session.", float(account["connected"]))
        alarms = GaugeMetricFamily("edge_alarm", "1 for each alarm that holds.", labels=["code"])
        for alarm in self._telemetry.alarms.active():
            alarms.add_metric([alarm["code"]], 1.0)
        yield alarms
        if "bytes" not in account:
            return
        yield GaugeMetricFamily("edge_outbox_bytes", "Disk and memory that the outbox takes.", account["bytes"])
        age_s = account["oldest_age_s"]
        yield GaugeMetricFamily("edge_outbox_oldest_age_seconds", "Age of the oldest unacknowledged record.", age_s)
        dropped = CounterMetricFamily("edge_outbox_dropped", "Records given up; each is in a gap.", labels=["kind"])
        for kind, count in account["dropped"].items():
            dropped.add_metric([kind], count)
        yield dropped
        yield CounterMetricFamily("edge_outbox_merged", "Metrics put into coarser ones.", account["merged"])


class _FleetGauges(Collector):
    def __init__(self, fleet: Central) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        usable = GaugeMetricFamily("edge_fleet_usable", "1 while an upstream is asked as usual.", labels=["upstream"])
        ttft = GaugeMetricFamily("edge_fleet_ttft_seconds", "First token expected of it.", labels=["upstream"])
        errors = GaugeMetricFamily("edge_fleet_error_share", "Share of requests that fail lately.", labels=["upstream"])
        for state in self._fleet.states():
            usable.add_metric([state.name], float(state.state == "closed"))
            ttft.add_metric([state.name], state.ttft_s)
            errors.add_metric([state.name], state.error_share)
        now_s = time.monotonic()
        yield from (usable, ttft, errors)
        yield GaugeMetricFamily(
            "edge_fleet_bytes_last_hour", "Traffic with the fleet, both ways.", self._fleet.bytes_cap.spent(now_s)
        )
        yield GaugeMetricFamily(
            "edge_fleet_cost_last_hour", "By usage and cost_per_million_tokens.", self._fleet.cost_cap.spent(now_s)
        )
