"""Spans as stored: what is kept of OpenTelemetry's, and what survives JSON."""

import math

import pytest
from opentelemetry import trace as trace_api
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from lightning_core.types import (
    Event,
    OtelResource,
    Span,
    SpanAttributeNames,
    SpanNames,
)
from lightning_core.types import SpanContext as StoredContext


@pytest.fixture
def provider():
    provider = TracerProvider(
        resource=SdkResource({"service.name": "test"}, schema_url="https://schema.test")
    )
    yield provider
    provider.shutdown()


def record(provider: TracerProvider, parent: SpanContext | None = None) -> ReadableSpan:
    context = None
    if parent is not None:
        context = trace_api.set_span_in_context(trace_api.NonRecordingSpan(parent))
    link = SpanContext(
        0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")])
    )
    span = provider.get_tracer("scope", "2.0").start_span(
        "call",
        context=context,
        kind=SpanKind.CLIENT,
        attributes={"text": "hi", "n": 3, "x": 0.5, "yes": True, "list": ["a", "b"]},
        links=[Link(link, {"why": "because"})],
        start_time=1_500_000_000,
    )
    span.add_event("token", {"index": 1}, timestamp=1_750_000_000)
    span.set_status(Status(StatusCode.ERROR, "broken"))
    span.end(end_time=2_000_000_000)
    assert isinstance(span, ReadableSpan)
    return span


def test_a_recorded_span_is_kept_whole(provider: TracerProvider):
    parent = SpanContext(
        0x1234, 0x5678, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")])
    )
    recorded = record(provider, parent)
    span = Span.from_opentelemetry(recorded, "ro-1", "at-1", 7)

    assert (span.rollout_id, span.attempt_id, span.sequence_id, span.name) == ("ro-1", "at-1", 7, "call")
    assert span.trace_id == f"{0x1234:032x}"
    assert span.parent_id == f"{0x5678:016x}"
    assert span.span_id == f"{recorded.get_span_context().span_id:016x}"
    assert (span.start_time, span.end_time) == (1.5, 2.0)
    assert (span.status.status_code, span.status.description) == ("ERROR", "broken")
    assert span.attributes == {"text": "hi", "n": 3, "x": 0.5, "yes": True, "list": ["a", "b"]}
    assert span.context is not None
    assert (span.context.trace_id, span.context.span_id) == (span.trace_id, span.span_id)
    assert span.context.trace_state == {"a": "b"}  # inherited from the parent
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.is_remote) == (f"{0x5678:016x}", True)
    assert span.parent.trace_state == {"a": "b"}
    [event] = span.events
    assert (event.name, event.attributes, event.timestamp) == ("token", {"index": 1}, 1.75)
    [link] = span.links
    assert (link.context.span_id, link.context.is_remote) == (f"{0xDEF:016x}", True)
    assert link.context.trace_state == {"k": "v"}
    assert link.attributes == {"why": "because"}
    assert span.resource.attributes["service.name"] == "test"
    assert span.resource.schema_url == "https://schema.test"


def test_extra_fields_are_kept_when_json_can_hold_them(provider: TracerProvider):
    recorded = record(provider)
    recorded.token_ids = [1, 2, 3]
    recorded.handle = object()
    span = Span.from_opentelemetry(recorded, "ro-1", "at-1")
    extra = span.model_extra
    assert extra is not None
    assert extra["token_ids"] == [1, 2, 3]
    assert extra["kind"] == "CLIENT"
    assert extra["instrumentation_scope"] == {"name": "scope", "version": "2.0"}
    assert "handle" not in extra
    assert Span.model_validate_json(span.model_dump_json()).model_extra == extra


def test_a_root_span_that_has_not_ended_is_kept_as_it_is():
    context = SpanContext(1, 2, is_remote=False)
    span = Span.from_opentelemetry(ReadableSpan("open", context=context, start_time=10**9), "ro", "at")
    assert (span.parent_id, span.parent, span.end_time, span.start_time) == (None, None, None, 1.0)
    assert (span.sequence_id, span.status.status_code, span.events, span.links) == (0, "UNSET", [], [])


def test_a_span_without_identity_is_refused():
    with pytest.raises(ValueError, match="'nobody' has no span context"):
        Span.from_opentelemetry(ReadableSpan("nobody"), "ro", "at")


def test_converting_takes_copies(provider: TracerProvider):
    recorded = record(provider)
    first = Span.from_opentelemetry(recorded, "ro", "at")
    first.attributes["text"] = "changed"
    first.attributes["list"].append("c")
    first.resource.attributes.clear()
    first.events[0].attributes.clear()
    second = Span.from_opentelemetry(recorded, "ro", "at")
    assert second.attributes["text"] == "hi"
    assert second.attributes["list"] == ["a", "b"]
    assert second.resource.attributes["service.name"] == "test"
    assert second.events[0].attributes == {"index": 1}


