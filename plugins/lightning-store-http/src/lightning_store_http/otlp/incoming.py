"""From OTLP's messages to spans as they are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_core.types import (
    Attributes,
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
)

from .extras import parse_extra
from .names import ATTEMPT_HEADER, ATTEMPT_ID, EXTRA, ROLLOUT_HEADER, ROLLOUT_ID, SEQUENCE_ID
from .ordering import order_spans
from .values import nanoseconds, read_attributes, read_trace_state, seconds, write_trace_state

__all__ = ["KINDS", "LATEST", "STATUSES", "Incoming", "derived_flags", "read_request"]

LATEST = "latest"
"""What the ``attempt_id`` of a span says that names no attempt; a store does not know it."""

KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
STATUSES = {0: "UNSET", 1: "OK", 2: "ERROR"}
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200


class Incoming(NamedTuple):
    """What a request brings.

    Attributes:
        spans: Those that can be stored, in the order in which they ended.
        rejected: How many cannot be, by the reason.
    """

    spans: list[Span]
    rejected: Counter[str]


class _Owner(NamedTuple):
    """A place that may say which rollout spans belong to."""

    rollout_id: str
    attempt_id: str


def read_request(request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> Incoming:
    """Read all spans of a request.

    Where the span's attributes, its resource's and the request's ``headers`` disagree, the first of these that names a
    rollout counts. An attempt counts if it is named there or further to the front, and is the latest otherwise.

    See :func:`~lightning_store_http.otlp.ordering.order_spans` on their order.
    """
    spans: list[Span] = []
    ends: list[int] = []
    rejected: Counter[str] = Counter()
    sender = _Owner(headers.get(ROLLOUT_HEADER, ""), headers.get(ATTEMPT_HEADER, ""))
    for resource_spans in request.resource_spans:
        resource = OtelResource.trusted(
            {
                "attributes": read_attributes(resource_spans.resource.attributes),
                "schema_url": resource_spans.schema_url,
            }
        )
        owners = [_owner(resource.attributes), sender]
        details = _resource_details(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            extra = _scope(scope_spans)
            for span in scope_spans.spans:
                try:
                    stored = _read_span(span, resource, owners, extra, details)
                except ValueError as error:
                    rejected[str(error)] += 1
                else:
                    spans.append(stored)
                    ends.append(span.end_time_unix_nano)
    return Incoming(order_spans(spans, ends), rejected)


def _owner(attributes: Attributes) -> _Owner:
    return _Owner(str(attributes.get(ROLLOUT_ID, "")), str(attributes.get(ATTEMPT_ID, "")))


def _find_owner(owners: list[_Owner]) -> _Owner:
    attempt_id = ""
    for owner in owners:
        attempt_id = attempt_id or owner.attempt_id
        if owner.rollout_id:
            return _Owner(owner.rollout_id, attempt_id or LATEST)
    raise ValueError(
        f"they name no rollout: set the resource attribute {ROLLOUT_ID}, an attribute of that name on the "
        f"span, or the header {ROLLOUT_HEADER}"
    )


def _read_span(
    span: OtlpSpan,
    resource: OtelResource,
    owners: list[_Owner],
    scope: dict[str, Any],
    resource_details: dict[str, Any],
) -> Span:
    trace_id, span_id = _id(span.trace_id, 16, "trace_id"), _id(span.span_id, 8, "span_id")
    parent_id = _id(span.parent_span_id, 8, "parent_span_id") if any(span.parent_span_id) else None
    attributes = read_attributes(span.attributes)
    rollout_id, attempt_id = _find_owner([_owner(attributes), *owners])
    sequence_id = attributes.get(SEQUENCE_ID, 0)
    if not isinstance(sequence_id, int) or isinstance(sequence_id, bool) or sequence_id < 0:
        raise ValueError(f"their attribute {SEQUENCE_ID} is no positive integer")
    extra = parse_extra(attributes) | scope
    # These are fields of the stored span; forwarding makes attributes of them again.
    for name in (ROLLOUT_ID, ATTEMPT_ID, SEQUENCE_ID, EXTRA):
        attributes.pop(name, None)
    if (kind := KINDS.get(span.kind)) is not None:
        extra["kind"] = kind
    state = read_trace_state(span.trace_state) if span.trace_state else {}
    remote = bool(span.flags & _IS_REMOTE)
    start_time, end_time = seconds(span.start_time_unix_nano), seconds(span.end_time_unix_nano)
    details = _details(span, start_time, end_time, state, resource_details)
    if details:
        extra["otlp"] = details
    return Span.trusted(
        {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": sequence_id,
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_id": parent_id,
            "name": span.name,
            "status": _status(span),
            "attributes": attributes,
            "events": [_event(event) for event in span.events],
            "links": [_link(link) for link in span.links],
            "start_time": start_time,
            "end_time": end_time,
            "context": _context(trace_id, span_id, state),
            "parent": _context(trace_id, parent_id, {}, remote) if parent_id is not None else None,
            "resource": resource,
        },
        extra,
    )


def _id(value: bytes, length: int, name: str) -> str:
    if len(value) != length or not any(value):
        raise ValueError(f"their {name} is not {2 * length} hexadecimal digits, or is all zeros")
    return value.hex()


def _context(trace_id: str, span_id: str, state: dict[str, str], remote: bool = False) -> SpanContext:
    return SpanContext.trusted(
        {"trace_id": trace_id, "span_id": span_id, "is_remote": remote, "trace_state": state}
    )


def _status(span: OtlpSpan) -> TraceStatus:
    return TraceStatus.trusted(
        {"status_code": STATUSES.get(span.status.code, "UNSET"), "description": span.status.message or None}
    )


def _event(event: OtlpSpan.Event) -> Event:
    return Event.trusted(
        {
            "name": event.name,
            "attributes": read_attributes(event.attributes),
            "timestamp": seconds(event.time_unix_nano),
        }
    )


def _link(link: OtlpSpan.Link) -> Link:
    state = read_trace_state(link.trace_state)
    context = _context(link.trace_id.hex(), link.span_id.hex(), state, bool(link.flags & _IS_REMOTE))
    return Link.trusted({"context": context, "attributes": read_attributes(link.attributes)})


def _scope(scope_spans: ScopeSpans) -> dict[str, Any]:
    """Describe the instrumentation scope as the spans of OpenTelemetry's own SDK do, and add what these leave out."""
    described: dict[str, Any] = {}
    if scope_spans.HasField("scope"):
        scope = scope_spans.scope
        described = {"name": scope.name, "version": scope.version or None}
        if scope.attributes:
            described["attributes"] = read_attributes(scope.attributes)
        if scope.dropped_attributes_count:
            described["dropped_attributes_count"] = scope.dropped_attributes_count
    if scope_spans.schema_url:
        described["schema_url"] = scope_spans.schema_url
    return {"instrumentation_scope": described} if described else {}


