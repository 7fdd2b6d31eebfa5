"""Spans as JSON objects, and back."""

from __future__ import annotations

import json
from typing import Any

from lightning_legacy.spans import read_spans, write_span
from opentelemetry import trace as trace_api

from lightning_core import emit_reward
from lightning_core.tracer import DummyTracer
from lightning_core.types import Span


def recorded() -> tuple[list[Span], list[dict[str, Any]]]:
    """A span with a parent, and that one with an event and a status: as stored, and as OpenTelemetry writes them."""
    with DummyTracer().trace_context() as trace:
        assert trace.tracer is not None
        with trace.tracer.start_as_current_span("outer", attributes={"text": "ä", "many": (1, 2)}) as outer:
            emit_reward(0.5)
            outer.record_exception(ValueError("broken"))
            outer.set_status(trace_api.StatusCode.ERROR, "did not work")
    stored = [
        Span.from_opentelemetry(span, "", "", number) for number, span in enumerate(trace.spans, start=1)
    ]
    return stored, [through_json(write_span(span)) for span in trace.spans]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_spans_are_read_back_from_both_forms():
    stored, written = recorded()
    assert [entry["name"] for entry in written] == ["lightning.reward", "outer"]
    # OpenTelemetry's own form, as v0.1 posts it.
    assert written[0]["context"]["span_id"].startswith("0x")
    assert stored[0].parent_id == stored[1].span_id
    assert stored[1].status.status_code == "ERROR"
    assert stored[1].events
    for read in (read_spans(written), read_spans([through_json(write_span(span)) for span in stored])):
        assert read is not None
        for got, expected in zip(read, stored, strict=True):
            for field in ("name", "trace_id", "span_id", "parent_id", "status", "sequence_id"):
                assert getattr(got, field) == getattr(expected, field), field
            assert json.dumps(got.attributes) == json.dumps(expected.attributes)
            assert [event.name for event in got.events] == [event.name for event in expected.events]
            for time in ("start_time", "end_time"):
                assert abs(getattr(got, time) - getattr(expected, time)) < 1e-3


def test_what_is_no_span_is_not_read():
    _, written = recorded()
    assert read_spans([]) == []
    wrong: list[Any] = [
        {},
        {"name": "x"},
        {"context": None, "name": "x"},
        {**written[0], "start_time": "yesterday"},
    ]
    for entry in wrong:
        assert read_spans([written[0], entry]) is None
