"""Spans keep everything on the way from OTLP into a store, and from a store to OTLP."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_store_http.otlp.incoming import LATEST, read_request
from lightning_store_http.otlp.outgoing import write_request
from lightning_store_http.otlp.values import nanoseconds, read_attributes, seconds
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_core.store.encoding import decode_span, encode_span
from lightning_core.types import Event, Link, OtelResource, Span, SpanContext, TraceStatus

MakeSpan = Callable[..., OtlpSpan]
MakeRequest = Callable[..., ExportTraceServiceRequest]

# Values

TEXT = AnyValue(string_value="é")
NUMBER, FLOAT, BYTES = (
    AnyValue(int_value=-(2**63)),
    AnyValue(double_value=0.5),
    AnyValue(bytes_value=b"\xff\x00"),
)


def array(*values: AnyValue) -> AnyValue:
    return AnyValue(array_value=ArrayValue(values=values))


def table(**values: AnyValue) -> AnyValue:
    return AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=k, value=v) for k, v in values.items()]))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (TEXT, "é"),
        (AnyValue(bool_value=False), False),
        (NUMBER, -(2**63)),
        (FLOAT, 0.5),
        (AnyValue(double_value=math.inf), math.inf),
        (array(TEXT, TEXT), ["é", "é"]),
        (array(AnyValue(bool_value=True)), [True]),
        (array(NUMBER), [-(2**63)]),
        (array(AnyValue(int_value=1), FLOAT), [1.0, 0.5]),
        (array(), []),
        (BYTES, "/wA="),
        (array(BYTES), '["/wA="]'),
        (array(TEXT, AnyValue(int_value=1)), '["é", 1]'),
        (array(array(NUMBER), AnyValue()), "[[-9223372036854775808], null]"),
        (
            table(a=TEXT, b=table(c=BYTES), d=AnyValue(double_value=math.nan)),
            '{"a": "é", "b": {"c": "/wA="}, "d": "NaN"}',
        ),
        (table(a=AnyValue(double_value=-math.inf)), '{"a": "-Infinity"}'),
        (AnyValue(), "null"),
    ],
)
def test_every_kind_of_value_is_stored(value: AnyValue, stored: Any) -> None:
    read = read_attributes([KeyValue(key="key", value=value)])["key"]
    assert read == stored
    assert type(read) is type(stored)


@given(st.floats(min_value=1e8, max_value=9e9))
def test_a_time_survives_the_way_to_nanoseconds_and_back(time: float) -> None:
    assert seconds(nanoseconds(time)) == time


@pytest.mark.parametrize("time", [None, math.nan, -math.inf, -5.0])
def test_a_time_that_otlp_cannot_hold_is_unknown(time: float | None) -> None:
    assert nanoseconds(time) == 0


# Stored -> OTLP -> stored

HEX = "0123456789abcdef"
trace_ids = st.text(HEX, min_size=32, max_size=32).filter(lambda digits: digits.strip("0") != "")
span_ids = st.text(HEX, min_size=16, max_size=16).filter(lambda digits: digits.strip("0") != "")
text = st.text(max_size=8)
scalars = st.one_of(text, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
attributes = st.dictionaries(
    text.filter(lambda key: not key.startswith("lightning.")),
    scalars
    | st.lists(text, max_size=3)
    | st.lists(st.booleans(), max_size=3)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
    | st.lists(st.floats(allow_nan=False), max_size=3),
    max_size=3,
)
times = st.none() | st.floats(min_value=1e8, max_value=9e9)
trace_states = st.dictionaries(st.text(HEX, min_size=1, max_size=3), st.text(HEX, max_size=3), max_size=2)
json_values = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2)
)


@st.composite
def stored_spans(draw: st.DrawFn) -> Span:
    trace_id, span_id = draw(trace_ids), draw(span_ids)
    parent_id = draw(st.none() | span_ids)
    parent = (
        SpanContext(trace_id=trace_id, span_id=parent_id, is_remote=draw(st.booleans()))
        if parent_id
        else None
    )
    extra = draw(st.dictionaries(st.sampled_from(["note", "annotations", "kind"]), json_values, max_size=2))
    if draw(st.booleans()):
        extra["kind"] = draw(st.sampled_from(["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]))
    if draw(st.booleans()):
        extra["instrumentation_scope"] = {
            "name": draw(text),
            "version": draw(text) or None,
        }
    return Span(
        rollout_id=draw(st.text(min_size=1, max_size=8)),
        attempt_id=draw(st.text(min_size=1, max_size=8).filter(lambda text: text != LATEST)),
        sequence_id=draw(st.integers(0, 2**40)),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        name=draw(text),
        status=TraceStatus(
            status_code=draw(st.sampled_from(["UNSET", "OK", "ERROR"])), description=draw(text) or None
        ),
        attributes=draw(attributes),
        events=draw(
            st.lists(st.builds(Event, name=text, attributes=attributes, timestamp=times), max_size=2)
        ),
        links=draw(
            st.lists(
                st.builds(
                    Link,
                    context=st.builds(
                        SpanContext,
                        trace_id=trace_ids,
                        span_id=span_ids,
                        is_remote=st.booleans(),
                        trace_state=trace_states,
                    ),
                    attributes=attributes,
                ),
                max_size=2,
            )
        ),
        start_time=draw(times),
        end_time=draw(times),
        context=SpanContext(trace_id=trace_id, span_id=span_id, trace_state=draw(trace_states)),
        parent=parent,
        resource=OtelResource(attributes=draw(attributes), schema_url=draw(text)),
        **extra,
    )


def over_the_wire(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(request.SerializeToString())


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(stored_spans(), max_size=2, unique_by=lambda span: span.span_id))
def test_stored_spans_come_back_as_they_were(spans: list[Span]) -> None:
    request, refused = write_request(spans)
    incoming = read_request(over_the_wire(request), {})
    assert refused == {}
    assert not incoming.rejected
    by_id = {span.span_id: span for span in incoming.spans}
    assert [by_id[span.span_id] for span in spans] == spans
    for span in incoming.spans:
        assert decode_span(encode_span(span)) == span


# OTLP -> stored -> OTLP


def full_request() -> ExportTraceServiceRequest:
    """A request in which every field of the protocol has a value."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(schema_url="resource-schema")
    resource_spans.resource.dropped_attributes_count = 4
    resource_spans.resource.attributes.add(key="service.name", value=AnyValue(string_value="agent"))
    scope_spans = resource_spans.scope_spans.add(schema_url="scope-schema")
    scope_spans.scope.name, scope_spans.scope.version = "library", "1.2"
    scope_spans.scope.dropped_attributes_count = 3
    scope_spans.scope.attributes.add(key="scope", value=AnyValue(int_value=1))
    span = scope_spans.spans.add(
        trace_id=bytes(range(16)),
        span_id=bytes(range(1, 9)),
        parent_span_id=bytes(range(2, 10)),
        trace_state="vendor=1, other=2",
        flags=0x301,
        name="call",
        kind=OtlpSpan.SPAN_KIND_CLIENT,
        start_time_unix_nano=1_700_000_000_123_456_789,
        end_time_unix_nano=1_700_000_001_987_654_321,
        dropped_attributes_count=5,
        dropped_events_count=6,
        dropped_links_count=7,
    )
    span.attributes.add(key="n", value=AnyValue(int_value=2**53 + 1))
    event = span.events.add(
        name="token", time_unix_nano=1_700_000_000_111_111_111, dropped_attributes_count=1
    )
    event.attributes.add(key="e", value=AnyValue(bool_value=True))
    span.events.add(name="plain", time_unix_nano=1_700_000_000_000_000_000)
    link = span.links.add(
        trace_id=b"\x09" * 16,
        span_id=b"\x08" * 8,
        trace_state="a=b",
        dropped_attributes_count=2,
        flags=0x100,
    )
    link.attributes.add(key="l", value=AnyValue(double_value=0.5))
    span.status.code, span.status.message = 2, "it broke"
    return request


