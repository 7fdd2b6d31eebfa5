"""The tracer without instrumentation: it records what the emitters emit, and nothing else."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.capture import (
    LightningSpanProcessor,
    SpanRouter,
    TraceContext,
    last_trace,
    private_provider,
)

__all__ = ["DummyTracer"]


class DummyTracer(BaseTracer):
    """Records emitted rewards, messages, objects, annotations and exceptions. Touches nothing else."""

    def __init__(self) -> None:
        self._tracer = private_provider(SpanRouter()).get_tracer("lightning_core")
        self._latest: LightningSpanProcessor | None = None

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Open a trace; see :meth:`BaseTracer.trace_context`. There is no root span to name."""
        self._latest = LightningSpanProcessor(store, rollout_id, attempt_id, tracer=self._tracer)
        return TraceContext(self._latest)

    def get_last_trace(self) -> list[ReadableSpan]:
        """Return the spans of the last trace; see :meth:`BaseTracer.get_last_trace`."""
        trace = last_trace(self._tracer) or self._latest
        return trace.spans if trace is not None else []
