"""Spans of a request: the HTTP server's, in it queue, prefill and decode as the engine timed them, and calls of the fleet.

A forward pass serves several requests at a time, so no span of one has a pass as its parent. Attributes follow OpenTelemetry's
conventions for HTTP and for generative models; none holds what was said.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.span import Span, TraceState
from starlette.datastructures import Headers

from edge.admission.decisions import Entry
from edge.api.job import Job
from edge.api.tracing import Parent, headers_of, parent_of

_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_SERVER_FAULT = 500
_PROVIDER = "edge"


class Traces:
    """Where traces begin. Behind `edge.api.tracing.Tracing`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, path: str, headers: Headers, at_s: float) -> Trace:
        """A request came."""
        return Trace(self._tracer, path, parent_of(headers), at_s)


class Trace:
    """Of one request. Behind `edge.api.tracing.RequestTrace`; one event loop."""

    def __init__(self, tracer: Tracer, path: str, parent: Parent | None, at_s: float) -> None:
        self._tracer = tracer
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        """From monotonic to Unix time; taken once, so that the spans of one request lie right to each other."""
        self._operation = _OPERATIONS.get(path, "")
        self._state = parent.state if parent is not None else ""
        attributes = {"http.request.method": "POST", "url.path": path, "http.route": path, "url.scheme": "http"}
        context = _context(parent) if parent is not None else Context()
        self._span = tracer.start_span(f"POST {path}", context, SpanKind.SERVER, attributes, start_time=self._ns(at_s))
        self._calls: list[Span] = []
        self.entry: Entry | None = None
        self.job: Job | None = None

    def forwarded(self) -> dict[str, str]:
        """A span for a call of the fleet begins."""
        context = trace.set_span_in_context(self._span, Context())
        call = self._tracer.start_span(f"{self._operation} fleet", context, SpanKind.CLIENT)
        self._calls.append(call)
        return headers_of(_parent(call, self._state))

    def answered(self) -> dict[str, str]:
        """`traceresponse` (W3C Trace Context, level 2)."""
        return {"traceresponse": _parent(self._span, "").header}

    def ended(self, status: int | None) -> None:
        """Fill in what is known by now, and let it go."""
        entry, job, span = self.entry, self.job, self._span
        for call in self._calls:
            if entry is not None and entry.upstream:
                call.set_attribute("server.address", entry.upstream)
            call.end()
        if span.is_recording():
            if entry is not None:
                span.set_attributes(_of_entry(entry, self._operation))
            if job is not None:
                self._phases(job)
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            failed = _failure(entry, status)
            if failed:
                span.set_attribute("error.type", failed)
            if failed and (status is None or status >= _SERVER_FAULT or status == 200):
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _phases(self, job: Job) -> None:
        """Queue, prefill and decode, one after the other from when the engine was asked."""
        last = job.finished[-1] if job.finished else None
        timing = last.timing if last is not None and len(job.finished) == 1 else job.timing
        context, at_s = trace.set_span_in_context(self._span, Context()), job.begun_s
        parts = (("queue", timing.queue_s), ("prefill", timing.prefill_s), ("decode", timing.decode_s))
        for name, took_s in parts if timing.prefill_s > 0 else ():
            if name == "decode" and not took_s:
                continue  # it broke off, and nobody knows when
            self._tracer.start_span(name, context, start_time=self._ns(at_s)).end(self._ns(at_s + took_s))
            at_s += took_s
        if job.finished:
            used = sum(f.completion_tokens for f in job.finished)
            self._span.set_attribute("gen_ai.usage.output_tokens", used)

    def _ns(self, at_s: float) -> int:
        return int(at_s * 1e9) + self._offset_ns


def _of_entry(entry: Entry, operation: str) -> dict[str, str | int | float]:
    known = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": entry.model or None,
        "gen_ai.response.model": (entry.model or None) if not entry.upstream else None,
        "gen_ai.usage.input_tokens": entry.prompt_tokens,
        "edge.request_id": entry.request_id,
        "edge.route": entry.route or None,
        "edge.reason": entry.reason or None,
        "edge.tier": entry.tier,
        "edge.cached_tokens": entry.cached_tokens,
        "edge.predicted_ttft_s": entry.predicted_ttft_s,
        "edge.ttft_s": entry.ttft_s,
        "edge.itl_max_s": entry.itl_max_s,
        "edge.continued_by": entry.continued or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _failure(entry: Entry | None, status: int | None) -> str:
    """An error's code, empty if all went well."""
    if entry is not None and entry.outcome not in ("", "ok"):
        return entry.outcome
    if status is None:
        return "cancelled"
    return str(status) if status >= 400 else ""


def _context(parent: Parent) -> Context:
    span = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.state]) if parent.state else None,
    )
    return trace.set_span_in_context(NonRecordingSpan(span), Context())


def _parent(span: Span | SdkSpan, state: str) -> Parent:
    found = span.get_span_context()
    return Parent(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags), state)