def test_everything_that_otlp_has_is_forwarded() -> None:
    original = full_request()
    [span] = read_request(original, {"x-lightning-rollout-id": "ro", "x-lightning-attempt-id": "at"}).spans
    forwarded, _ = write_request([decode_span(encode_span(span))])
    for key, value in (("lightning.rollout_id", "ro"), ("lightning.attempt_id", "at")):
        original.resource_spans[0].scope_spans[0].spans[0].attributes.add(
            key=key, value=AnyValue(string_value=value)
        )
    assert forwarded == original


def test_a_span_is_stored_as_the_spans_of_the_sdk_are() -> None:
    [span] = read_request(full_request(), {"x-lightning-rollout-id": "ro"}).spans
    assert span.trace_id == "000102030405060708090a0b0c0d0e0f"
    assert (span.span_id, span.parent_id) == ("0102030405060708", "0203040506070809")
    assert span.parent == SpanContext(trace_id=span.trace_id, span_id="0203040506070809", is_remote=True)
    assert span.context is not None
    assert span.context.trace_state == {"vendor": "1", "other": "2"}
    assert span.start_time == 1_700_000_000_123_456_789 / 1e9
    assert span.status == TraceStatus(status_code="ERROR", description="it broke")
    assert span.resource.attributes == {"service.name": "agent"}
    assert span.resource.schema_url == "resource-schema"
    extra = span.__pydantic_extra__ or {}
    assert extra["kind"] == "CLIENT"
    assert extra["instrumentation_scope"] == {
        "name": "library",
        "version": "1.2",
        "attributes": {"scope": 1},
        "dropped_attributes_count": 3,
        "schema_url": "scope-schema",
    }
    assert extra["otlp"]["end_time_unix_nano"] == 1_700_000_001_987_654_321


