"""Trees of traces: building, circles, and the repair of hierarchies."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_adapter_triplet import TraceNode, TraceTree, TraceTripletAdapter

from lightning_core.testing.adapter import as_readable
from lightning_core.types import Span, SpanNames

CALL = {"gen_ai.operation.name": "chat"}


def span(
    name: str,
    number: int,
    parent: int | None = None,
    time: tuple[float, float] | None = None,
    attributes: dict[str, Any] | None = None,
) -> Span:
    made = Span.from_attributes(
        name=name,
        attributes=attributes or {},
        rollout_id="r",
        attempt_id="a",
        sequence_id=number,
        trace_id="1" * 32,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent is not None else None,
    )
    return made.detached(start_time=time[0] if time else None, end_time=time[1] if time else None)


def parents(tree: TraceTree) -> dict[str, str | None]:
    return {node.name: node.parent.name if node.parent else None for node in tree.nodes}


def test_recorded_parents_make_the_tree() -> None:
    tree = TraceTree.from_spans(
        [span("leaf", 1, 2), span("middle", 2, 3), span("root", 3), span("other", 4, 3)]
    )
    assert parents(tree) == {"leaf": "middle", "middle": "root", "root": None, "other": "root"}
    assert tree.root.name == "root"
    assert tree.notes == []
    assert [node.name for node in tree.walk()] == ["root", "middle", "leaf", "other"]
    assert [node.name for node in tree.nodes[0].ancestors()] == ["middle", "root"]
    assert len(tree) == 4
    lines = str(tree).splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 2]


def test_children_are_in_the_order_of_sequence_ids_and_not_of_time() -> None:
    tree = TraceTree.from_spans(
        [
            span("b", 2, 4, (1, 2)),
            span("c", 3, 4, (0, 1)),
            span("a", 1, 4, (9, 10)),
            span("root", 4, None, (0, 10)),
        ]
    )
    assert [node.name for node in tree.root.children] == ["a", "b", "c"]


def test_an_empty_trace_has_a_virtual_root_only() -> None:
    tree = TraceTree.from_spans([])
    assert (tree.nodes, tree.root.span, tree.root.name) == ([], None, SpanNames.VIRTUAL.value)


@pytest.mark.parametrize("repair", [True, False])
def test_several_roots_get_a_virtual_one(repair: bool) -> None:
    tree = TraceTree.from_spans([span("a", 1), span("b", 2, 99), span("c", 3, 2)], repair=repair)
    assert tree.root.span is None
    assert parents(tree) == {"a": "lightning.virtual", "b": "lightning.virtual", "c": "b"}
    assert "2 spans without a parent" in tree.notes[-1]


def test_a_single_root_whose_parent_is_elsewhere_is_the_root() -> None:
    tree = TraceTree.from_spans([span("a", 1, 2), span("server", 2, 99)])
    assert tree.root.name == "server"


def test_a_span_without_a_parent_is_hung_from_the_smallest_one_that_encloses_it() -> None:
    spans = [
        span("lost", 1, 99, (2, 3)),
        span("inner", 2, 3, (1, 4)),
        span("outer", 3, None, (0, 5)),
        span("elsewhere", 4, 3, (4.2, 4.8)),
    ]
    tree = TraceTree.from_spans(spans)
    assert parents(tree)["lost"] == "inner"
    assert tree.root.name == "outer"
    assert parents(TraceTree.from_spans(spans, repair=False))["lost"] == "lightning.virtual"


def test_spans_without_any_parent_are_nested_by_time() -> None:
    tree = TraceTree.from_spans(
        [
            span("c", 1, None, (2, 3)),
            span("b", 2, None, (1, 4)),
            span("a", 3, None, (0, 5)),
            span("d", 4, None, (4, 5)),
        ]
    )
    assert parents(tree) == {"c": "b", "b": "a", "a": None, "d": "a"}


def test_a_call_right_below_the_root_is_hung_from_the_agent_that_encloses_it() -> None:
    spans = [
        span("call", 1, 3, (2, 3), CALL),
        span("agent", 2, 3, (1, 4)),
        span("root", 3, None, (0, 5)),
        span("work", 4, 3, (2, 3)),
    ]
    # Recorded parents of other spans are kept: only SDKs' calls are known to miss theirs.
    assert parents(TraceTree.from_spans(spans[:3])) == {"call": "agent", "agent": "root", "root": None}
    assert parents(TraceTree.from_spans(spans[1:]))["work"] == "root"


def test_two_agents_at_once_do_not_take_each_others_calls() -> None:
    tree = TraceTree.from_spans(
        [
            span("call", 1, 4, (2, 3), CALL),
            span("one", 2, 4, (0, 4)),
            span("two", 3, 4, (1, 5)),
            span("root", 4, None, (0, 6)),
        ]
    )
    assert parents(tree)["call"] == "root"
    assert any("do not lie within each other" in note for note in tree.notes)


def test_calls_at_once_are_not_hung_from_each_other() -> None:
    tree = TraceTree.from_spans([span("long", 1, None, (0, 9), CALL), span("short", 2, None, (1, 2), CALL)])
    assert parents(tree) == {"long": "lightning.virtual", "short": "lightning.virtual"}


def test_a_call_stays_below_the_root_that_was_recorded() -> None:
    tree = TraceTree.from_spans(
        [
            span("call", 1, 2, (10, 11), CALL),
            span("skewed", 2, None, (0, 1)),
            span("other", 3, None, (9, 12)),
            span("agent", 4, 3, (9, 12)),
        ]
    )
    assert parents(tree)["call"] == "skewed"


def test_circles_are_cut() -> None:
    tree = TraceTree.from_spans(
        [span("a", 1, 2), span("b", 2, 3), span("c", 3, 1), span("own", 4, 4), span("d", 5, 1)]
    )
    assert len(list(tree.walk())) == 6
    assert sum("its own ancestor" in note for note in tree.notes) == 2


def test_a_span_that_is_given_twice_counts_once() -> None:
    one = span("a", 1)
    tree = TraceTree.from_spans([one, one.detached()])
    assert len(tree.nodes) == 1
    assert tree.notes == ["1 spans were given twice and count once"]


def test_spans_of_several_attempts_are_refused() -> None:
    spans = [span("a", 1), span("b", 1).detached(attempt_id="b")]
    with pytest.raises(ValueError, match="spans of one attempt") as error:
        TraceTripletAdapter().adapt(spans)
    assert 'attempt_id="latest"' in str(error.value)


def test_what_is_no_span_is_refused() -> None:
    with pytest.raises(TypeError, match="not str"):
        TraceTree.from_spans(["span"])  # type: ignore[list-item] - on purpose


@pytest.mark.parametrize(("readable", "count"), [(True, 2000), (False, 10_000)])
def test_thousands_of_spans_within_each_other(readable: bool, count: int) -> None:
    """Trap 32."""
    spans = [
        span("s", number, number + 1 if number < count else None, (count - number, count + number))
        for number in range(1, count + 1)
    ]
    tree = TraceTree.from_spans([as_readable(one) for one in spans] if readable else spans)
    assert sum(1 for _ in tree.nodes[0].ancestors()) == count - 1
    assert tree.root.last == count - 1
    assert len(str(tree).splitlines()) == count


@pytest.mark.parametrize("shape", ["flat", "nested", "crossing"])
def test_repair_is_not_quadratic(shape: str) -> None:
    """Trap 32: steps are counted, not time; each span may look at few others."""

    def steps(count: int) -> int:
        times = {
            "flat": [(2.0 * n, 2.0 * n + 1) for n in range(count)],
            "nested": [(float(n), float(2 * count - n)) for n in range(count)],
            "crossing": [(float(n), float(n + count)) for n in range(count)],
        }[shape]
        random.Random(0).shuffle(times)
        spans = [span("s", number + 1, None, one) for number, one in enumerate(times)]
        lines = 0

        def tracer(frame: Any, event: str, _: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            return tracer if "lightning_adapter_triplet" in frame.f_code.co_filename else None

        previous = sys.gettrace()
        sys.settrace(tracer)
        try:
            TraceTree.from_spans(spans)
        finally:
            sys.settrace(previous)
        return lines

    assert steps(400) < 2.5 * steps(200)


@st.composite
def traces(draw: st.DrawFn) -> list[Span]:
    count = draw(st.integers(1, 14))
    made: list[Span] = []
    for number in range(1, count + 1):
        parent = draw(st.none() | st.integers(1, count + 2))
        start = draw(st.none() | st.integers(0, 12))
        length = draw(st.integers(0, 12))
        kind = draw(st.sampled_from([{}, {}, CALL]))
        interval = (float(start), float(start + length)) if start is not None else None
        made.append(span(draw(st.sampled_from("abc")), number, parent, interval, kind))
    return made


@given(traces(), st.booleans(), st.randoms(use_true_random=False))
def test_every_trace_becomes_one_tree(spans: list[Span], repair: bool, shuffler: random.Random) -> None:
    tree = TraceTree.from_spans(spans, repair=repair)
    walk = list(tree.walk())
    assert {id(node) for node in walk} == {id(node) for node in tree.nodes} | {id(tree.root)}
    assert len(walk) == len(set(map(id, walk)))
    assert [node.index for node in tree.nodes] == list(range(len(spans)))
    for place, node in enumerate(walk):
        assert node.first == place
        assert (node.parent is None) == (node is tree.root)
        assert [child.index for child in node.children] == sorted(child.index for child in node.children)
        below = {id(other) for other in walk if _is_below(other, node)}
        assert below == {id(other) for other in walk[node.first : node.last + 1]}

    shuffled = list(spans)
    shuffler.shuffle(shuffled)
    again = TraceTree.from_spans(shuffled, repair=repair)
    assert str(again) == str(tree)
    assert again.notes == tree.notes


@given(traces())
def test_repair_only_uses_unambiguous_enclosure(spans: list[Span]) -> None:
    """The same answer as that of a slow search through all spans, for spans that have no parent at all."""
    for one in spans:
        one.parent_id = None
    tree = TraceTree.from_spans(spans)
    for node in tree.nodes:
        parent = node.parent
        if parent is None or parent.span is None:
            continue
        assert not parent.is_call
        assert node.start is not None
        assert node.end is not None
        enclosing = [
            other
            for other in tree.nodes
            if other is not node
            and not other.is_call
            and other.start is not None
            and other.end is not None
            and other.end > other.start
            and other.start <= node.start
            and other.end >= node.end
            and not _is_below(other, node)
        ]
        assert parent in enclosing
        assert all(_is_below(parent, other) for other in enclosing if not _same_interval(other, node))


def _is_below(node: TraceNode, other: TraceNode) -> bool:
    at: TraceNode | None = node
    while at is not None:
        if at is other:
            return True
        at = at.parent
    return False


def _same_interval(one: TraceNode, other: TraceNode) -> bool:
    return (one.start, one.end) == (other.start, other.end)
