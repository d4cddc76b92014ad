"""A collector that takes OTLP over HTTP and keeps what it got, decoded by OpenTelemetry's own protobuf classes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_PATIENCE_S = 60.0


@dataclass
class Sink:
    """`sick`: it answers 400 to everything. `before_answer` is called with the path of each request, on its thread."""

    port: int = 0
    sick: bool = False
    before_answer: Callable[[str], object] = lambda path: None
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bytes: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Span]:
        return [s for r in self.traces for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    def newest(self) -> dict[str, Metric]:
        """The metrics of the last request, by name."""
        last = self.metrics[-1]
        return {m.name: m for rm in last.resource_metrics for sm in rm.scope_metrics for m in sm.metrics}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_s, "the collector was not sent what it waits for"
            time.sleep(0.05)


def plain(attributes: list[KeyValue]) -> dict[str, object]:
    """Attributes as Python has them."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in attributes}


@contextmanager
def collecting() -> Iterator[Sink]:
    """Run one."""
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            sink.headers.append({name.lower(): value for name, value in self.headers.items()})
            sink.bytes += data
            assert self.headers["content-type"] == "application/x-protobuf"
            sink.before_answer(self.path)
            if not sink.sick:
                if self.path == "/v1/metrics":
                    sink.metrics.append(ExportMetricsServiceRequest.FromString(data))
                elif self.path == "/v1/traces":
                    sink.traces.append(ExportTraceServiceRequest.FromString(data))
            self.send_response(400 if sink.sick else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sink.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
