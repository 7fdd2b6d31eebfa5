"""``Span`` and its parts: what OpenTelemetry records, as plain data with times in seconds and ids in hex."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import ConfigDict, Field

from ._model import Model, copy_value

__all__ = [
    "AttributeValue",
    "Attributes",
    "Event",
    "Link",
    "OtelResource",
    "Span",
    "SpanAttributeNames",
    "SpanContext",
    "SpanLike",
    "SpanNames",
    "TraceStatus",
]

AttributeValue: TypeAlias = (
    str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
)
Attributes: TypeAlias = dict[str, AttributeValue]
"""Attributes as OpenTelemetry defines them: strings, bools, numbers and lists of one of these."""


class SpanNames(StrEnum):
    """Names of the spans that lightning-core itself writes."""

    REWARD = "lightning.reward"
    MESSAGE = "lightning.message"
    OBJECT = "lightning.object"
    EXCEPTION = "lightning.exception"
    ANNOTATION = "lightning.annotation"
    COMMAND = "lightning.command"
    """A run of a program that is the agent, with the end of what it wrote."""
    VIRTUAL = "lightning.virtual"
    """A span that stands for something no tracer saw, such as a root that a repaired trace lacks."""


class SpanAttributeNames(StrEnum):
    """Attributes of the spans that lightning-core itself writes."""

    MESSAGE = "message"
    OBJECT = "object"
    REWARD = "reward"


class SpanContext(Model):
    """Identity of a span: ``trace_id`` in 32 and ``span_id`` in 16 hexadecimal digits."""

    trace_id: str
    span_id: str
    is_remote: bool = False
    trace_state: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def from_opentelemetry(cls, context: trace_api.SpanContext) -> SpanContext:
        """Convert OpenTelemetry's span context."""
        state = context.trace_state
        return cls.trusted(
            {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "is_remote": context.is_remote,
                "trace_state": dict(state) if state else {},
            }
        )

    def detached(self) -> SpanContext:
        """Return a copy that shares no mutable part."""
        return self.trusted(self.__dict__ | {"trace_state": dict(self.trace_state)})


class TraceStatus(Model):
    """How a span ended; ``description`` is given only for errors."""

    status_code: Literal["UNSET", "OK", "ERROR"] = "UNSET"
    description: str | None = None


class Event(Model):
    """Something that happened during a span; ``timestamp`` in seconds since the epoch."""

    name: str
    attributes: Attributes = Field(default_factory=dict)
    timestamp: float | None = None


class Link(Model):
    """A reference to another span."""

    context: SpanContext
    attributes: Attributes | None = None


class OtelResource(Model):
    """What produced a span: OpenTelemetry's resource."""

    attributes: Attributes = Field(default_factory=dict)
    schema_url: str = ""

    def detached(self) -> OtelResource:
        """Return a copy that shares no mutable part."""
        return self.trusted({"attributes": copy_attributes(self.attributes), "schema_url": self.schema_url})


class Span(Model):
    """One span of one attempt, as stored.

    ``sequence_id`` orders the spans of an attempt; it is drawn by the store when the span is first written,
    that is, in the order in which spans end. 0 means "not drawn yet". Timestamps are seconds since the epoch
    and order nothing. Fields that are not listed here are kept as they are.
    """

    model_config = ConfigDict(defer_build=True, extra="allow")

    rollout_id: str
    attempt_id: str
    sequence_id: int = 0
    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str
    status: TraceStatus = Field(default_factory=TraceStatus)
    attributes: Attributes = Field(default_factory=dict)
    events: list[Event] = Field(default_factory=list[Event])
    links: list[Link] = Field(default_factory=list[Link])
    start_time: float | None = None
    end_time: float | None = None
    context: SpanContext | None = None
    parent: SpanContext | None = None
    resource: OtelResource = Field(default_factory=OtelResource)

    @classmethod
    def from_opentelemetry(
        cls, span: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int = 0
    ) -> Span:
        """Convert a span of the OpenTelemetry SDK.

        Public attributes that somebody has put on the span object are kept as extra fields if JSON can hold
        them, and so are the span's ``kind`` and ``instrumentation_scope``.

        Raises:
            ValueError: If the span has no context, and so no identity.
        """
        from ._conversion import convert_span

        shared = convert_span(span, rollout_id, attempt_id, sequence_id)
        values: dict[str, Any] = {**shared.__dict__}
        values["status"] = TraceStatus.trusted(values["status"].__dict__.copy())
        values["events"] = [*values["events"]]
        values["links"] = [*values["links"]]
        values["resource"] = values["resource"].detached()
        if (parent := values["parent"]) is not None:
            values["parent"] = parent.detached()
        extra = shared.__pydantic_extra__ or {}
        return cls.trusted(values, {key: copy_value(value) for key, value in extra.items()})

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Mapping[str, AttributeValue],
        rollout_id: str = "",
        attempt_id: str = "",
        sequence_id: int = 0,
        name: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        resource: OtelResource | None = None,
    ) -> Span:
        """Make a span from attributes alone; what is not given is made up sensibly.

        Ids are drawn at random, times (seconds since the epoch) are now, and the name is that of a virtual
        span.
        """
        now = time.time()
        trace_id = trace_id or secrets.token_hex(16)
        span_id = span_id or secrets.token_hex(8)
        return cls(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name or SpanNames.VIRTUAL.value,
            attributes=dict(attributes),
            start_time=now if start_time is None else start_time,
            end_time=now if end_time is None else end_time,
            context=SpanContext(trace_id=trace_id, span_id=span_id),
            parent=SpanContext(trace_id=trace_id, span_id=parent_id) if parent_id else None,
            resource=resource or OtelResource(),
        )

    def detached(self, **changes: Any) -> Span:
        """Return a copy with ``changes`` of plain fields that shares no mutable part with this span."""
        values = self.__dict__.copy()
        values["status"] = TraceStatus.trusted(self.status.__dict__.copy())
        values["attributes"] = copy_attributes(self.attributes)
        values["events"] = [
            Event.trusted(event.__dict__ | {"attributes": copy_attributes(event.attributes)})
            for event in self.events
        ]
        values["links"] = [link.model_copy(deep=True) for link in self.links]
        if self.context is not None:
            values["context"] = self.context.detached()
        if self.parent is not None:
            values["parent"] = self.parent.detached()
        values["resource"] = self.resource.detached()
        values.update(changes)
        extra = self.__pydantic_extra__
        return self.trusted(values, {key: copy_value(value) for key, value in extra.items()} if extra else {})


class SpanBatch(list[Span]):
    """Spans for a store that nobody else holds, as ``_conversion.convert_span`` makes them.

    A store may keep them without a copy. Like all that it keeps, it must copy them to hand them out.
    """

    __slots__ = ()


SpanLike: TypeAlias = ReadableSpan | Span
"""A span of the OpenTelemetry SDK, or a stored one."""


def copy_attributes(attributes: Attributes) -> Attributes:
    copied: dict[str, Any] = attributes.copy()
    for key, value in copied.items():
        if value.__class__ is list or value.__class__ is tuple:
            copied[key] = list(value)
    return copied
