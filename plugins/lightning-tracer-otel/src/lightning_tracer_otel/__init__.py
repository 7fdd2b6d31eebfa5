"""The ``otel`` tracer of lightning-core: LLM calls, the user's own spans and emitted rewards, by OpenTelemetry."""

from .tracer import OtelTracer

__all__ = ["OtelTracer"]
