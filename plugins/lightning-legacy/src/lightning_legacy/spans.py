"""Spans as the JSON objects that v0.1 posts, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError

from lightning_core.types import Event, Span, SpanContext, SpanLike, TraceStatus

__all__ = ["read_spans", "write_span"]


def write_span(span: SpanLike) -> dict[str, Any]:
    """Return a span as a JSON object: OpenTelemetry's own form for its spans, else the fields of a stored one."""
    if isinstance(span, Span):
        return span.model_dump(mode="json")
    return json.loads(span.to_json(indent=None))


def read_spans(trace: Sequence[Mapping[str, Any]]) -> list[Span] | None:
    """Read what :func:`write_span` wrote, in the order given; ``None`` if one of the objects is something else."""
    spans: list[Span] = []
    for index, entry in enumerate(trace):
        try:
            spans.append(_read_span(entry).replace(sequence_id=index + 1))
        except (ValidationError, ValueError, LookupError, TypeError, AttributeError):
            return None
    return spans


def _read_span(entry: Mapping[str, Any]) -> Span:
    if "span_id" in entry:
        return Span.model_validate({"rollout_id": "", "attempt_id": "", **entry})
    context: Mapping[str, Any] = entry["context"]
    trace_id, span_id, parent_id = (
        _digits(each) for each in (context["trace_id"], context["span_id"], entry.get("parent_id"))
    )
    status: Mapping[str, Any] = entry.get("status") or {}
    events: Sequence[Mapping[str, Any]] = entry.get("events") or ()
    # Links and the resource are left out: nothing here reads them, and what is posted is the object itself.
    return Span(
        rollout_id="",
        attempt_id="",
        trace_id=cast(str, trace_id),
        span_id=cast(str, span_id),
        parent_id=parent_id,
        name=entry["name"],
        status=TraceStatus.model_validate({"status_code": "UNSET", **status}),
        attributes=entry.get("attributes") or {},
        events=[
            Event(
                name=event["name"],
                attributes=event.get("attributes") or {},
                timestamp=_seconds(event.get("timestamp")),
            )
            for event in events
        ],
        start_time=_seconds(entry.get("start_time")),
        end_time=_seconds(entry.get("end_time")),
        context=SpanContext(trace_id=cast(str, trace_id), span_id=cast(str, span_id)),
    )


def _digits(number: str | None) -> str | None:
    """Hexadecimal digits without the ``0x`` that OpenTelemetry writes before them."""
    return None if number is None else number.removeprefix("0x")


def _seconds(time: str | float | None) -> float | None:
    """Seconds since the epoch of a time that OpenTelemetry has written as text."""
    return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else time
