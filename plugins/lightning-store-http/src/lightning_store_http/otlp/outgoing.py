"""From spans as they are stored to OTLP's messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_core.types import Event, Link, OtelResource, Span

from .extras import render_extra
from .incoming import KINDS, STATUSES, derived_flags
from .names import ATTEMPT_ID, ROLLOUT_ID, SEQUENCE_ID
from .values import nanoseconds, text, write_attributes, write_trace_state

__all__ = ["write_request"]

_KIND_NUMBERS = {name: number for number, name in KINDS.items()}
_STATUS_NUMBERS = {name: number for number, name in STATUSES.items()}
_NOTHING: dict[str, Any] = {}


def write_request(spans: Iterable[Span]) -> tuple[ExportTraceServiceRequest, dict[int, str]]:
    """Make one request of spans, grouped by resource and scope, in which they keep their order.

    The spans' rollout, attempt and sequence id become attributes.

    Returns:
        The request, and why spans are left out that OTLP cannot express, by their index.
    """
    request = ExportTraceServiceRequest()
    refused: dict[int, str] = {}
    resources: dict[str, ResourceSpans] = {}
    scopes: dict[tuple[str, str], ScopeSpans] = {}
    for index, span in enumerate(spans):
        extra = dict(span.__pydantic_extra__ or {})
        details = _pop_dict(extra, "otlp")
        scope = _pop_dict(extra, "instrumentation_scope")
        try:
            written = _write_span(span, extra, details)
            about = _pop_dict(details, "resource")
            resource_key = json.dumps(
                [span.resource.attributes, span.resource.schema_url, about], default=str
            )
            scope_key = (resource_key, json.dumps(scope, default=str))
            if (group := scopes.get(scope_key)) is None:
                if (parent := resources.get(resource_key)) is None:
                    parent = _write_resource(span.resource, about)
                    request.resource_spans.append(parent)
                    resources[resource_key] = parent = request.resource_spans[-1]
                parent.scope_spans.append(_write_scope(scope))
                scopes[scope_key] = group = parent.scope_spans[-1]
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            refused[index] = f"OTLP cannot express them: {error}"
        else:
            group.spans.append(written)
    return request, refused


def _pop_dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Take out a part that is a dictionary; anything else is somebody else's."""
    if isinstance(values.get(key), dict):
        return dict(values.pop(key))
    return {}


def _write_resource(resource: OtelResource, details: Mapping[str, Any]) -> ResourceSpans:
    written = Resource(
        attributes=write_attributes(resource.attributes),
        dropped_attributes_count=details.get("dropped_attributes_count", 0),
    )
    if "entity_refs" in details:
        ParseDict({"entityRefs": details["entity_refs"]}, written, ignore_unknown_fields=True)
    return ResourceSpans(resource=written, schema_url=text(resource.schema_url))


def _write_scope(scope: Mapping[str, Any]) -> ScopeSpans:
    written = ScopeSpans(schema_url=text(scope.get("schema_url") or ""))
    if "name" in scope:
        written.scope.CopyFrom(
            InstrumentationScope(
                name=text(scope["name"]),
                version=text(scope.get("version") or ""),
                attributes=write_attributes(scope.get("attributes") or _NOTHING),
                dropped_attributes_count=scope.get("dropped_attributes_count", 0),
            )
        )
    return written


def _write_span(span: Span, extra: dict[str, Any], details: Mapping[str, Any]) -> OtlpSpan:
    kind = _KIND_NUMBERS.get(str(extra.get("kind")), 0)
    if kind:
        del extra["kind"]
    attributes = {
        **span.attributes,
        ROLLOUT_ID: span.rollout_id,
        ATTEMPT_ID: span.attempt_id,
        **({SEQUENCE_ID: span.sequence_id} if span.sequence_id else {}),
        **render_extra(extra),
    }
    state = span.context.trace_state if span.context is not None else _NOTHING
    remote = span.parent is not None and span.parent.is_remote
    return OtlpSpan(
        trace_id=_bytes(span.trace_id, 16, "trace id"),
        span_id=_bytes(span.span_id, 8, "span id"),
        parent_span_id=_bytes(span.parent_id, 8, "parent id") if span.parent_id else b"",
        trace_state=details.get("trace_state") or write_trace_state(state),
        flags=details.get("flags", derived_flags(remote)),
        name=text(span.name),
        kind=cast("OtlpSpan.SpanKind.ValueType", kind),
        start_time_unix_nano=details.get("start_time_unix_nano") or nanoseconds(span.start_time),
        end_time_unix_nano=details.get("end_time_unix_nano") or nanoseconds(span.end_time),
        attributes=write_attributes(attributes),
        dropped_attributes_count=details.get("dropped_attributes_count", 0),
        events=_write_all(_write_event, span.events, details.get("events")),
        dropped_events_count=details.get("dropped_events_count", 0),
        links=_write_all(_write_link, span.links, details.get("links")),
        dropped_links_count=details.get("dropped_links_count", 0),
        status=Status(
            code=cast("Status.StatusCode.ValueType", _STATUS_NUMBERS[span.status.status_code]),
            message=text(span.status.description or ""),
        ),
    )


def _write_all(write: Any, items: list[Any], details: list[Mapping[str, Any]] | None) -> list[Any]:
    return [write(item, about) for item, about in zip(items, details or [_NOTHING] * len(items), strict=True)]


def _write_event(event: Event, details: Mapping[str, Any]) -> OtlpSpan.Event:
    return OtlpSpan.Event(
        name=text(event.name),
        time_unix_nano=details.get("time_unix_nano") or nanoseconds(event.timestamp),
        attributes=write_attributes(event.attributes),
        dropped_attributes_count=details.get("dropped_attributes_count", 0),
    )


def _write_link(link: Link, details: Mapping[str, Any]) -> OtlpSpan.Link:
    context = link.context
    return OtlpSpan.Link(
        trace_id=bytes.fromhex(context.trace_id),
        span_id=bytes.fromhex(context.span_id),
        trace_state=details.get("trace_state") or write_trace_state(context.trace_state),
        attributes=write_attributes(link.attributes or _NOTHING),
        dropped_attributes_count=details.get("dropped_attributes_count", 0),
        flags=details.get("flags", derived_flags(context.is_remote)),
    )


def _bytes(digits: str, length: int, name: str) -> bytes:
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != length or not any(value):
        raise ValueError(f"the {name} is not {2 * length} hexadecimal digits, or is all zeros")
    return value