def test_spans_are_grouped_by_resource_and_scope(make_span: MakeSpan, make_request: MakeRequest) -> None:
    request = make_request(make_span(1), make_span(2), resource={"lightning.rollout_id": "ro"})
    request.resource_spans[0].scope_spans.add(spans=[make_span(3)]).scope.name = "b"
    request.resource_spans.add(schema_url="x").scope_spans.add(
        spans=[make_span(4, attributes={"lightning.rollout_id": "ro"})]
    )
    written, _ = write_request(read_request(request, {}).spans)
    assert [
        [[span.name for span in scope.spans] for scope in resource.scope_spans]
        for resource in written.resource_spans
    ] == [[["span 1", "span 2"], ["span 3"]], [["span 4"]]]


def test_a_span_without_ids_of_otlp_is_refused_alone() -> None:
    spans = [
        Span.from_attributes(
            attributes={}, rollout_id="ro", attempt_id="at", trace_id="no hex", span_id="1" * 16
        ),
        Span.from_attributes(attributes={}, rollout_id="ro", attempt_id="at"),
    ]
    request, refused = write_request(spans)
    assert [span.span_id for span in read_request(request, {}).spans] == [spans[1].span_id]
    assert list(refused) == [0]
    assert "trace id" in refused[0]


def test_text_that_protobuf_cannot_hold_is_escaped() -> None:
    span = Span.from_attributes(
        attributes={"half": "\ud83d", "large": 2**64}, rollout_id="ro", attempt_id="at", name="\ude00"
    )
    [read] = read_request(write_request([span])[0], {}).spans
    assert read.name == "\\ude00"
    assert read.attributes == {"half": "\\ud83d", "large": str(2**64)}


