"""How sending goes: a failure is said once, and once that it is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger(__name__)


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

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send."""
        result = self._sender.export(spans)
        self._outcome.note(sent=result is SpanExportResult.SUCCESS, count=len(spans))
        return result

    def shutdown(self) -> None:
        """No more."""
        self._sender.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._sender.force_flush(timeout_millis)