def test_spans_of_two_providers_keep_their_own_resource(provider: TracerProvider):
    other = TracerProvider(resource=SdkResource({"service.name": "other"}))
    names = [
        Span.from_opentelemetry(record(each), "ro", "at").resource.attributes["service.name"]
        for each in (provider, other, provider)
    ]
    other.shutdown()
    assert names == ["test", "other", "test"]


def test_a_converted_span_is_read_back_from_json(provider: TracerProvider):
    span = Span.from_opentelemetry(record(provider), "ro-1", "at-1", 3)
    again = Span.model_validate_json(span.model_dump_json())
    assert again == span
    assert again.model_dump() == span.model_dump()


def test_attribute_types_survive_json():
    attributes = {
        "true": True,
        "one": 1,
        "one.0": 1.0,
        "text": "1",
        "ints": [1, 0],
        "bools": [True, False],
        "floats": [0.5, 1.0],
        "texts": ["1", "a"],
        "empty": [],
    }
    span = Span.from_attributes(attributes=attributes)
    again = Span.model_validate_json(span.model_dump_json())
    assert again.attributes == attributes
    for name, value in attributes.items():
        assert type(again.attributes[name]) is type(value)
    assert [type(item) for item in again.attributes["ints"]] == [int, int]
    assert [type(item) for item in again.attributes["bools"]] == [bool, bool]


def test_numbers_that_json_lacks_survive():
    span = Span.from_attributes(attributes={"nan": math.nan, "big": math.inf})
    again = Span.model_validate_json(span.model_dump_json())
    assert math.isnan(again.attributes["nan"])
    assert again.attributes["big"] == math.inf


def test_from_attributes_makes_up_what_is_missing():
    first, second = (Span.from_attributes(attributes={"a": 1}) for _ in range(2))
    assert first.span_id != second.span_id
    assert (len(first.trace_id), len(first.span_id)) == (32, 16)
    assert first.name == SpanNames.VIRTUAL.value
    assert first.start_time is not None
    assert first.start_time == first.end_time
    assert first.context == StoredContext(trace_id=first.trace_id, span_id=first.span_id)
    assert (first.parent_id, first.parent, first.sequence_id) == (None, None, 0)


def test_from_attributes_takes_what_is_given():
    span = Span.from_attributes(
        attributes={"a": 1},
        rollout_id="ro",
        attempt_id="at",
        sequence_id=5,
        name="mine",
        trace_id="t" * 32,
        span_id="s" * 16,
        parent_id="p" * 16,
        start_time=0.0,
        end_time=2.5,
        resource=OtelResource(attributes={"service.name": "x"}),
    )
    assert (span.rollout_id, span.attempt_id, span.sequence_id, span.name) == ("ro", "at", 5, "mine")
    assert (span.start_time, span.end_time) == (0.0, 2.5)
    assert span.parent == StoredContext(trace_id="t" * 32, span_id="p" * 16)
    assert span.resource.attributes == {"service.name": "x"}


def test_a_detached_span_shares_nothing_that_can_change(provider: TracerProvider):
    span = Span.from_opentelemetry(
        record(provider, SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))), "ro", "at"
    )
    span.__pydantic_extra__["note"] = {"deep": [1]}
    before = span.model_dump_json()
    copy = span.detached(sequence_id=9)
    assert copy.sequence_id == 9
    copy.attributes["text"] = "changed"
    copy.attributes["list"].append("c")
    copy.events.append(Event(name="late"))
    copy.events[0].attributes["index"] = 2
    copy.links[0].attributes["why"] = "changed"
    copy.resource.attributes.clear()
    copy.context.trace_state["z"] = "z"
    copy.parent.trace_state["z"] = "z"
    copy.status.description = "changed"
    copy.__pydantic_extra__["note"]["deep"].append(2)
    assert span.model_dump_json() == before


def test_fields_that_no_one_knows_are_kept():
    values = Span.from_attributes(attributes={}).model_dump() | {"vendor": {"a": [1]}}
    assert Span.model_validate(values).model_dump()["vendor"] == {"a": [1]}


def test_names_are_strings_and_those_of_the_api():
    assert {name.name for name in SpanNames} >= {"REWARD", "MESSAGE", "OBJECT", "EXCEPTION", "VIRTUAL"}
    assert SpanNames.REWARD == "lightning.reward"
    assert SpanAttributeNames.MESSAGE == "message"
    assert SpanAttributeNames.OBJECT == "object"


def test_an_instrumentation_scope_without_version_is_kept():
    span = ReadableSpan(
        "s", context=SpanContext(1, 2, is_remote=False), instrumentation_scope=InstrumentationScope("only")
    )
    extra = Span.from_opentelemetry(span, "ro", "at").model_extra
    assert extra is not None
    assert extra["instrumentation_scope"]["name"] == "only"
