"""A tracer that turns Python's audit events into spans."""

import sys
from typing import Any

from lightning_core import BaseTracer, LightningStore
from lightning_core.tracer import capture


class AuditTracer(BaseTracer):
    def __init__(self, events: dict[str, int]) -> None:
        self._events = events
        self._tracer = capture.private_provider(capture.SpanRouter()).get_tracer(__name__)
        # Python keeps an audit hook for ever. Outside the traces of this tracer it does nothing.
        sys.addaudithook(self._record)

    def _record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self._events and (trace := capture.current_trace()) and trace.tracer is self._tracer:
            kept = [str(argument) for argument in arguments[: self._events[event]]]
            self._tracer.start_span(event, attributes={"audit.arguments": kept}).end()

    def trace_context(
        self, name: str | None = None, *, store: LightningStore | None = None, **ids: str | None
    ) -> capture.TraceContext:
        trace = capture.LightningSpanProcessor(store, **ids, tracer=self._tracer)
        return capture.TraceContext(trace, root=name or "rollout")

    def get_last_trace(self) -> list[Any]:
        trace = capture.last_trace(self._tracer)
        return trace.spans if trace is not None else []
