"""Metric families that are read from their owners when somebody asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.admission.decisions import DecisionLog
from edge.fleet.central import Central
from edge.identity.keeper import Keeper
from edge.residency import Pool
from edge.telemetry.node import Telemetry


class EngineGauges(Collector):
    """Of the main model's engine."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As they stand."""
        status, engine = self._pool.roster.status(self._pool.roster.main), self._pool.roster.main_engine
        stats, in_flight = (engine.stats, engine.in_flight) if engine is not None else (None, 0)
        counts = self._pool.roster.counts(self._pool.roster.main)
        yield GaugeMetricFamily("edge_engine_ready", "1 while the engine answers.", float(status.phase == "ready"))
        yield CounterMetricFamily("edge_engine_restarts", "Times the engine was started anew.", counts.restarts)
        yield CounterMetricFamily(
            "edge_engine_reductions", "Times it ran out of memory and took a smaller layout.", counts.reductions
        )
        yield GaugeMetricFamily("edge_requests_in_flight", "Requests in the engine.", float(in_flight))
        if engine is not None:
            yield CounterMetricFamily(
                "edge_prefix_cache_hits", "Prompts that began with known cells.", counts.cache_hits
            )
            yield CounterMetricFamily(
                "edge_prefix_cache_evictions", "Saved beginnings given up.", counts.cache_evictions
            )
            yield CounterMetricFamily("edge_prefix_cache_tokens", "Prompt tokens not computed.", counts.cached_tokens)
        if stats is None:
            return
        yield GaugeMetricFamily("edge_answers_running", "Answers that hold a slot.", stats.running)
        yield GaugeMetricFamily("edge_answers_waiting", "Answers that wait for a slot.", stats.waiting)
        yield GaugeMetricFamily("edge_slots", "Slots.", stats.slots)
        yield GaugeMetricFamily("edge_kv_cells_used", "KV cells in use.", stats.cells_used)
        yield GaugeMetricFamily("edge_kv_cells", "KV cells.", stats.cells)
        yield GaugeMetricFamily("edge_prefix_cache_bytes", "Memory of saved beginnings of prompts.", stats.cache_bytes)
        yield GaugeMetricFamily("edge_step_p50_seconds", "Median of the last 512 passes.", stats.step_p50_s)
        yield GaugeMetricFamily("edge_step_p99_seconds", "99th percentile of the last 512 passes.", stats.step_p99_s)
        yield GaugeMetricFamily("edge_forward_age_seconds", "Since the last forward pass.", stats.forward_age_s)
        yield GaugeMetricFamily("edge_engine_resident_bytes", "Resident memory of the engine.", stats.resident_bytes)


class ModelGauges(Collector):
    """Of every model, with its name."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As they stand."""
        ready = GaugeMetricFamily("edge_model_ready", "1 while the model answers.", labels=["model"])
        planned = GaugeMetricFamily("edge_model_planned_bytes", "Room that is taken for it.", labels=["model"])
        resident = GaugeMetricFamily("edge_model_resident_bytes", "Resident memory of its engine.", labels=["model"])
        running = GaugeMetricFamily("edge_model_requests_in_flight", "Requests in its engine.", labels=["model"])
        waiting = GaugeMetricFamily(
            "edge_model_requests_waiting", "Requests that wait until it is loaded.", labels=["model"]
        )
        loads = CounterMetricFamily("edge_model_loads", "Times it was loaded.", labels=["model"])
        failures = CounterMetricFamily(
            "edge_model_failures", "Times it could not be loaded, or died.", labels=["model"]
        )
        unloads = CounterMetricFamily("edge_model_unloads", "Times it left, and why.", labels=["model", "reason"])
        for state in self._pool.roster.states():
            label = [state.spec.name]
            ready.add_metric(label, float(state.standing == "ready"))
            planned.add_metric(label, state.bytes_planned or 0)
            resident.add_metric(label, state.bytes_resident or 0)
            running.add_metric(label, state.in_flight)
            waiting.add_metric(label, state.waiting)
            loads.add_metric(label, state.loads)
            failures.add_metric(label, state.failures)
        for model, reason, count in self._pool.roster.unloads():
            unloads.add_metric([model, reason], count)
        yield from (ready, planned, resident, running, waiting, loads, failures, unloads)
        yield GaugeMetricFamily("edge_models_room_bytes", "Memory for all models.", self._pool.limits.room_bytes)


class TensorGauges(Collector):
    """Of models that answer with numbers: times while they are loaded, totals from then on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As they stand."""
        texts = CounterMetricFamily("edge_tensor_texts", "Texts read.", labels=["model"])
        passes = CounterMetricFamily("edge_tensor_passes", "Passes over texts or tensors.", labels=["model"])
        median = GaugeMetricFamily("edge_tensor_pass_p50_seconds", "Median of the last 512 passes.", labels=["model"])
        slow = GaugeMetricFamily(
            "edge_tensor_pass_p99_seconds", "99th percentile of the last 512 passes.", labels=["model"]
        )
        for model in self._pool.roster:
            label, engine = [model.spec.name], self._pool.roster.engine(model.spec.name)
            counts = self._pool.roster.counts(model.spec.name)
            stats = engine.stats if engine is not None and engine.kind == "tensors" else None
            if stats is not None or counts.passes:
                texts.add_metric(label, counts.texts)
                passes.add_metric(label, counts.passes)
            if stats is None:
                continue
            median.add_metric(label, stats.pass_p50_s)
            slow.add_metric(label, stats.pass_p99_s)
        yield from (texts, passes, median, slow)


class Decisions(Collector):
    """Where requests went."""

    def __init__(self, decisions: DecisionLog) -> None:
        self._decisions = decisions

    def collect(self) -> Iterator[CounterMetricFamily]:
        """As they stand."""
        family = CounterMetricFamily(
            "edge_admission", "Requests by where they went, and why.", labels=["decision", "reason"]
        )
        for labels, count in self._decisions.counts.items():
            family.add_metric(labels, count)
        yield family


class OutboxGauges(Collector):
    """Of the outbox and the session with the broker."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As they stand."""
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


class IdentityGauges(Collector):
    """Of the node's certificate."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As they stand."""
        about = self._keeper.account()
        if about is None:
            return
        damaged = about["standing"] == "damaged"
        yield GaugeMetricFamily(
            "edge_identity_damaged",
            "1 while the node serves without its fleet, its identity being damaged.",
            float(damaged),
        )
        if damaged:
            return
        yield GaugeMetricFamily(
            "edge_certificate_expires_seconds",
            "Until the node's certificate ends; below 0: since it did.",
            about["certificate_left_s"],
        )
        failing = float(bool(about["renewal_failure"]))
        yield GaugeMetricFamily("edge_certificate_renewal_failing", "1 if the last try to renew it failed.", failing)


class FleetGauges(Collector):
    """Of the upstreams."""

    def __init__(self, fleet: Central) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As they stand."""
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
