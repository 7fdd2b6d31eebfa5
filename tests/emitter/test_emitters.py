"""Messages, objects, exceptions, annotations and operations become spans of the current trace."""

from __future__ import annotations

import json
import math

import pytest
from opentelemetry.trace import StatusCode

from lightning_core.emitter import emit_annotation, emit_exception, emit_message, emit_object, operation
from lightning_core.errors import LightningError, UnserializableValueError
from lightning_core.tracer import DummyTracer


@pytest.fixture
def trace():
    with DummyTracer().trace_context() as processor:
        yield processor


def test_a_message_is_kept_as_text(trace):
    emit_message("hello")
    [span] = trace.spans
    assert (span.name, dict(span.attributes)) == ("lightning.message", {"message": "hello"})


def test_a_message_must_be_text(trace):
    with pytest.raises(UnserializableValueError, match="takes a string, not dict; use emit_object") as caught:
        emit_message({"a": 1})
    assert isinstance(caught.value, LightningError)
    assert isinstance(caught.value, TypeError)
    assert trace.spans == []


def test_an_object_is_kept_as_json(trace):
    value = {"a": [1, 2.5, None, True], "b": {"c": "é"}}
    emit_object(value)
    [span] = trace.spans
    assert span.name == "lightning.object"
    assert json.loads(span.attributes["object"]) == value


def nested() -> list[object]:
    inner: list[object] = []
    for _ in range(100_000):
        inner = [inner]
    return inner


def looped() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize("value", [object(), {1, 2}, {"x": math.nan}, {(1, 2): 3}, looped()])
def test_an_object_that_json_cannot_hold_is_refused(trace, value):
    with pytest.raises(UnserializableValueError, match=f"this {type(value).__name__} is not"):
        emit_object(value)
    assert trace.spans == []


def test_an_object_too_deep_for_json_is_refused(trace):
    with pytest.raises(UnserializableValueError):
        emit_object(nested())


def fail():
    raise ValueError("no such thing")


def test_an_exception_is_kept_with_type_message_and_stack(trace):
    try:
        fail()
    except ValueError as error:
        emit_exception(error)
    [span] = trace.spans
    assert span.name == "lightning.exception"
    assert span.attributes["exception.type"] == "ValueError"
    assert span.attributes["exception.message"] == "no such thing"
    assert "in fail" in span.attributes["exception.stacktrace"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ValueError: no such thing"


def test_an_exception_that_was_never_raised_and_one_of_a_module_are_kept(trace):
    emit_exception(json.JSONDecodeError("bad", "doc", 0))
    [span] = trace.spans
    assert span.attributes["exception.type"] == "json.decoder.JSONDecodeError"


def test_only_exceptions_are_exceptions(trace):
    with pytest.raises(UnserializableValueError, match="takes an exception, not str"):
        emit_exception("broken")
    assert trace.spans == []


def test_an_annotation_keeps_its_attributes(trace):
    emit_annotation({"step": 3, "tags": ["a", "b"], "ok": True, "x": 0.5, "none": []})
    [span] = trace.spans
    assert span.name == "lightning.annotation"
    assert dict(span.attributes) == {"step": 3, "tags": ("a", "b"), "ok": True, "x": 0.5, "none": ()}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"a": {"b": 1}}, "'a' must be a string, a bool, a number or a list of one of these, not dict"),
        ({"a": None}, "not NoneType"),
        ({"a": [1, "b"]}, "not list"),
        ({"a": b"bytes"}, "not bytes"),
        ({1: "a"}, "non-empty string, not 1"),
        ({"": "a"}, "non-empty string"),
    ],
)
def test_attributes_that_would_be_dropped_are_refused(trace, attributes, message):
    with pytest.raises(UnserializableValueError, match=message):
        emit_annotation(attributes)
    with pytest.raises(UnserializableValueError, match=message), operation("work", attributes):
        pass
    assert trace.spans == []


async def test_an_operation_is_the_parent_of_what_happens_inside():
    async with DummyTracer().trace_context() as trace:
        with operation("outer", {"k": 1}) as outer:
            with operation("inner"):
                emit_message("hello")
            outer.set_attribute("late", 2)
        emit_message("after")
    message, inner, outer_span, after = trace.spans
    assert message.parent.span_id == inner.context.span_id
    assert inner.parent.span_id == outer_span.context.span_id
    assert outer_span.parent is None
    assert after.parent is None
    assert dict(outer_span.attributes) == {"k": 1, "late": 2}


def test_an_operation_records_the_error_that_ends_it(trace):
    with pytest.raises(ValueError, match="no such thing"), operation("work"):
        fail()
    [span] = trace.spans
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_an_operation_decorates_a_function(trace):
    @operation("work")
    def work():
        return 3

    assert (work(), work()) == (3, 3)
    assert [span.name for span in trace.spans] == ["work", "work"]
