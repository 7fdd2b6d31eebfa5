"""Finds the spans that tell of one and the same LLM call, such as a framework's span and its SDK's span.

Two spans are one call if they hold

* the same response id and the same answer, unless they hold different last messages (some servers give every answer
  one id); or
* the same answer to the same last message, where one lies in the other, or where they were written by different
  instrumentations (an instrumentation writes one span a call, so two of its spans are two calls) and either have one
  parent or one lies in the other in time, and their response ids do not differ.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass

from lightning_core.types import LLMCall
from lightning_core.types.llm.messages import Message, as_dict, as_list, parsed

from .tree import TraceNode

__all__ = ["RecordedCall", "merge_duplicates"]


@dataclass(eq=False)
class RecordedCall:
    """An LLM call and the spans that recorded it.

    Attributes:
        node: The span that tells most.
        call: What it tells.
        nodes: All spans of the call, in order, that one included.
    """

    node: TraceNode
    call: LLMCall
    nodes: list[TraceNode]

    @property
    def index(self) -> int:
        """The call's place in the order of the trace: that of the first of its spans."""
        return self.nodes[0].index


def _text(message: Message) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return content.strip()
    parts = [text for part in as_list(content) if isinstance(text := as_dict(part).get("text"), str)]
    return "".join(parts).strip() if parts else None


def _tool_calls(message: Message) -> str:
    calls: list[list[object]] = []
    for call in as_list(message.get("tool_calls")):
        function = as_dict(as_dict(call).get("function"))
        arguments = function.get("arguments")
        # Frameworks write the same arguments with other blanks, and leave out those that are empty.
        value = parsed(arguments or "{}")
        calls.append([function.get("name"), arguments if value is None else value])
    return json.dumps(calls, sort_keys=True, default=str) if calls else ""


def _answer(call: LLMCall) -> Hashable:
    response = call.response
    if response is None:
        return None
    return (_text(response.message) or "", _tool_calls(response.message))


def _question(call: LLMCall) -> Hashable:
    if not call.messages:
        return call.text
    last = call.messages[-1]
    return (_text(last) or "", _tool_calls(last))


def _writer(node: TraceNode, call: LLMCall) -> Hashable:
    """Tell instrumentations apart."""
    return (node.name, call.convention)


def merge_duplicates(found: list[tuple[TraceNode, LLMCall]]) -> list[RecordedCall]:
    """Group spans by the call they tell of.

    Args:
        found: LLM-call spans that hold an answer, in order.

    Returns:
        The calls, in the order of their first spans.
    """
    groups = _Groups(found)
    by_id: dict[Hashable, int] = {}
    by_content: dict[Hashable, list[int]] = {}
    for place, (_, call) in enumerate(found):
        answer, question = _answer(call), _question(call)
        if call.response_id is not None:
            first = by_id.setdefault((call.response_id, answer), place)
            if question is not None and _question(found[first][1]) is not None:
                first = by_id.setdefault((call.response_id, answer, question), place)
            groups.join(first, place)
        by_content.setdefault((answer, question), []).append(place)
    for places in by_content.values():
        if len(places) > 1:
            _join_nested(found, places, groups)
            _join_siblings(found, places, groups)
            _join_enclosed(found, places, groups)

    members: dict[int, list[int]] = {}
    for place in range(len(found)):
        members.setdefault(groups.find(place), []).append(place)
    calls: list[RecordedCall] = []
    for places in members.values():
        best = max(places, key=lambda place: _evidence(found[place][1], found[place][0]))
        node, call = found[best]
        calls.append(RecordedCall(node, call, [found[place][0] for place in places]))
    return calls


def _join_nested(found: list[tuple[TraceNode, LLMCall]], places: list[int], groups: _Groups) -> None:
    enclosing: list[int] = []
    taken: set[Hashable] = set()
    for place in sorted(places, key=lambda place: found[place][0].first):
        node = found[place][0]
        while enclosing and not node.is_within(found[enclosing[-1]][0]):
            enclosing.pop()
        if enclosing:
            # A framework's span stands for one call of the SDK; a second one, such as a retry, is a call of its own.
            writer = (enclosing[-1], _writer(*found[place]))
            if writer not in taken:
                taken.add(writer)
                groups.join(enclosing[-1], place)
        enclosing.append(place)


def _join_siblings(found: list[tuple[TraceNode, LLMCall]], places: list[int], groups: _Groups) -> None:
    # The nth span of one instrumentation and the nth of another, under one parent, are one call.
    seen: dict[Hashable, int] = {}
    first: dict[Hashable, int] = {}
    for place in places:
        node, call = found[place]
        writer = (id(node.parent), _writer(node, call))
        count = seen[writer] = seen.get(writer, 0) + 1
        groups.join(first.setdefault((id(node.parent), count), place), place)


def _join_enclosed(found: list[tuple[TraceNode, LLMCall]], places: list[int], groups: _Groups) -> None:
    # Of a batch, whose calls run at once below several parents, a span of the SDK could lie in any. Those that say the
    # same are paired, each with the one around it that ends first.
    members: dict[int, list[int]] = {}
    for place in places:
        members.setdefault(groups.find(place), []).append(place)
    if len(members) == 1:
        return
    timed: list[tuple[float, float, int, frozenset[Hashable]]] = []
    for group in members.values():
        starts = [start for place in group if (start := found[place][0].start) is not None]
        ends = [end for place in group if (end := found[place][0].end) is not None]
        if starts and ends:
            writers = frozenset(_writer(*found[place]) for place in group)
            timed.append((min(starts), -max(ends), group[0], writers))
    around: dict[frozenset[Hashable], list[tuple[float, int]]] = {}
    for _, minus_end, place, writers in sorted(timed, key=lambda each: each[:3]):
        for others, ends in around.items():
            nearest = bisect_left(ends, (-minus_end, -1))
            if (
                nearest < len(ends)
                and others.isdisjoint(writers)
                and groups.may_join(ends[nearest][1], place)
            ):
                groups.join(ends.pop(nearest)[1], place)
                break
        else:
            insort(around.setdefault(writers, []), (-minus_end, place))


def _evidence(call: LLMCall, node: TraceNode) -> tuple[int, int, int, int]:
    response = call.response
    return (
        int(response is not None and response.token_ids.ids is not None),
        int(call.prompt_token_ids.ids is not None),
        int(call.response_id is not None),
        node.first,  # the innermost is closest to the engine
    )


class _Groups:
    """Union-find over the found spans, that never joins two different response ids."""

    def __init__(self, found: list[tuple[TraceNode, LLMCall]]) -> None:
        self._above = list(range(len(found)))
        self._ids = [call.response_id for _, call in found]

    def find(self, place: int) -> int:
        above = self._above
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    def may_join(self, one: int, other: int) -> bool:
        mine, theirs = self._ids[self.find(one)], self._ids[self.find(other)]
        return mine is None or theirs is None or mine == theirs

    def join(self, one: int, other: int) -> None:
        one, other = sorted((self.find(one), self.find(other)))
        if one == other or not self.may_join(one, other):
            return
        mine, theirs = self._ids[one], self._ids[other]
        self._above[other] = one
        self._ids[one] = mine if mine is not None else theirs
