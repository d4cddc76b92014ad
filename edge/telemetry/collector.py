"""What is told: metrics sampled from the node's registry, latencies of every request, and those log events that the fleet
should know.

Lives on the event loop's thread, where the figures change, so nothing needs a lock; what it makes goes through a queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.registry import Collector

from edge.telemetry.histogram import Histogram
from edge.telemetry.records import Labels, Sample

TTFT = "gen_ai.server.time_to_first_token"
ITL = "gen_ai.server.time_per_output_token"
DURATION = "gen_ai.server.request.duration"
KINDS = {"ttft": TTFT, "itl": ITL, "whole": DURATION}

TOLD = frozenset({
    "address_absent", "address_here", "answer_continued", "breaker_open", "context_beyond_training",
    "drain_incomplete", "engine_down", "engine_kill", "engine_ready", "engine_reduced", "engine_wedged", "enrolled",
    "gpu_back", "gpu_lost", "gpu_xid", "model_failed", "model_leaves", "model_loaded", "model_returns",
    "no_smaller_layout", "renewal_failed", "renewed", "request_trace", "stopping", "throttle", "throttle_over",
    "upstream_closed", "upstream_half_open", "upstream_in_the_clear", "upstream_open",
})  # fmt: skip
"""Log events that are sent too. None of them carries what a user said."""
_FIELDS = frozenset({
    "address", "bytes", "certificate_ends", "code", "context_tokens", "failures", "file", "generation", "gpu", "kv_type", "model",
    "reason", "request_id", "requests", "restart_in_s", "seconds", "signal", "signs", "silent_s", "slots",
    "trained_tokens", "upstream", "xid",
})  # fmt: skip
"""Their fields that are sent. What a later version adds to an event stays here until it stands in this list."""


class Latencies:
    """Owner of the histograms of the interval that runs."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self.settle: Callable[[], None] = lambda: None
        """Set by who tells: has all told that is not told yet."""

    def observe_all(self, kind: str, _operation: str, model: str, seconds: Sequence[float]) -> None:
        """Latencies of a kind in `KINDS`."""
        key = (KINDS[kind], model)
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = Histogram()
        histogram.observe_all(seconds)

    def take(self) -> dict[tuple[str, Labels], Histogram]:
        """Those of the interval, which ends here."""
        self.settle()
        taken, self._histograms = self._histograms, {}
        return {(name, (("gen_ai.response.model", model),)): histogram for (name, model), histogram in taken.items()}


def sample(figures: Collector, latencies: Latencies, began_ns: int) -> Sample:
    """Counters, which count from `began_ns` on, and gauges as they stand, and the latencies since the last sample. A counter that
    never counted is left out."""
    found = Sample(began_ns, {}, {}, latencies.take())
    for family in figures.collect():
        for line in family.samples:
            key = (family.name, tuple(sorted(line.labels.items())))
            if family.type == "counter" and line.name == f"{family.name}_total" and line.value:
                found.counters[key] = line.value
            elif family.type == "gauge":
                found.gauges[key] = [line.value] * 3
    return found


class EventHandler(logging.Handler):
    """Passes on those log events that the fleet should know."""

    def __init__(self, tell: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Called for every log event of the process."""
        name = getattr(record, "event", None)
        if name in TOLD:
            fields = {key: value for key, value in vars(record).items() if key in _FIELDS}
            self._tell(str(name), {"level": record.levelname.lower(), **fields})


class RequestTrace:
    """Tells of the next N requests, each when it is over: times, tokens and decisions, never content."""

    def __init__(self, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._tell = tell
        self._left = 0
        self._since = 0.0
        self._told: set[str] = set()

    def begin(self, requests: int) -> None:
        """From now on, so many."""
        self._left, self._since, self._told = requests, time.time(), set()

    @property
    def active(self) -> bool:
        """Whether some are still to come."""
        return self._left > 0

    def look(self, newest_first: Iterable[dict[str, Any]]) -> None:
        """At the node's decisions, as they stand."""
        fresh = []
        for entry in newest_first:
            if entry["at"] < self._since:
                break
            if entry["outcome"] and f"{entry['at']} {entry['request_id']}" not in self._told:
                fresh.append(entry)
        for entry in reversed(fresh[-self._left :] if self._left else []):
            self._told.add(f"{entry['at']} {entry['request_id']}")
            self._left -= 1
            self._tell("request_trace", entry)