@pytest.mark.parametrize("extra", ['{"rollout_id": "stolen", "note": 1}', '{"note": 1}'])
def test_forwarded_extras_cannot_hide_fields(
    extra: str, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    attributes = {"lightning.rollout_id": "ro", "lightning.extra": extra}
    [span] = read_request(make_request(make_span(1, attributes=attributes)), {}).spans
    assert span.rollout_id == "ro"
    assert (span.__pydantic_extra__ or {})["note"] == 1
    assert json.loads(span.model_dump_json())["rollout_id"] == "ro"


# Whose, and in which order


@pytest.mark.parametrize(
    ("span", "resource", "headers", "owner"),
    [
        ({}, {"rollout_id": "r"}, {}, ("r", LATEST)),
        ({}, {"rollout_id": "r", "attempt_id": "latest"}, {}, ("r", "latest")),
        ({}, {"rollout_id": "r", "attempt_id": "a"}, {}, ("r", "a")),
        ({"rollout_id": "s"}, {"rollout_id": "r", "attempt_id": "a"}, {}, ("s", LATEST)),
        ({"attempt_id": "b"}, {"rollout_id": "r", "attempt_id": "a"}, {}, ("r", "b")),
        ({"rollout_id": "s", "attempt_id": "b"}, {"rollout_id": "r"}, {"rollout_id": "h"}, ("s", "b")),
        ({}, {}, {"rollout_id": "h", "attempt_id": "c"}, ("h", "c")),
        ({}, {"attempt_id": "a"}, {"rollout_id": "h", "attempt_id": "c"}, ("h", "a")),
        ({}, {"rollout_id": "r"}, {"rollout_id": "h", "attempt_id": "c"}, ("r", LATEST)),
        ({}, {"rollout_id": ""}, {"rollout_id": "h"}, ("h", LATEST)),
    ],
)
def test_the_nearest_owner_counts(
    span: dict[str, str],
    resource: dict[str, str],
    headers: dict[str, str],
    owner: tuple[str, str],
    make_span: MakeSpan,
    make_request: MakeRequest,
) -> None:
    request = make_request(
        make_span(1, attributes={f"lightning.{key}": value for key, value in span.items()}),
        resource={f"lightning.{key}": value for key, value in resource.items()},
    )
    sent = {f"x-lightning-{key.replace('_', '-')}": value for key, value in headers.items()}
    [read] = read_request(request, sent).spans
    assert (read.rollout_id, read.attempt_id) == owner
    assert read.attributes == {}


def test_spans_are_read_in_the_order_in_which_they_ended(
    make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(
        make_span(5),
        make_span(7, end_time_unix_nano=0),
        make_span(3),
        resource={"lightning.rollout_id": "ro"},
    )
    # The same nanosecond as span 3.
    same = make_span(3)
    same.name = "span 3, too"
    request.resource_spans[0].scope_spans.add(spans=[same, make_span(1)])
    read = read_request(request, {}).spans
    assert [span.name for span in read] == ["span 1", "span 3", "span 3, too", "span 5", "span 7"]


def test_a_parent_comes_after_its_children_whatever_the_clock_says(
    make_span: MakeSpan, make_request: MakeRequest
) -> None:
    def child_of(parent: int, number: int) -> OtlpSpan:
        return make_span(number, parent_span_id=parent.to_bytes(8, "big"))

    # 1 is the parent of 2, which is the parent of 5; 3 and 4 are others.
    request = make_request(
        *(make_span(1), child_of(1, 2), make_span(3), child_of(99, 4), child_of(2, 5), make_span(6)),
        resource={"lightning.rollout_id": "ro"},
    )
    read = read_request(request, {}).spans
    assert [span.name for span in read] == ["span 3", "span 4", "span 5", "span 2", "span 1", "span 6"]


def test_spans_that_are_their_own_ancestors_are_kept(make_span: MakeSpan, make_request: MakeRequest) -> None:
    loop = [make_span(n, parent_span_id=(3 - n).to_bytes(8, "big")) for n in (2, 1)]
    own = make_span(4, parent_span_id=(4).to_bytes(8, "big"))
    request = make_request(own, *loop, make_span(3), resource={"lightning.rollout_id": "ro"})
    read = read_request(request, {}).spans
    assert [span.name for span in read] == ["span 1", "span 2", "span 3", "span 4"]


def test_a_long_chain_of_spans_is_ordered(make_span: MakeSpan, make_request: MakeRequest) -> None:
    chain = [make_span(n, parent_span_id=(n - 1).to_bytes(8, "big")) for n in range(1, 5_001)]
    read = read_request(make_request(*chain, resource={"lightning.rollout_id": "ro"}), {}).spans
    assert [span.name for span in read] == [span.name for span in reversed(chain)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b""}, "trace_id"),
        ({"trace_id": bytes(16)}, "trace_id"),
        ({"span_id": b"123"}, "span_id"),
        ({"parent_span_id": b"123"}, "parent_span_id"),
        ({"attributes": {"lightning.sequence_id": "3"}}, "lightning.sequence_id"),
        ({"attributes": {"lightning.sequence_id": -1}}, "lightning.sequence_id"),
        ({"attributes": {"lightning.extra": "[]"}}, "lightning.extra"),
    ],
)
def test_a_span_that_says_nonsense_is_rejected_alone(
    fields: dict[str, Any], reason: str, make_span: MakeSpan, make_request: MakeRequest
) -> None:
    request = make_request(make_span(1, **fields), make_span(2), resource={"lightning.rollout_id": "ro"})
    incoming = read_request(request, {})
    assert [span.name for span in incoming.spans] == ["span 2"]
    [(message, count)] = incoming.rejected.items()
    assert count == 1
    assert reason in message


def test_a_span_that_names_no_rollout_is_told_how(make_span: MakeSpan, make_request: MakeRequest) -> None:
    [message] = read_request(make_request(make_span(1)), {}).rejected
    assert "lightning.rollout_id" in message
    assert "x-lightning-rollout-id" in message


def test_the_sequence_id_of_a_span_is_taken(make_span: MakeSpan, make_request: MakeRequest) -> None:
    attributes = {"lightning.rollout_id": "ro", "lightning.sequence_id": 7}
    [span] = read_request(make_request(make_span(1, attributes=attributes)), {}).spans
    assert span.sequence_id == 7
    assert span.attributes == {}
