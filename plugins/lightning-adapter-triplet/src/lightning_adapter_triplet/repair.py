"""Repair of a trace's hierarchy: a parent for the spans that have none, by enclosure in time.

Frameworks and SDKs record spans in systems of their own, so the span of an LLM call often does not hang from the span
of the agent that made it. Time is used as structure only, to find what encloses what. It is evidence only where it is
unambiguous: of two agents that run at once, either could have made a call that lies within both, and then it stays
where it was.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from lightning_core.types import SpanNames

if TYPE_CHECKING:
    from .tree import TraceNode

__all__ = ["hang_up"]

# Spans that mark a moment. They enclose nothing.
_MARKS = frozenset(
    {SpanNames.REWARD.value, SpanNames.MESSAGE.value, SpanNames.OBJECT.value, SpanNames.EXCEPTION.value}
)


def hang_up(nodes: list[TraceNode], notes: list[str], *, by_time: bool) -> list[TraceNode]:
    """Give a parent to the nodes that lack one, as far as possible, in O(n log n).

    Args:
        nodes: All nodes of a trace; their ``parent`` is what was recorded, and goes round in no circle.
        notes: Receives a sentence for what was done.
        by_time: Whether to use enclosure in time at all.

    Returns:
        The nodes that have no parent, in order.
    """
    tops = [node for node in nodes if node.parent is None]
    if not by_time or not tops:
        return tops
    # LLM calls right below a root are looked at too: that is where SDKs put them that know nothing of the framework.
    loose = tops if len(tops) > 1 else []
    seekers = loose + [node for node in nodes if node.is_call and node.parent and node.parent.parent is None]
    containers = [node for node in nodes if _may_contain(node)]
    if not seekers or not containers or (len(tops) == 1 and containers == tops):
        return tops
    _Enclosure(nodes, tops, containers).adopt(seekers, notes)
    return [node for node in tops if node.parent is None]


def _may_contain(node: TraceNode) -> bool:
    # A call does not enclose what merely happens meanwhile, such as the other calls of an asyncio.gather.
    return (
        not node.is_call
        and node.start is not None
        and node.end is not None
        and node.end > node.start
        and node.name not in _MARKS
    )


class _Enclosure:
    """Where nodes are, in time and in the forest as recorded."""

    def __init__(self, nodes: list[TraceNode], tops: list[TraceNode], containers: list[TraceNode]) -> None:
        children: dict[int, list[TraceNode]] = {}
        for node in nodes:
            if node.parent is not None:
                children.setdefault(node.parent.index, []).append(node)
        contains = [False] * len(nodes)
        for node in containers:
            contains[node.index] = True
        self.top = [0] * len(nodes)
        # How many containers are above a node within the tree that it was recorded in, itself included.
        self.depth = [0] * len(nodes)
        # The same for what its tree's top has been hung from since.
        self.above = [0] * len(nodes)
        stack: list[tuple[TraceNode, int, int, bool]] = [(top, top.index, 0, False) for top in tops]
        while stack:
            node, top, depth, in_call = stack.pop()
            in_call = in_call or node.is_call
            contains[node.index] = contains[node.index] and not in_call
            depth += contains[node.index]
            self.top[node.index], self.depth[node.index] = top, depth
            stack.extend((child, top, depth, in_call) for child in children.get(node.index, ()))
        self.contains = contains
        self.nodes = nodes
        self.group = list(range(len(nodes)))

    def _group(self, index: int) -> int:
        group = self.group
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    def adopt(self, seekers: list[TraceNode], notes: list[str]) -> None:
        """Hang each seeker from the smallest container that encloses it, where that is unambiguous."""
        seeking = {node.index for node in seekers}
        timed = [
            (node.start, -node.end, not self.contains[node.index], node.index)
            for node in self.nodes
            if (node.index in seeking or self.contains[node.index])
            and node.start is not None
            and node.end is not None
        ]
        timed.sort()
        ends: list[float] = []  # of the containers that have started, sorted
        # The containers that can still be the smallest one: whoever starts later ends earlier.
        candidates: list[TraceNode] = []
        candidate_ends: list[float] = []  # negated, so that they rise
        adopted = ambiguous = 0
        for _, minus_end, _, index in timed:
            node = self.nodes[index]
            if index in seeking:
                place = bisect_right(candidate_ends, minus_end) - 1
                if place >= 0:
                    smallest = candidates[place]
                    enclosing = len(ends) - bisect_left(ends, -minus_end)
                    if enclosing > self.depth[smallest.index] + self.above[self.top[smallest.index]]:
                        ambiguous += 1
                    else:
                        adopted += self._hang(node, smallest)
            if self.contains[index]:
                insort(ends, -minus_end)
                while candidate_ends and candidate_ends[-1] >= minus_end:
                    candidate_ends.pop()
                    candidates.pop()
                candidates.append(node)
                candidate_ends.append(minus_end)
        if adopted:
            notes.append(f"{adopted} spans were hung from the span that encloses them in time")
        if ambiguous:
            notes.append(
                f"{ambiguous} spans are enclosed by several spans that do not lie within each other, "
                "and were left where they were"
            )

    def _hang(self, node: TraceNode, parent: TraceNode) -> bool:
        if node.parent is parent:
            return False
        if node.parent is None:
            own, other = self._group(node.index), self._group(self.top[parent.index])
            if own == other:
                return False
            self.group[own] = other
            self.above[node.index] = self.depth[parent.index] + self.above[self.top[parent.index]]
        elif self._group(self.top[parent.index]) != node.parent.index:
            # The tracer said below which root the call is: only there.
            return False
        node.parent = parent
        return True
