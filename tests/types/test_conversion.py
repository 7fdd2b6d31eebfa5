"""Converting spans of the SDK: odd values are kept in a form that every store can hold, and parts are shared."""

from __future__ import annotations

import enum
import json

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from lightning_core.types import Span
from lightning_core.types._conversion import convert_span


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Real(float):
    pass


# Recent SDKs let all of these through, and older ones some of them.
ODD = {
    "nested": ({"a": {"b": [1, None]}}, '{"a": {"b": [1, null]}}'),
    "mixed": (["a", 1], '["a", 1]'),
    "holes": (("a", None), '["a", null]'),
    "numbers": ((1, 0.5), [1.0, 0.5]),
    "truths": ((True, False), [True, False]),
    "empty": ((), []),
    "bytes": (b"ab\xff", "ab\\xff"),
    "enum": (Colour.RED, "red"),
    "level": (Level.HIGH, 3),
    "real": (Real(0.5), 0.5),
    "half": ("a\ud83d", "a\\ud83d"),
    "halves": (("é", "\udc00"), ["é", "\\udc00"]),
    "accents": ("é😀", "é😀"),
}


def recorded(attributes, name="s", number=2) -> ReadableSpan:
    return ReadableSpan(
        name,
        context=SpanContext(1, number, is_remote=False),
        parent=SpanContext(1, 9, is_remote=False),
        attributes=attributes,
        resource=RESOURCE,
        instrumentation_scope=SCOPE,
    )


RESOURCE = Resource({"service.name": "test"})
SCOPE = InstrumentationScope("scope", "1")


@pytest.mark.parametrize("name", ODD)
def test_odd_attributes_are_kept_in_a_form_that_survives_json(name):
    given, expected = ODD[name]
    span = Span.from_opentelemetry(recorded({name: given}), "ro", "at")
    assert span.attributes == {name: expected}
    kinds = {str, bool, int, float, list}
    assert type(span.attributes[name]) in kinds
    assert Span.model_validate_json(span.model_dump_json()) == span


def test_attributes_without_value_are_left_out():
    span = Span.from_opentelemetry(recorded({"a": None, "b": 1}), "ro", "at")
    assert span.attributes == {"b": 1}


def test_what_json_cannot_hold_either_is_described():
    loop: dict[str, object] = {}
    loop["loop"] = loop
    span = Span.from_opentelemetry(recorded({"a": loop}), "ro", "at")
    assert span.attributes == {"a": "{'loop': {...}}"}


def test_a_span_for_a_store_equals_the_public_one():
    given = recorded({"a": 1, "b": [1, 2]})
    given.note = {"deep": [1]}
    assert convert_span(given, "ro", "at", 3) == Span.from_opentelemetry(given, "ro", "at", 3)


def test_spans_for_a_store_share_parts_and_their_copies_do_not():
    given = [recorded({"a": n}, number=n + 1) for n in range(2)]
    given[0].note = "mine"
    first, second = (convert_span(span, "ro", "at") for span in given)
    assert first.resource is second.resource
    assert first.status is second.status
    before = second.model_dump_json()
    copy = first.detached()
    copy.resource.attributes.clear()
    copy.status.description = "changed"
    copy.events.append("changed")
    copy.links.append("changed")
    copy.parent.trace_state["changed"] = "changed"
    copy.__pydantic_extra__["instrumentation_scope"]["name"] = "changed"
    assert second.model_dump_json() == before
    assert first.model_extra["note"] == "mine"
    assert "note" not in second.model_extra


def test_the_public_conversion_shares_nothing_either():
    given = recorded({"a": 1})
    first = Span.from_opentelemetry(given, "ro", "at")
    before = json.dumps(Span.from_opentelemetry(given, "ro", "at").model_dump())
    first.resource.attributes.clear()
    first.status.description = "changed"
    first.events.append("changed")
    first.links.append("changed")
    first.parent.trace_state["changed"] = "changed"
    first.__pydantic_extra__["instrumentation_scope"]["name"] = "changed"
    assert json.dumps(Span.from_opentelemetry(given, "ro", "at").model_dump()) == before