def _resource_details(resource: Resource) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if resource.dropped_attributes_count:
        details["dropped_attributes_count"] = resource.dropped_attributes_count
    # A newer field than the oldest protocol that this package works with.
    if references := [MessageToDict(reference) for reference in getattr(resource, "entity_refs", ())]:
        details["entity_refs"] = references
    return {"resource": details} if details else {}


def derived_flags(remote: bool) -> int:
    """What a span's or a link's flags are when nothing is known but whether its context came from elsewhere."""
    return _HAS_IS_REMOTE | (_IS_REMOTE if remote else 0)


def _details(
    span: OtlpSpan,
    start_time: float | None,
    end_time: float | None,
    state: dict[str, str],
    resource_details: dict[str, Any],
) -> dict[str, Any]:
    """Collect what the fields of a stored span have no place for, or hold with less precision."""
    details: dict[str, Any] = {
        **resource_details,
        **_time("start_time_unix_nano", span.start_time_unix_nano, start_time),
        **_time("end_time_unix_nano", span.end_time_unix_nano, end_time),
        **_counts(span, "dropped_attributes_count", "dropped_events_count", "dropped_links_count"),
        **_flags(span.flags),
        **_state(span.trace_state, state),
    }
    events = [
        _time("time_unix_nano", event.time_unix_nano, seconds(event.time_unix_nano))
        | _counts(event, "dropped_attributes_count")
        for event in span.events
    ]
    links = [
        _flags(link.flags)
        | _counts(link, "dropped_attributes_count")
        | _state(link.trace_state, read_trace_state(link.trace_state))
        for link in span.links
    ]
    if any(events):
        details["events"] = events
    if any(links):
        details["links"] = links
    return details


def _time(name: str, exact: int, stored: float | None) -> dict[str, Any]:
    return {name: exact} if nanoseconds(stored) != exact else {}


def _counts(message: Any, *names: str) -> dict[str, Any]:
    return {name: count for name in names if (count := getattr(message, name))}


def _flags(flags: int) -> dict[str, Any]:
    return {"flags": flags} if flags != derived_flags(bool(flags & _IS_REMOTE)) else {}


def _state(header: str, state: dict[str, str]) -> dict[str, Any]:
    return {"trace_state": header} if header != write_trace_state(state) else {}
