"""The adapter interface and its default explanation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_core.adapter import BaseAdapter, Explanation, TraceAdapter
from lightning_core.testing.adapter import make_trace
from lightning_core.types import SpanLike


class Names(TraceAdapter[list[str]]):
    def adapt(self, source: Sequence[SpanLike], /) -> list[str]:
        return [span.name for span in source if span.name != "root"]


class Count(TraceAdapter[int]):
    def adapt(self, source: Sequence[SpanLike], /) -> int:
        return len(source)


def test_calling_an_adapter_adapts() -> None:
    class Double(BaseAdapter[int, int]):
        def adapt(self, source: int, /) -> int:
            return 2 * source

    assert Double()(2) == Double().adapt(2) == 4


def test_an_adapter_that_gives_no_explanation_still_counts() -> None:
    spans = make_trace([("a", {}), ("b", {}), ("root", {})])
    assert Names().explain(spans) == Explanation(spans=3, results=2)
    assert str(Names().explain(spans)) == "3 spans -> 2 training samples"
    assert str(Names().explain(spans[:1])) == "1 span -> 1 training sample"
    assert Count().explain(spans).results == 1


def test_an_empty_result_always_has_a_reason() -> None:
    assert Names().explain([]).empty_because == "the trace has no spans"
    nothing = Names().explain(make_trace([("root", {})]))
    assert nothing.empty_because == "Names found nothing in them that it can use"
    assert str(nothing) == "1 span -> 0 training samples: Names found nothing in them that it can use"


def test_notes_are_lines_of_the_text() -> None:
    assert str(Explanation(2, 1, notes=("one", "two"))).splitlines() == [
        "2 spans -> 1 training sample",
        "one",
        "two",
    ]


def test_warnings_that_keep_coming_thin_out(caplog: pytest.LogCaptureFixture) -> None:
    adapter, another = Names(), Names()
    for number in range(1, 10):
        adapter.warn("%d spans of no use in %s", number, "a trace")
    adapter.warn("something else")
    another.warn("%d spans of no use in %s", 0, "a trace")
    assert caplog.messages == [
        "1 spans of no use in a trace",
        "2 spans of no use in a trace (so far 2 traces like this)",
        "4 spans of no use in a trace (so far 4 traces like this)",
        "8 spans of no use in a trace (so far 8 traces like this)",
        "something else",
        "0 spans of no use in a trace",
    ]
