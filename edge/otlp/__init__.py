"""Metrics and traces for an OpenTelemetry collector. Imported only where `otlp.endpoint` is set: the SDK costs memory."""
