"""The order in which the spans of one request ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lightning_core.types import Span

__all__ = ["order_spans"]

_UNFINISHED = 2**64


def order_spans(spans: Sequence[Span], ends: Sequence[int]) -> list[Span]:
    """Put spans in the order in which they ended, each after its children.

    A parent may seem to have ended before its child: some SDKs, such as that of JavaScript, read another clock for each
    span, a millisecond apart. What ended in the same nanosecond stays in the order given, and what has no end comes
    last.

    Args:
        spans: The spans, of any traces.
        ends: When each of them ended, in nanoseconds; 0 for unknown.
    """
    by_end = sorted(range(len(spans)), key=lambda index: ends[index] or _UNFINISHED)
    place = {index: rank for rank, index in enumerate(by_end)}
    index_of = {(span.trace_id, span.span_id): index for index, span in enumerate(spans)}
    parents = [index_of.get((span.trace_id, span.parent_id or "")) for span in spans]
    children = [0] * len(spans)
    for parent in parents:
        if parent is not None:
            children[parent] += 1
    # From the leaves up, a parent takes the place behind the last of its children. Spans that are their own ancestors
    # are never reached, and stay where they are.
    done: list[int] = []
    ready = deque(index for index in by_end if not children[index])
    while ready:
        index = ready.popleft()
        done.append(index)
        parent = parents[index]
        if parent is not None:
            place[parent] = max(place[parent], place[index])
            children[parent] -= 1
            if not children[parent]:
                ready.append(parent)
    done += [index for index in by_end if children[index]]
    # Where a parent shares the place of a child, the child is done before it.
    return [spans[index] for index in sorted(done, key=place.__getitem__)]
