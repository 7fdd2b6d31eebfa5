"""What emitters and tracers share: the mark of a trace in the context, and providers of spans of our own."""

from __future__ import annotations

import logging
import os
import random
from typing import Protocol, cast

from opentelemetry import context as context_api
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Status, Tracer
from opentelemetry.util.types import Attributes

__all__ = ["TRACE_KEY", "OpenTrace", "emit_span", "emitting_tracer", "private_provider"]

logger = logging.getLogger(__name__)

TRACE_KEY = context_api.create_key("lightning-trace")
"""Where an OpenTelemetry context says to which :class:`OpenTrace` it belongs."""


class OpenTrace(Protocol):
    """What a trace must offer to the emitters."""

    @property
    def tracer(self) -> Tracer | None:
        """What starts the emitted spans, so that they become part of the trace."""


class _IdGenerator(RandomIdGenerator):
    """Draws ids from a generator of our own.

    The SDK draws them from ``random``: an agent that calls ``random.seed`` would repeat ids, and a span with
    the id of another counts as stored already; nor should tracing change the numbers that an agent draws.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._random.seed)

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1


_ids: _IdGenerator | None = None


def private_provider(*processors: SpanProcessor, service_name: str | None = None) -> TracerProvider:
    """Make a tracer provider that is nobody's global one, exports nothing by itself and loses nothing.

    What the OpenTelemetry environment variables say about sampling, limits and switching off is meant for the
    user's own telemetry. It must not thin out training data, so none of it applies here.

    Args:
        processors: What to hand the spans to.
        service_name: What spans name as their service; by default ``OTEL_SERVICE_NAME``, else
            ``lightning-core``.
    """
    global _ids
    if _ids is None:
        _ids = _IdGenerator()
    unlimited = SpanLimits.UNSET
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        # Not Resource.create(), which runs every installed resource detector.
        resource=Resource(
            {SERVICE_NAME: service_name or os.environ.get("OTEL_SERVICE_NAME") or "lightning-core"}
        ),
        shutdown_on_exit=False,
        id_generator=_ids,
        # The default of 128 attributes drops the messages of a long conversation in silence.
        span_limits=SpanLimits(
            max_attributes=unlimited,
            max_events=unlimited,
            max_links=unlimited,
            max_span_attributes=unlimited,
            max_event_attributes=unlimited,
            max_link_attributes=unlimited,
            max_attribute_length=unlimited,
            max_span_attribute_length=unlimited,
        ),
    )
    # OTEL_SDK_DISABLED has no public switch.
    provider._disabled = False  # pyright: ignore[reportPrivateUsage]
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


_nowhere: Tracer | None = None


def emitting_tracer() -> Tracer:
    """Return what starts an emitted span: the current trace's tracer, or one whose spans go nowhere.

    The first call outside any trace logs a warning.
    """
    trace = cast("OpenTrace | None", context_api.get_value(TRACE_KEY))
    if trace is not None and trace.tracer is not None:
        return trace.tracer
    global _nowhere
    if _nowhere is None:
        logger.warning(
            "a span was emitted outside any trace: it is stored nowhere. An agent that a runner runs is inside "
            "one, and so is `with tracer.trace_context():`. This is logged once"
        )
        _nowhere = private_provider().get_tracer("lightning_core")
    return _nowhere


def emit_span(name: str, attributes: Attributes, status: Status | None = None) -> ReadableSpan:
    """Record something that has no duration as a span of the current trace, and return the span."""
    span = emitting_tracer().start_span(name, attributes=attributes)
    if status is not None:
        span.set_status(status)
    span.end()
    # The spans of the SDK's providers, ours or the user's, are readable.
    return cast(ReadableSpan, span)
