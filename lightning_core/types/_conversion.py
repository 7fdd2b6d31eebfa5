"""From the spans of the OpenTelemetry SDK to spans as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from opentelemetry import trace as trace_api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan

from ._model import copy_value
from .tracing import (
    Attributes,
    AttributeValue,
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
)

__all__ = ["convert_span"]

_NANOSECONDS = 1_000_000_000

# What most spans have in common is converted once and shared by all spans that convert_span makes: a store
# that keeps many spans is slowed down by the garbage collector, which visits every object again and again.
_UNSET = TraceStatus.trusted({"status_code": "UNSET", "description": None})
_NO_EVENTS: list[Event] = []
_NO_LINKS: list[Link] = []
_last_parent: tuple[trace_api.SpanContext, SpanContext] | None = None
_last_resource: tuple[Resource, OtelResource] | None = None
_last_extra: tuple[trace_api.SpanKind, Any, dict[str, Any]] | None = None


def convert_span(span: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int = 0) -> Span:
    """Convert a span of the OpenTelemetry SDK for a store, faster and smaller than ``Span.from_opentelemetry``.

    The result shares parts with other spans, so it is not to be changed, nor handed out without
    ``detached()``.

    Raises:
        ValueError: If the span has no context, and so no identity.
    """
    context = span.get_span_context()
    if context is None:
        raise ValueError(f"span {span.name!r} has no span context, so it cannot be stored")
    own = SpanContext.from_opentelemetry(context)
    parent = _convert_parent(span.parent)
    status = span.status
    start_time, end_time = span.start_time, span.end_time
    # The SDK's properties make a tuple anew; nearly always it is empty, which the list behind them tells at once.
    events = span.events if getattr(span, "_events", True) else None
    links = span.links if getattr(span, "_links", True) else None
    values: dict[str, Any] = {
        "rollout_id": rollout_id,
        "attempt_id": attempt_id,
        "sequence_id": sequence_id,
        "trace_id": own.trace_id,
        "span_id": own.span_id,
        "parent_id": parent.span_id if parent is not None else None,
        "name": span.name,
        "status": _UNSET if status.is_unset else _convert_status(status),
        "attributes": _convert_attributes(span.attributes),
        "events": [_convert_event(event) for event in events] if events else _NO_EVENTS,
        "links": [_convert_link(link) for link in links] if links else _NO_LINKS,
        "start_time": start_time / _NANOSECONDS if start_time is not None else None,
        "end_time": end_time / _NANOSECONDS if end_time is not None else None,
        "context": own,
        "parent": parent,
        "resource": _convert_resource(span.resource),
    }
    return Span.trusted(values, _convert_extra(span, values))


def _convert_parent(parent: trace_api.SpanContext | None) -> SpanContext | None:
    global _last_parent
    if parent is None:
        return None
    last = _last_parent
    if last is None or last[0] is not parent:
        _last_parent = last = (parent, SpanContext.from_opentelemetry(parent))
    return last[1]


def _convert_status(status: trace_api.Status) -> TraceStatus:
    return TraceStatus.trusted({"status_code": status.status_code.name, "description": status.description})


def _convert_event(event: SdkEvent) -> Event:
    return Event.trusted(
        {
            "name": event.name,
            "attributes": _convert_attributes(event.attributes),
            "timestamp": event.timestamp / _NANOSECONDS,
        }
    )


def _convert_link(link: trace_api.Link) -> Link:
    return Link.trusted(
        {
            "context": SpanContext.from_opentelemetry(link.context),
            "attributes": _convert_attributes(link.attributes),
        }
    )


def _convert_resource(resource: Resource) -> OtelResource:
    # It is the provider's, the same object for every span.
    global _last_resource
    last = _last_resource
    if last is None or last[0] is not resource:
        values = {"attributes": _convert_attributes(resource.attributes), "schema_url": resource.schema_url}
        _last_resource = last = (resource, OtelResource.trusted(values))
    return last[1]


def _convert_extra(span: ReadableSpan, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the kind, the instrumentation scope, and what somebody has put on the span object."""
    global _last_extra
    kind, scope = span.kind, span.instrumentation_scope
    last = _last_extra
    if last is None or last[0] is not kind or last[1] is not scope:
        extra: dict[str, Any] = {"kind": kind.name}
        if scope is not None:
            extra["instrumentation_scope"] = {"name": scope.name, "version": scope.version}
        _last_extra = last = (kind, scope, extra)
    extra = last[2]
    for key in vars(span):
        if key[0] != "_" and key not in fields and _is_json(value := getattr(span, key)):
            extra = extra | {key: copy_value(value)}
    return extra


_NUMBERS = frozenset({bool, int, float})


def _convert_attributes(attributes: Mapping[str, Any] | None) -> Attributes:
    """Copy attributes as plain values, turning what is none of OpenTelemetry's classic types into JSON text."""
    if not attributes:
        return {}
    # The SDK's attributes are a Python-level mapping whose own copy is ten times faster than dict().
    copy: Callable[[], dict[str, Any]] | None = getattr(attributes, "copy", None)
    copied: dict[str, Any] = copy() if copy is not None else dict(attributes)
    missing = False
    for key, value in copied.items():
        kind = value.__class__
        if kind is str:
            if not value.isascii():
                copied[key] = _storable(value)
        elif kind not in _NUMBERS:
            copied[key] = plain = _plain(value)
            missing = missing or plain is None
    if missing:
        return {key: value for key, value in copied.items() if value is not None}
    return copied


def _plain(value: Any) -> AttributeValue | None:
    """Convert an attribute of another type. Newer SDKs let through nested values, bytes and ``None``."""
    if value is None:
        return None
    if isinstance(value, str):
        return _storable(str.__str__(value))
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (list, tuple)):
        items: list[Any] = list(cast("Sequence[Any]", value))
        kinds = set(map(type, items))
        if kinds == {str}:
            return [_storable(item) for item in items]
        if kinds == {int, float}:
            return [float(item) for item in items]
        if len(kinds) <= 1 and kinds <= _NUMBERS:
            return items
    try:
        return _storable(json.dumps(value, default=str, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return _storable(repr(cast("object", value)))


def _storable(text: str) -> str:
    """Escape halves of surrogate pairs, which a model may well generate and no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
