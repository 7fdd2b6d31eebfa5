"""Rewards: what counts as one, how it is recorded, and how it is found again."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.emitter import (
    emit_message,
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    is_reward_span,
    parse_reward,
    reward,
)
from lightning_core.errors import InvalidOutcomeError, LightningError
from lightning_core.tracer import DummyTracer
from lightning_core.types import Span, SpanNames


@pytest.fixture
def trace():
    with DummyTracer().trace_context() as processor:
        yield processor


class Scalar:
    """What numpy's scalars and tensors without dimensions have in common."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


class Vector(Scalar):
    ndim = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (-3, -3.0),
        (True, 1.0),
        (False, 0.0),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 4), 0.25),
        (Scalar(0.5), 0.5),
        (Scalar(2), 2.0),
        (Scalar(True), 1.0),
    ],
)
def test_every_kind_of_number_is_a_reward(trace, value, expected):
    span = emit_reward(value)
    assert get_reward_value(span) == expected
    assert type(get_reward_value(span)) is float
    assert find_final_reward(trace.spans) == expected


def test_numpy_scalars_are_rewards(trace):
    numpy = pytest.importorskip("numpy")
    for value in (
        numpy.float32(0.5),
        numpy.float64(0.5),
        numpy.int64(3),
        numpy.bool_(True),
        numpy.array(0.5),
    ):
        emit_reward(value)
    assert [get_reward_value(span) for span in trace.spans] == [0.5, 0.5, 3.0, 1.0, 0.5]
    with pytest.raises(InvalidOutcomeError):
        emit_reward(numpy.array([0.5, 1.0]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "finite"),
        (math.inf, "finite"),
        (Decimal("NaN"), "finite"),
        (Scalar(-math.inf), "finite"),
        ("0.5", "not str '0.5'"),
        (None, "not NoneType"),
        ([0.5], "not list"),
        (1j, "not complex"),
        (Scalar("0.5"), "not Scalar"),
        (Vector(0.5), "not Vector"),
        (10**400, "float"),
        ("x" * 1000, r"\.\.\."),
    ],
)
def test_what_is_no_finite_number_is_refused(trace, value, message):
    with pytest.raises(InvalidOutcomeError, match=message) as caught:
        emit_reward(value)
    assert isinstance(caught.value, LightningError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 250
    assert trace.spans == []


def test_parsing_a_reward_records_nothing(trace):
    assert parse_reward(True) == 1.0
    assert trace.spans == []


def test_the_emitted_span_has_ended_and_carries_the_value(trace):
    span = emit_reward(0.5)
    assert isinstance(span, ReadableSpan)
    assert span.name == SpanNames.REWARD == "lightning.reward"
    assert span.attributes == {"reward": 0.5}
    assert span.end_time is not None


def test_outside_a_trace_a_span_is_returned_and_one_warning_logged(caplog, monkeypatch):
    monkeypatch.setattr("lightning_core.emitter.context._nowhere", None)
    with caplog.at_level(logging.WARNING):
        assert get_reward_value(emit_reward(0.5)) == 0.5
        emit_message("hello")
        emit_reward(1)
    [record] = caplog.records
    assert "outside any trace" in record.message
    assert "stored nowhere" in record.message


# The decorator


def test_the_decorator_records_what_a_function_returns(trace):
    @reward
    def score(answer: str, *, weight: float = 1.0) -> float:
        """Score it."""
        return weight * len(answer)

    assert score("abc", weight=2.0) == 6.0
    assert (score.__name__, score.__doc__) == ("score", "Score it.")
    assert list(inspect.signature(score).parameters) == ["answer", "weight"]
    assert find_final_reward(trace.spans) == 6.0


async def test_the_decorator_keeps_an_async_function_async():
    @reward
    async def score(answer):
        await asyncio.sleep(0)
        return answer == "right"

    assert inspect.iscoroutinefunction(score)
    async with DummyTracer().trace_context() as trace:
        assert await score("right") is True
    assert find_final_reward(trace.spans) == 1.0


async def test_the_decorator_works_on_methods_and_callable_objects():
    class Judge:
        @reward
        def score(self):
            return 1

        @reward
        async def score_later(self):
            return 2

        async def __call__(self):
            return 3

    judge = Judge()
    async with DummyTracer().trace_context() as trace:
        assert judge.score() == 1
        assert await judge.score_later() == 2
        assert await reward(judge)() == 3
    assert [get_reward_value(span) for span in trace.spans] == [1.0, 2.0, 3.0]


def test_a_reward_function_that_returns_none_records_nothing_and_says_so(trace, caplog):
    @reward
    def score():
        return None

    assert score() is None
    assert trace.spans == []
    assert "score returned None" in caplog.text


def test_a_reward_function_that_returns_no_number_is_named(trace):
    @reward
    def score():
        return "good"

    with pytest.raises(InvalidOutcomeError, match=r"score: a reward must be a number"):
        score()


def test_the_decorator_refuses_generators_and_values():
    def scores():
        yield 1

    async def later():
        yield 1

    for wrong in (scores, later):
        with pytest.raises(InvalidOutcomeError, match="is a generator"):
            reward(wrong)
    with pytest.raises(InvalidOutcomeError, match="decorates a function, not float"):
        reward(0.5)  # a mistake for emit_reward


# Finding rewards


def agentops(payload, key="agentops.task.output", text=True) -> Span:
    span = Span.from_attributes(attributes={}, name="judge.task")
    span.attributes[key] = json.dumps(payload) if text else payload
    return span


@pytest.mark.parametrize("text", [True, False], ids=["json", "mapping"])
@pytest.mark.parametrize("key", ["agentops.task.output", "agentops.entity.output"])
def test_the_reward_payloads_of_agentops_are_read(key, text):
    span = agentops({"type": "reward", "value": 0.5}, key, text)
    assert is_reward_span(span)
    assert get_reward_value(span) == 0.5
    nothing = agentops({"type": "reward", "value": None}, key, text)
    assert is_reward_span(nothing)
    assert get_reward_value(nothing) is None


@pytest.mark.parametrize(
    "output",
    ["", "null", "[]", '"reward"', '{"type": "reward"', '{"type": "other", "value": 1, "of": "reward"}', 3],
)
def test_other_outputs_of_agentops_are_no_rewards(output):
    span = Span.from_attributes(attributes={"agentops.task.output": output})
    assert not is_reward_span(span)
    assert get_reward_value(span) is None


def test_an_agentops_reward_that_is_no_number_is_ignored_aloud(caplog):
    span = Span.from_attributes(
        attributes={"agentops.entity.output": '{"type": "reward", "value": NaN}'}, name="judge"
    )
    assert is_reward_span(span)
    assert get_reward_value(span) is None
    assert "reward of span 'judge' is ignored" in caplog.text


def test_rewards_are_found_in_stored_and_in_recorded_spans(trace):
    emit_message("hello")
    emit_reward(0.25)
    emit_reward(0.75)
    emit_message("bye")
    stored = [Span.from_opentelemetry(span, "ro", "at") for span in trace.spans]
    for spans in (trace.spans, stored):
        assert [get_reward_value(span) for span in find_reward_spans(spans)] == [0.25, 0.75]
        assert find_final_reward(spans) == 0.75
    assert find_final_reward([]) is None
    assert find_final_reward(stored[:1]) is None


def test_the_final_reward_is_the_last_in_order_whatever_the_clock_says():
    spans = [
        Span.from_attributes(
            attributes={"reward": value}, name=SpanNames.REWARD, start_time=when, end_time=when
        )
        for value, when in ((0.1, 200.0), (0.9, 100.0))
    ]
    assert find_final_reward(spans) == 0.9


def test_a_last_reward_without_value_does_not_hide_the_one_before():
    spans = [agentops({"type": "reward", "value": 0.5}), agentops({"type": "reward", "value": None})]
    assert find_final_reward(spans) == 0.5
