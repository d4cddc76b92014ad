"""Starts and stops what sends to the collector. Sending happens on the SDK's own threads; what fails is said once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.registry import Collector

from edge.errors import ConfigurationError, NotYet
from edge.otlp.metrics import Latencies, NodeExporter, OnLoop, uptime
from edge.otlp.outcome import CountedSpans, Outcome, ToldSpanExporter
from edge.otlp.traces import Traces
from edge.settings import Otlp

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_GOODBYE_S = 3.0
"""For all that is left. A collector that accepts and says nothing would hold the SDK up for half a minute."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who sends: the node's name, and the version that it runs."""

    node: str
    version: str

    def resource(self) -> Resource:
        """The attributes of all that is sent. Those of the environment (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME) stand above
        ours, which nobody wrote: an operator's word counts more."""
        own = {"service.name": "edge-node", "service.version": self.version, "service.instance.id": self.node}
        return Resource.create({**own, **OTELResourceDetector().detect().attributes})


class OtlpSender:
    """Owner of the SDK's providers. `latencies` are to be fed from the event loop; `traces` is None if none are wanted."""

    def __init__(self, settings: Otlp, home: Path, source: Source, figures: Collector, on_loop: OnLoop) -> None:
        """`figures`: the node's own metrics, read on the loop. Raises ConfigurationError."""
        logging.getLogger("opentelemetry").setLevel(
            logging.CRITICAL
        )  # it says each failure at length; `Outcome` says it once
        headers = read_headers(home / settings.headers_file) if settings.headers_file is not None else {}
        base = settings.endpoint.rstrip("/")
        resource, version = source.resource(), source.version
        sender = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", headers=headers, timeout=_TIMEOUT_S)
        self.latencies = Latencies()
        scope = InstrumentationScope("edge.node", version)  # of its own: the exporter keeps one list for each scope
        outcome = Outcome("metrics", base)
        self._exporter = NodeExporter(sender, figures, self.latencies, on_loop, scope, outcome)
        reader = PeriodicExportingMetricReader(self._exporter, settings.interval_s * 1000)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        uptime(self._meters.get_meter("edge", version))
        self._tracers: TracerProvider | None = None
        self._spans: CountedSpans | None = None
        self.traces: Traces | None = None
        if settings.traces == "on":
            self._tracers = TracerProvider(
                ParentBased(TraceIdRatioBased(settings.sample)), resource, shutdown_on_exit=False
            )
            spans = OTLPSpanExporter(endpoint=f"{base}/v1/traces", headers=headers, timeout=_TIMEOUT_S)
            self._spans = CountedSpans(ToldSpanExporter(spans, Outcome("traces", base)))
            self._tracers.add_span_processor(self._spans)
            self.traces = Traces(self._tracers.get_tracer("edge", version))

    def stop(self) -> None:
        """Send what is left, for a few seconds; the rest is abandoned, and counted. Not on the event loop: the last metrics are
        collected there."""
        steps: dict[str, Callable[[], object]] = {"metrics": lambda: self._meters.shutdown(_GOODBYE_S * 1000)}
        if self._tracers is not None:
            steps["traces"] = self._tracers.shutdown
        # Threads that nobody waits for at the end of the process: one may hang in a call to the collector.
        threads = [Thread(target=_ended, args=(step,), name=f"otlp-end-{n}", daemon=True) for n, step in steps.items()]
        deadline_s = time.monotonic() + _GOODBYE_S
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._exporter.abandon()
        spans, unsent = self._spans.left if self._spans is not None else 0, int(self._exporter.sending)
        if spans or unsent:
            log.warning(
                "the collector did not take what was left; it is given up",
                extra={"event": "otlp_abandoned", "spans": spans, "metrics": unsent, "waited_s": _GOODBYE_S},
            )


def _ended(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception as error:
        log.warning("otlp did not end well", extra={"event": "otlp_end", "reason": str(error)})


def read_headers(path: Path) -> Mapping[str, str]:
    """Of a file with one `Name: value` a line. Raises ConfigurationError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise NotYet(f"cannot read otlp.headers_file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"cannot read otlp.headers_file {path}: it is not text") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name or not value or not (name + value).isprintable() or " " in name:
            raise ConfigurationError(f"line {number} of {path} is no header; write `Name: value`")
        found[name.lower()] = value
    return found
