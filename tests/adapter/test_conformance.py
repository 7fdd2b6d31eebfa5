"""The adapter suite accepts an adapter that keeps the contract, and catches those that break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_core.adapter import Explanation, TraceAdapter
from lightning_core.testing import AdapterConformance
from lightning_core.types import Span, SpanLike

Texts = list[tuple[str, Any]]


class Pairs(TraceAdapter[Texts]):
    """Name and text of every span that has a text, as a plugin author might begin."""

    def adapt(self, source: Sequence[SpanLike], /) -> Texts:
        return [(span.name, text) for span in self.ordered(source) if (text := self.text(span)) is not None]

    def ordered(self, spans: Sequence[SpanLike]) -> list[SpanLike]:
        return sorted(spans, key=lambda span: span.sequence_id if isinstance(span, Span) else 0)

    def text(self, span: SpanLike) -> Any:
        return (span.attributes or {}).get("gen_ai.output.messages")


class ByTime(Pairs):
    def ordered(self, spans: Sequence[SpanLike]) -> list[SpanLike]:
        return sorted(spans, key=lambda span: span.start_time or 0)


class AsGiven(Pairs):
    def ordered(self, spans: Sequence[SpanLike]) -> list[SpanLike]:
        return list(spans)


class Sorting(Pairs):
    def adapt(self, source: Sequence[SpanLike], /) -> Texts:
        result = super().adapt(source)
        for span in source:
            if isinstance(span, Span):
                span.attributes["seen"] = True
        return result


class Recursive(Pairs):
    def adapt(self, source: Sequence[SpanLike], /) -> Texts:
        stored = [span for span in source if isinstance(span, Span)]
        parents = {span.span_id: span.parent_id for span in stored}

        def depth(span_id: str | None, seen: int = 0) -> int:
            return 0 if span_id is None or seen > len(parents) else 1 + depth(parents.get(span_id), seen + 1)

        for span in stored:
            depth(span.span_id)
        return super().adapt(source)


class Strict(Pairs):
    def text(self, span: SpanLike) -> Any:
        for key in span.attributes or {}:
            if key.startswith("gen_ai.prompt."):
                return (span.attributes or {})[key.rpartition(".")[0] + ".role"]
        return super().text(span)


class Silent(Pairs):
    def explain(self, source: Sequence[SpanLike], /) -> Explanation:
        return Explanation(len(source), len(self.adapt(source)))


class StoredOnly(Pairs):
    def ordered(self, spans: Sequence[SpanLike]) -> list[SpanLike]:
        return super().ordered([span for span in spans if isinstance(span, Span)])


class Forgetful(Pairs):
    calls = 0

    def adapt(self, source: Sequence[SpanLike], /) -> Texts:
        self.calls += 1
        return [(name, (text, self.calls)) for name, text in super().adapt(source)]


class TestPairs(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TraceAdapter[Any]:
        return Pairs()


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (ByTime, AdapterConformance.test_timestamps_order_nothing),
        (AsGiven, AdapterConformance.test_sequence_ids_order_the_spans),
        (Sorting, AdapterConformance.test_it_leaves_the_spans_as_they_are),
        (Recursive, AdapterConformance.test_a_deep_trace_is_no_error),
        (Strict, AdapterConformance.test_sparse_attributes_are_no_error),
        (Silent, AdapterConformance.test_an_empty_trace_is_explained),
        (Silent, AdapterConformance.test_a_trace_that_gives_nothing_is_explained),
        (StoredOnly, AdapterConformance.test_it_takes_spans_of_opentelemetry),
        (Forgetful, AdapterConformance.test_it_is_deterministic),
    ],
)
def test_a_broken_adapter_is_caught(broken: type[Pairs], test: Callable[..., None]) -> None:
    suite = AdapterConformance()
    trace: list[Span] = AdapterConformance.trace.__wrapped__(suite)  # type: ignore[attr-defined] - pytest's fixture
    arguments: dict[str, Any] = {"adapter": broken()}
    if "trace" in test.__code__.co_varnames[: test.__code__.co_argcount]:
        arguments["trace"] = trace
    with pytest.raises((AssertionError, RecursionError, KeyError)):
        test(suite, **arguments)
