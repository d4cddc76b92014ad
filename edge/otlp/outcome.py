"""How sending goes: a failure is said once, and once that it is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

log = logging.getLogger(__name__)

_MOST_SPANS = 2048
"""That wait; the oldest make room for more. The SDK's own default."""


class Outcome:
    """Of one kind of signal, to one collector."""

    def __init__(self, signal: str, endpoint: str) -> None:
        self._fields = {"signal": signal, "endpoint": endpoint}
        self._failing = False

    def note(self, *, sent: bool, count: int) -> None:
        """One try is over."""
        if not sent and not self._failing:
            log.warning("the collector does not take it", extra={"event": "otlp_failed", "lost": count, **self._fields})
        elif sent and self._failing:
            log.info("the collector takes it again", extra={"event": "otlp_works", **self._fields})
        self._failing = not sent


class ToldSpanExporter(SpanExporter):
    """Passes spans on, and notes what became of them."""

    def __init__(self, sender: SpanExporter, outcome: Outcome) -> None:
        self._sender, self._outcome = sender, outcome
        self.begun = self.done = 0
        """Spans that were taken to be sent, and those of which it is known what became of them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send."""
        self.begun += len(spans)
        try:
            result = self._sender.export(spans)
        finally:
            self.done += len(spans)
        self._outcome.note(sent=result is SpanExportResult.SUCCESS, count=len(spans))
        return result

    def shutdown(self) -> None:
        """No more."""
        self._sender.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._sender.force_flush(timeout_millis)


class CountedSpans(BatchSpanProcessor):
    """The SDK's queue of spans, which knows how many are in it. Spans end on one event loop."""

    def __init__(self, exporter: ToldSpanExporter) -> None:
        super().__init__(exporter, max_queue_size=_MOST_SPANS)
        self._exporter = exporter
        self._queued = 0
        """Of all spans, those that waited and were not pushed out by others."""

    def on_end(self, span: ReadableSpan) -> None:
        """One more waits, if it is to be sent."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._queued += self._queued - self._exporter.begun < _MOST_SPANS
        super().on_end(span)

    @property
    def left(self) -> int:
        """Spans that wait, or are being sent."""
        return self._queued - self._exporter.done
