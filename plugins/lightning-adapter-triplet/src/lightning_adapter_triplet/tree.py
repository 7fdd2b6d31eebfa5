"""``TraceTree``: the spans of one attempt as a tree, in the order of their sequence ids.

Nothing here recurses: a chain of ten thousand nested spans is a trace like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import ConfigurationError
from lightning_core.types import Span, SpanLike, SpanNames, is_llm_call

from .repair import hang_up

__all__ = ["TraceNode", "TraceTree"]

_NANOSECONDS = 1_000_000_000


class TraceNode:
    """A span in its place.

    Attributes:
        span: The span; ``None`` for a virtual root.
        index: Its place in the order of sequence ids, from 0; -1 for a virtual root.
        span_id: 16 hexadecimal digits; empty for a virtual root.
        parent_id: The parent that the tracer recorded, whether or not the trace holds it.
        name: The span's name.
        attributes: The span's attributes.
        start: Start in seconds since the epoch, if known. Orders nothing.
        end: End in seconds since the epoch, if known. Orders nothing.
        is_call: Whether this is a call of a language model.
        parent: The node above, ``None`` for the root.
        children: The nodes below, in order.
        first: Place in a walk from the root that visits parents before children.
        last: Place of the last node below this one in that walk.
    """

    __slots__ = (
        "attributes",
        "children",
        "end",
        "first",
        "index",
        "is_call",
        "last",
        "name",
        "parent",
        "parent_id",
        "span",
        "span_id",
        "start",
    )

    def __init__(self, span: SpanLike | None, index: int) -> None:
        self.span = span
        self.index = index
        self.parent: TraceNode | None = None
        self.children: list[TraceNode] = []
        self.is_call = False
        self.first = self.last = 0
        self.span_id = ""
        self.parent_id: str | None = None
        self.name: str = SpanNames.VIRTUAL.value
        self.attributes: Mapping[str, Any] = {}
        self.start: float | None = None
        self.end: float | None = None
        if span is None:
            return
        self.name = span.name
        if isinstance(span, Span):
            self.span_id, self.parent_id = span.span_id, span.parent_id
            self.attributes = span.attributes
            self.start, self.end = span.start_time, span.end_time
            return
        context = span.get_span_context()
        if context is not None:
            self.span_id = f"{context.span_id:016x}"
        if span.parent is not None:
            self.parent_id = f"{span.parent.span_id:016x}"
        # The SDK's attributes are a slow, locked mapping.
        self.attributes = dict(cast("Mapping[str, Any]", span.attributes or {}))
        if span.start_time is not None:
            self.start = span.start_time / _NANOSECONDS
        if span.end_time is not None:
            self.end = span.end_time / _NANOSECONDS

    def __repr__(self) -> str:
        return f"TraceNode({self.label})"

    @property
    def label(self) -> str:
        """How explanations name this node: ``#place name [span id]``, or ``the virtual root``."""
        return "the virtual root" if self.span is None else f"#{self.index} {self.name} [{self.span_id}]"

    @property
    def sequence_id(self) -> int | None:
        """The sequence id under which the span is stored; ``None`` if it is not a stored span."""
        return self.span.sequence_id if isinstance(self.span, Span) else None

    def is_within(self, other: TraceNode) -> bool:
        """Say whether this node is ``other`` or somewhere below it."""
        return other.first <= self.first <= other.last

    def ancestors(self) -> Iterator[TraceNode]:
        """Yield the parent, its parent, and so on."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


class TraceTree:
    """The spans of one attempt as a tree. Make one with :meth:`from_spans`.

    Attributes:
        root: The root. Its ``span`` is ``None`` if the trace has no single root: then it is virtual.
        nodes: All spans in the order of their sequence ids, without the virtual root.
        notes: What had to be done to make a tree of the spans, one sentence each.
    """

    def __init__(self, root: TraceNode, nodes: list[TraceNode], notes: list[str]) -> None:
        self.root = root
        self.nodes = nodes
        self.notes = notes
        self._number()

    @classmethod
    def from_spans(
        cls,
        spans: Sequence[SpanLike],
        *,
        repair: bool = True,
        is_call: Callable[[str, Mapping[str, Any]], bool] | None = None,
    ) -> TraceTree:
        """Build the tree.

        Stored spans are put in the order of their ``sequence_id``; spans of OpenTelemetry keep theirs. A span that is
        given twice counts once. Spans whose parents go round in a circle are cut loose.

        Args:
            spans: The spans of one attempt.
            repair: Find a parent for spans that have none in the trace, and for LLM calls that hang directly from a
                root: the smallest span that encloses them in time, if the spans that enclose them all lie within each
                other. Otherwise, and for what is left over, a virtual root is made.
            is_call: Says by name and attributes which spans are LLM calls; by default, their attributes tell.

        Raises:
            ConfigurationError: If the spans are of more than one attempt. This is a ``ValueError``.
        """
        notes: list[str] = []
        nodes: list[TraceNode] = []
        by_id: dict[str, TraceNode] = {}
        doubles = 0
        for span in _in_sequence(spans):
            node = TraceNode(span, len(nodes))
            if node.span_id in by_id:
                doubles += 1
                continue
            if node.span_id:
                by_id[node.span_id] = node
            attributes = node.attributes
            node.is_call = is_call(node.name, attributes) if is_call is not None else is_llm_call(attributes)
            nodes.append(node)
        if doubles:
            notes.append(f"{doubles} spans were given twice and count once")
        for node in nodes:
            if node.parent_id is not None:
                node.parent = by_id.get(node.parent_id)
        _cut_circles(nodes, notes)
        tops = hang_up(nodes, notes, by_time=repair)
        if len(tops) == 1:
            root = tops[0]
        else:
            root = TraceNode(None, -1)
            for node in tops:
                node.parent = root
            if tops:
                notes.append(f"{len(tops)} spans without a parent in the trace hang from a virtual root")
        return cls(root, nodes, notes)

    def _number(self) -> None:
        for node in self.nodes:
            if node.parent is not None:
                node.parent.children.append(node)
        walk: list[TraceNode] = []
        stack = [self.root]
        while stack:
            node = stack.pop()
            node.first = node.last = len(walk)
            walk.append(node)
            if node.children:
                stack.extend(reversed(node.children))
        for node in reversed(walk):
            parent = node.parent
            if parent is not None and node.last > parent.last:
                parent.last = node.last
        self._walk = walk

    def walk(self) -> Iterator[TraceNode]:
        """Yield every node, the root first, parents before their children."""
        return iter(self._walk)

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        """Draw the tree, one span a line; what is nested deeper than twenty levels is not indented further."""
        depths: dict[int, int] = {id(self.root): 0}
        lines: list[str] = []
        for node in self._walk:
            depth = depths[id(node.parent)] + 1 if node.parent is not None else 0
            depths[id(node)] = depth
            lines.append("  " * min(depth, 20) + node.label + (" (LLM call)" if node.is_call else ""))
        return "\n".join(lines)


def _in_sequence(spans: Sequence[SpanLike]) -> Sequence[SpanLike]:
    stored: list[Span] = []
    for span in spans:
        if isinstance(span, Span):
            stored.append(span)
        elif not isinstance(span, ReadableSpan):  # pyright: ignore[reportUnnecessaryIsInstance] - callers err
            raise TypeError(f"an adapter takes Span or ReadableSpan objects, not {type(span).__name__}")
    attempts = {(span.rollout_id, span.attempt_id) for span in stored}
    if len(attempts) > 1:
        listed = ", ".join(f"{rollout}/{attempt}" for rollout, attempt in sorted(attempts)[:3])
        raise ConfigurationError(
            f"an adapter takes the spans of one attempt, and these are of {len(attempts)} ({listed}): "
            'ask for them with store.query_spans(rollout_id, attempt_id="latest")'
        )
    if len(stored) < len(spans):
        return spans
    stored.sort(key=lambda span: span.sequence_id)
    return stored


def _cut_circles(nodes: list[TraceNode], notes: list[str]) -> None:
    done = [0] * len(nodes)  # 0: not seen, 1: on the current path, 2: known to end at a root
    for start in nodes:
        path: list[TraceNode] = []
        node: TraceNode | None = start
        while node is not None and not done[node.index]:
            done[node.index] = 1
            path.append(node)
            node = node.parent
        if node is not None and done[node.index] == 1:
            notes.append(f"{node.label} was its own ancestor; it was cut loose from {node.parent_id}")
            node.parent = None
        for node in path:
            done[node.index] = 2
