"""``Span`` and its parts: what OpenTelemetry records, as plain data with times in seconds and ids in hex."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from opentelemetry import trace as trace_api
from opentelemetry.sdk.resources import Resource as _SdkResource
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

_NANOSECONDS = 1_000_000_000


class SpanNames(StrEnum):
    """Names of the spans that lightning-core itself writes."""

    REWARD = "lightning.reward"
    MESSAGE = "lightning.message"
    OBJECT = "lightning.object"
    EXCEPTION = "lightning.exception"
    ANNOTATION = "lightning.annotation"
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


class Span(Model):
    """One span of one attempt, as stored.

    ``sequence_id`` orders the spans of an attempt; it is drawn by the store when the span is first written, that
    is, in the order in which spans end. 0 means "not drawn yet". Timestamps are seconds since the epoch and
    order nothing. Fields that are not listed here are kept as they are.
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
        context = span.get_span_context()
        if context is None:
            raise ValueError(f"span {span.name!r} has no span context, so it cannot be stored")
        parent = span.parent
        status = span.status
        scope = span.instrumentation_scope
        start_time, end_time = span.start_time, span.end_time
        own_context = SpanContext.from_opentelemetry(context)
        parent_context = SpanContext.from_opentelemetry(parent) if parent is not None else None
        values: dict[str, Any] = {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": sequence_id,
            "trace_id": own_context.trace_id,
            "span_id": own_context.span_id,
            "parent_id": parent_context.span_id if parent_context is not None else None,
            "name": span.name,
            "status": TraceStatus.trusted(
                {"status_code": status.status_code.name, "description": status.description}
            ),
            "attributes": _attributes(span.attributes),
            "events": [
                Event.trusted(
                    {
                        "name": event.name,
                        "attributes": _attributes(event.attributes),
                        "timestamp": event.timestamp / _NANOSECONDS,
                    }
                )
                for event in span.events
            ],
            "links": [
                Link.trusted(
                    {
                        "context": SpanContext.from_opentelemetry(link.context),
                        "attributes": _attributes(link.attributes),
                    }
                )
                for link in span.links
            ],
            "start_time": start_time / _NANOSECONDS if start_time is not None else None,
            "end_time": end_time / _NANOSECONDS if end_time is not None else None,
            "context": own_context,
            "parent": parent_context,
            "resource": _convert_resource(span.resource),
        }
        extra: dict[str, Any] = {"kind": span.kind.name}
        if scope is not None:
            extra["instrumentation_scope"] = {"name": scope.name, "version": scope.version}
        for key in vars(span):
            if key[0] != "_" and key not in values and _is_json(value := getattr(span, key)):
                extra[key] = value
        return cls.trusted(values, extra)

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Attributes,
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

        Ids are drawn at random, times (seconds since the epoch) are now, and the name is that of a virtual span.
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
            attributes=attributes,
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
        values["attributes"] = _attributes(self.attributes)
        values["events"] = [
            Event.trusted(event.__dict__ | {"attributes": _attributes(event.attributes)})
            for event in self.events
        ]
        values["links"] = [link.model_copy(deep=True) for link in self.links]
        if self.context is not None:
            values["context"] = self.context.detached()
        if self.parent is not None:
            values["parent"] = self.parent.detached()
        resource = self.resource
        values["resource"] = OtelResource.trusted(
            resource.__dict__ | {"attributes": _attributes(resource.attributes)}
        )
        values.update(changes)
        extra = self.__pydantic_extra__
        return self.trusted(values, {key: copy_value(value) for key, value in extra.items()} if extra else {})


SpanLike: TypeAlias = ReadableSpan | Span
"""A span of the OpenTelemetry SDK, or a stored one."""


def _attributes(attributes: Mapping[str, Any] | None) -> Attributes:
    if not attributes:
        return {}
    # The SDK's attributes are a Python-level mapping whose own copy is ten times faster than dict().
    copy: Callable[[], dict[str, Any]] | None = getattr(attributes, "copy", None)
    copied: dict[str, Any] = copy() if copy is not None else dict(attributes)
    for key, value in copied.items():
        if value.__class__ is tuple or value.__class__ is list:
            copied[key] = list(value)
    return copied


# The resource is the provider's, the same object for every span: converting it once is enough.
_last_resource: tuple[_SdkResource, Attributes, str] | None = None


def _convert_resource(resource: _SdkResource) -> OtelResource:
    global _last_resource
    last = _last_resource
    if last is None or last[0] is not resource:
        _last_resource = last = (resource, _attributes(resource.attributes), resource.schema_url)
    return OtelResource.trusted({"attributes": _attributes(last[1]), "schema_url": last[2]})


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
