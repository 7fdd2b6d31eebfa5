"""The contract of a trace adapter: order, silence, depth and sparseness, checked on traces that are all legal."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext as OtelSpanContext

from lightning_core.adapter.base import TraceAdapter
from lightning_core.types import Span, SpanAttributeNames, SpanNames, TraceStatus

__all__ = ["AdapterConformance", "as_readable", "make_trace"]

_TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
_DEEP = 3000

# Attributes that instrumentations really write, and some that none should.
_SPARSE: list[dict[str, Any]] = [
    {},
    {"gen_ai.prompt.3.tool_calls.0.name": "search"},
    {"gen_ai.prompt.3.tool_calls.0.arguments": "{not json", "gen_ai.prompt.7.content": "later"},
    {"gen_ai.completion.0.finish_reason": "tool_calls", "gen_ai.completion.0.tool_calls.2.id": "call"},
    {"gen_ai.completion.0.content.0.text": "a", "gen_ai.completion.0.content": "b"},
    {"gen_ai.prompt.x.content": "no number", "gen_ai.prompt.": "", "gen_ai.completion": "text"},
    {"gen_ai.operation.name": "chat"},
    {"gen_ai.input.messages": "{", "gen_ai.output.messages": "null"},
    {
        "gen_ai.input.messages": '[{"role": "user"}, 3, "text", null]',
        "gen_ai.output.messages": '[{"parts": [1, {}]}]',
    },
    {"openinference.span.kind": "LLM"},
    {
        "openinference.span.kind": "LLM",
        "input.value": "[]",
        "output.value": '{"choices": [null, {"message": 1}]}',
    },
    {
        "openinference.span.kind": "LLM",
        "output.value": '{"choices": {}, "usage": 3, "prompt_token_ids": "no"}',
    },
    {"llm.input_messages.0.message.contents.1.message_content.type": "image"},
    {"llm.output_messages.4.message.tool_calls.0.tool_call.function.arguments": "{}"},
    {"agentops.span.kind": "agent", "agentops.entity.output": '{"type": "reward"}'},
]


def make_trace(
    spans: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    parents: Sequence[int | None] | None = None,
    rollout_id: str = "rollout",
    attempt_id: str = "attempt",
) -> list[Span]:
    """Make the stored spans of one attempt.

    Args:
        spans: Name and attributes of each, in the order in which they ended.
        parents: For each the place of its parent in ``spans``, or ``None``. By default none has a parent.
        rollout_id: Their rollout.
        attempt_id: Their attempt.
    """
    made: list[Span] = []
    for index, (name, attributes) in enumerate(spans):
        parent = parents[index] if parents is not None else None
        made.append(
            Span.from_attributes(
                name=name,
                attributes=dict(attributes),
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                sequence_id=index + 1,
                trace_id=_TRACE_ID,
                span_id=f"{index + 1:016x}",
                parent_id=f"{parent + 1:016x}" if parent is not None else None,
                start_time=1_700_000_000.0 + 2 * index,
                end_time=1_700_000_001.0 + 2 * index,
            )
        )
    return made


def as_readable(span: Span) -> ReadableSpan:
    """Turn a stored span into one of OpenTelemetry's, with the same ids, name, attributes and times."""

    def context(span_id: str) -> OtelSpanContext:
        return OtelSpanContext(int(span.trace_id, 16), int(span_id, 16), is_remote=False)

    return ReadableSpan(
        name=span.name,
        context=context(span.span_id),
        parent=context(span.parent_id) if span.parent_id is not None else None,
        attributes=span.attributes,
        start_time=int((span.start_time or 0) * 1e9),
        end_time=int((span.end_time or 0) * 1e9),
    )


def _call(question: str, answer: str, response_id: str) -> dict[str, Any]:
    """Attributes of an LLM call, by OpenTelemetry's GenAI semantic conventions."""

    def message(role: str, text: str, **more: str) -> str:
        return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}], **more}])

    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "model",
        "gen_ai.response.id": response_id,
        "gen_ai.input.messages": message("user", question),
        "gen_ai.output.messages": message("assistant", answer, finish_reason="stop"),
    }


