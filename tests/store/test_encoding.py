"""How values, configs and spans are written as text and read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_core.errors import UnserializableValueError
from lightning_core.store.encoding import (
    decode,
    decode_config,
    decode_span,
    encode,
    encode_config,
    encode_span,
)
from lightning_core.types import RolloutConfig, Span, SpanContext


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def span_with(**fields: Any) -> Span:
    return Span.from_attributes(
        rollout_id="ro", attempt_id="at", attributes={"n": 1}, start_time=1.0, end_time=2.0
    ).replace(**fields)


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.0, 2**70, -0.5, "é\x00\ud800", [], {}, {"a": [1, {"b": None}]}, nested(400)],
    ids=lambda value: repr(value)[:12],
)
def test_json_values_are_read_as_they_were(value):
    read = decode(encode(value, "input"))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "input is of type tuple"),
        ({"a": {1: 2}}, "input.a has the key 1"),
        ([float("nan")], r"input\[0\] is nan"),
        (nested(5_000), "nested too deeply"),
    ],
    ids=["tuple", "key", "nan", "deep"],
)
def test_anything_else_is_refused_and_named(value, message):
    with pytest.raises(UnserializableValueError, match=message):
        encode(value, "input")


def test_a_config_that_was_read_is_nobody_elses():
    text = encode_config(RolloutConfig(max_attempts=3, retry_condition=["infrastructure"]))
    first, second = decode_config(text), decode_config(text)
    first.retry_condition.clear()
    assert second == RolloutConfig(max_attempts=3, retry_condition=["infrastructure"])


def test_the_body_of_a_span_holds_only_what_it_has():
    body = json.loads(encode_span(span_with(context=None)).body)
    assert set(body) == {"attributes", "status", "start_time", "end_time", "resource"}
    context = SpanContext(trace_id="1" * 32, span_id="2" * 16)
    body = json.loads(encode_span(span_with(context=context, parent=context, parent_id="2" * 16)).body)
    assert {"context", "parent", "parent_id"} < set(body)


def test_a_span_that_was_read_is_like_any_other():
    span = span_with()
    read = decode_span(encode_span(span))
    assert read == span
    assert read.model_dump() == span.model_dump()
    assert read.model_copy(deep=True).replace(name="other").name == "other"


def test_an_attribute_that_cannot_be_written_is_named():
    with pytest.raises(UnserializableValueError, match=r"attributes\.what is of type object"):
        encode_span(span_with(attributes={"fine": 1, "what": object()}))
