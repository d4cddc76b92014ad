"""What is sampled and which log events are passed on."""

from __future__ import annotations

import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edge.logs import change_level, listen, start_logging
from edge.telemetry.alarms import Alarms
from edge.telemetry.collector import TTFT, EventHandler, Latencies, RequestTrace, sample


def test_a_sample_has_totals_gauges_and_the_intervals_latencies() -> None:
    registry, latencies = CollectorRegistry(), Latencies()
    counter = Counter("edge_requests", "x", ["route"], registry=registry)
    Counter("edge_never", "x", registry=registry)
    Gauge("edge_slots", "x", registry=registry).set(4)
    Histogram("edge_seconds", "x", registry=registry).observe(1)
    counter.labels("/v1").inc(3)
    latencies.observe_all("ttft", "chat", "m", [0.02])
    first, second = (sample(registry, latencies, 7) for _ in range(2))
    assert first.counters == {("edge_requests", (("route", "/v1"),)): 3.0}
    assert first.gauges == {("edge_slots", ()): [4.0, 4.0, 4.0]}
    ((key, histogram),) = first.histograms.items()
    assert key == (TTFT, (("gen_ai.response.model", "m"),)) and histogram.count == 1
    assert second.histograms == {}


def test_only_listed_events_and_fields_are_passed_on() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    handler = EventHandler(lambda name, fields: told.append((name, fields)))
    log = logging.getLogger("edge.test.collector")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        log.warning("x", extra={"event": "engine_down", "reason": "it died", "prompt": "a secret"})
        log.warning("x", extra={"event": "something_else", "reason": "y"})
        log.info("no event")
    finally:
        log.removeHandler(handler)
    assert told == [("engine_down", {"level": "warning", "reason": "it died"})]


def test_events_are_passed_on_although_the_log_shows_errors_only(capsys: Any) -> None:
    told: list[str] = []
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        start_logging("error", "text")
        listen(EventHandler(lambda name, _: told.append(name)))
        logging.getLogger("edge.x").info("engine ready", extra={"event": "engine_ready"})
        assert told == ["engine_ready"] and "engine ready" not in capsys.readouterr().err
        change_level("info")
        logging.getLogger("edge.x").info("engine ready", extra={"event": "engine_ready"})
        assert "engine ready" in capsys.readouterr().err
    finally:
        root.handlers[:], root.level = before


def test_an_alarm_is_told_once_and_when_it_ends() -> None:
    told: list[tuple[str, Any]] = []
    alarms = Alarms()
    alarms.on_change = lambda name, fields: told.append((name, fields["code"]))
    for _ in range(3):
        alarms.set("uplink_down", "it is away", "bring it back")
    assert [(a["code"], a["text"], a["cure"]) for a in alarms.active()] == [
        ("uplink_down", "it is away", "bring it back")
    ]
    alarms.clear("uplink_down")
    alarms.clear("uplink_down")
    assert told == [("alarm_raised", "uplink_down"), ("alarm_cleared", "uplink_down")]
    assert alarms.active() == []


def test_a_trace_tells_of_the_next_requests_once_they_are_over() -> None:
    told: list[str] = []
    trace = RequestTrace(lambda _, fields: told.append(fields["request_id"]))
    old = {"at": time.time() - 10, "request_id": "old", "outcome": "ok"}
    trace.begin(2)
    now = time.time()
    entries = [{"at": now + 3, "request_id": "c", "outcome": "ok"}, {"at": now + 2, "request_id": "b", "outcome": ""}]
    trace.look([*entries, {"at": now + 1, "request_id": "a", "outcome": "ok"}, old])
    assert told == ["a", "c"] and not trace.active
    trace.look([*entries, old])
    assert told == ["a", "c"]