class AdapterConformance:
    """Inherit it, override the fixture ``adapter``, and pytest checks the adapter.

    Override ``trace`` as well if the adapter makes nothing of LLM calls and rewards: it must give a trace of at least
    two spans of which the adapter makes something, without depending on enclosure in time.

    Example:
        ::

            class TestPairs(AdapterConformance):
                @pytest.fixture
                def adapter(self):
                    return PairsAdapter()
    """

    @pytest.fixture
    def adapter(self) -> TraceAdapter[Any]:
        """The adapter to check."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture adapter")

    @pytest.fixture
    def trace(self) -> list[Span]:
        """A trace of which the adapter makes something: here two LLM calls, each with its reward, under one root."""
        reward = SpanAttributeNames.REWARD.value
        return make_trace(
            [
                ("chat model", _call("1 + 1?", "2", "first")),
                (SpanNames.REWARD.value, {reward: 1.0}),
                ("chat model", _call("2 + 2?", "5", "second")),
                (SpanNames.REWARD.value, {reward: 0.0}),
                ("agent", {}),
            ],
            parents=[4, 4, 4, 4, None],
        )

    def test_it_makes_something_of_a_trace(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """And says of how many spans it made how many samples."""
        explanation = adapter.explain(trace)
        assert not _is_empty(adapter.adapt(trace)), f"nothing was made of the trace:\n{explanation}"
        assert explanation.spans == len(trace)
        assert explanation.results > 0
        assert explanation.empty_because is None

    def test_calling_it_is_adapting(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """``adapter(spans)`` is ``adapter.adapt(spans)``."""
        assert adapter(trace) == adapter.adapt(trace)

    def test_it_is_deterministic(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """The same spans give the same result, every time, and the same explanation."""
        first, explained = adapter.adapt(trace), str(adapter.explain(trace))
        assert adapter.adapt(trace) == first
        assert adapter.adapt([span.detached() for span in trace]) == first
        assert str(adapter.explain(trace)) == explained

    def test_it_leaves_the_spans_as_they_are(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Neither the list nor a span is changed."""
        before, order = [span.model_dump() for span in trace], list(trace)
        adapter.adapt(trace)
        adapter.explain(trace)
        assert [span.model_dump() for span in trace] == before
        assert all(one is other for one, other in zip(order, trace, strict=True))

    def test_the_result_does_not_change_with_the_spans(
        self, adapter: TraceAdapter[Any], trace: list[Span]
    ) -> None:
        """What was made shares nothing with the spans."""
        result = adapter.adapt(trace)
        before = copy.deepcopy(result)
        for span in trace:
            for value in span.attributes.values():
                if isinstance(value, list):
                    value.clear()
            span.attributes.clear()
        assert result == before

    def test_sequence_ids_order_the_spans(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Stored spans may come in any order; their ``sequence_id`` says which is right."""
        expected = adapter.adapt(trace)
        assert adapter.adapt(trace[::-1]) == expected
        shuffled = list(trace)
        random.Random(0).shuffle(shuffled)
        assert adapter.adapt(shuffled) == expected

    def test_timestamps_order_nothing(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Trap 12: clocks of several machines run backwards, are shuffled, stand still, or are missing."""
        expected = _without_times(adapter.adapt(trace))
        times = [(span.start_time, span.end_time) for span in trace]
        shuffled = list(times)
        random.Random(0).shuffle(shuffled)
        clocks = [times[::-1], shuffled, [(5.0, 5.0)] * len(trace), [(None, None)] * len(trace)]
        for clock in clocks:
            changed = [
                span.detached(start_time=start, end_time=end)
                for span, (start, end) in zip(trace, clock, strict=True)
            ]
            assert _without_times(adapter.adapt(changed)) == expected

    def test_it_takes_spans_of_opentelemetry(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Spans that were not stored, in the order in which they ended, give as much."""
        readable = [as_readable(span) for span in trace]
        stored, unstored = adapter.adapt(trace), adapter.adapt(readable)
        if isinstance(stored, Sized):
            assert len(unstored) == len(stored)
        assert adapter.explain(readable).results == adapter.explain(trace).results

    def test_an_empty_trace_is_explained(self, adapter: TraceAdapter[Any]) -> None:
        """No span gives an empty result, and the reason."""
        assert _is_empty(adapter.adapt([]))
        explanation = adapter.explain([])
        assert (explanation.spans, explanation.results) == (0, 0)
        assert explanation.empty_because
        assert explanation.empty_because in str(explanation)

    def test_a_trace_that_gives_nothing_is_explained(self, adapter: TraceAdapter[Any]) -> None:
        """A span that says nothing gives no sample, or the adapter says what it made of it."""
        spans = make_trace([("something", {"some": "thing"})])
        explanation = adapter.explain(spans)
        assert explanation.spans == 1
        assert _is_empty(adapter.adapt(spans)) == (explanation.results == 0)
        assert (explanation.empty_because is not None) == (explanation.results == 0)

    def test_a_deep_trace_is_no_error(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Trap 32: thousands of spans within each other, as a recursive agent leaves them, above a usable trace."""
        parents: list[int | None] = [*range(1, _DEEP), None]
        chain = make_trace([(f"level {index}", {}) for index in range(_DEEP)], parents=parents)
        moved = {span.span_id: f"{int(span.span_id, 16) + _DEEP:016x}" for span in trace}
        lowest = [
            span.detached(
                sequence_id=span.sequence_id,
                span_id=moved[span.span_id],
                parent_id=moved[span.parent_id] if span.parent_id is not None else chain[0].span_id,
                rollout_id="rollout",
                attempt_id="attempt",
            )
            for span in trace
        ]
        highest = [span.detached(sequence_id=span.sequence_id + len(trace)) for span in chain]
        assert not _is_empty(adapter.adapt([*lowest, *highest]))
        assert str(adapter.explain([*lowest, *highest]))

    def test_sparse_attributes_are_no_error(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Trap 22: instrumentations leave out what does not apply, and write what nobody expects."""
        for attributes in _SPARSE:
            spans = make_trace([("span", attributes)])
            adapter.adapt(spans)
            adapter.adapt([as_readable(span) for span in spans])
            assert str(adapter.explain(spans))
        together = make_trace([("span", attributes) for attributes in _SPARSE])
        adapter.adapt(together)
        assert str(adapter.explain(together))

    def test_a_broken_hierarchy_is_no_error(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """Parents that are missing, that are their own ancestors, and spans that come twice."""
        lost = [span.detached(parent_id="f" * 16) for span in trace]
        circle = [
            span.detached(parent_id=trace[(index + 1) % len(trace)].span_id)
            for index, span in enumerate(trace)
        ]
        for spans in (lost, circle, [*trace, *trace]):
            assert not _is_empty(adapter.adapt(spans))
            assert str(adapter.explain(spans))

    def test_a_failed_span_is_no_error(self, adapter: TraceAdapter[Any], trace: list[Span]) -> None:
        """A span that ended with an error, without an answer, is passed over or used, and explained."""
        failed = TraceStatus(status_code="ERROR", description="refused")
        spans = [span.detached(status=failed, attributes={}) for span in trace]
        adapter.adapt(spans)
        assert str(adapter.explain(spans))


def _is_empty(result: object) -> bool:
    return result is None or (isinstance(result, Sized) and len(result) == 0)


def _without_times(result: Any) -> str:
    """Text of a result in which timestamps, should an adapter pass them on, do not count."""

    def strip(value: Any) -> Any:
        dump = getattr(value, "model_dump", None)
        if callable(dump):
            value = dump()
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value)
            return {str(key): strip(item) for key, item in items.items() if not _is_time(str(key))}
        if isinstance(value, list | tuple):
            return [strip(item) for item in cast("Sequence[Any]", value)]
        return value

    return repr(strip(result))


def _is_time(key: str) -> bool:
    return key.endswith(("time", "timestamp"))
