"""``CallFinder``: the LLM calls of a trace that count, each of them once, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning_core.adapter.base import TraceAdapter
from lightning_core.errors import ConfigurationError
from lightning_core.types import LLMCall, SpanLike

from .agents import agents_of
from .duplicates import RecordedCall, merge_duplicates
from .rewards import FoundReward, find_rewards
from .tree import TraceNode, TraceTree

__all__ = ["CallAdapter", "CallFinder", "TraceCalls"]

T = TypeVar("T")


@dataclass
class TraceCalls:
    """The LLM calls of one attempt.

    Attributes:
        spans: Number of spans that were given.
        tree: The spans as a tree.
        agents: The nearest agent that each call span lies in.
        rewards: All rewards, in order.
        calls: The calls that count, each of them once, in order.
        excluded: Why the other spans of LLM calls do not count.
        empty_because: Why no call counts; ``None`` if one does.
        warning: What is most likely not as intended, if anything.
    """

    spans: int
    tree: TraceTree
    agents: Mapping[TraceNode, str | None]
    rewards: list[FoundReward]
    calls: list[RecordedCall] = field(default_factory=list[RecordedCall])
    excluded: dict[TraceNode, str] = field(default_factory=dict[TraceNode, str])
    empty_because: str | None = None
    warning: str | None = None


class CallFinder:
    """Finds the LLM calls of a trace.

    Args:
        agent_match: Regular expression; only the calls of agents whose name it matches somewhere count. A call
            belongs to the nearest agent that it lies in.
        llm_call_match: Regular expression; the spans whose name it matches somewhere are the LLM calls. By default
            the spans' attributes tell.
        exclude_llm_call_in_reward: Leave out the calls that a reward function made, such as those to a judge.
        repair_hierarchy: See :meth:`TraceTree.from_spans`.

    Raises:
        ConfigurationError: If a pattern is no regular expression. This is a ``ValueError``.
    """

    def __init__(
        self,
        agent_match: str | None = None,
        llm_call_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
    ) -> None:
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.repair_hierarchy = repair_hierarchy
        self._agent = _compiled("agent_match", agent_match)
        self._call = _compiled("llm_call_match", llm_call_match)

    def tree(self, source: Sequence[SpanLike]) -> TraceTree:
        """Build the tree of a trace, with the LLM calls marked."""
        pattern = self._call
        if pattern is None:
            return TraceTree.from_spans(source, repair=self.repair_hierarchy)

        def is_call(name: str, attributes: Mapping[str, Any]) -> bool:
            return pattern.search(name) is not None

        return TraceTree.from_spans(source, repair=self.repair_hierarchy, is_call=is_call)

    def find(self, source: Sequence[SpanLike]) -> TraceCalls:
        """Find the calls of one attempt."""
        tree = self.tree(source)
        spans = [node for node in tree.nodes if node.is_call]
        trace = TraceCalls(len(source), tree, agents_of(spans), find_rewards(tree))
        in_reward = _within_rewards(trace.rewards) if self.exclude_llm_call_in_reward else {}
        found: list[tuple[TraceNode, LLMCall]] = []
        for node in spans:
            reason = self._not_meant(trace.agents[node], in_reward.get(node))
            if reason is None:
                assert node.span is not None, "a virtual root is no call"
                call = LLMCall.from_span(node.span)
                reason = self.unusable(node, call)
                if reason is None:
                    found.append((node, call))
                    continue
            trace.excluded[node] = reason
        trace.calls = self.merged(found)
        if not trace.calls:
            trace.empty_because = self._why_empty(trace)
        return trace

    def unusable(self, node: TraceNode, call: LLMCall) -> str | None:
        """Say why nothing can be learned from a call; ``None`` if something can."""
        if call.response is None:
            return failure(node) or (
                "its span holds no answer; is the tracer allowed to record contents, "
                "and was the stream read to its end?"
            )
        if not call.messages and call.text is None and call.prompt_token_ids.ids is None:
            return "its span holds no prompt; is the tracer allowed to record contents?"
        return None

    def merged(self, found: list[tuple[TraceNode, LLMCall]]) -> list[RecordedCall]:
        """Make one of the spans that tell of one call."""
        return merge_duplicates(found)

    def without_calls(self, tree: TraceTree) -> str:
        """Say why no span of a trace is an LLM call, and what to do about it."""
        names = ", ".join(name for name, _ in Counter(node.name for node in tree.nodes).most_common(5))
        if self._call is not None:
            return f"llm_call_match {self._call.pattern!r} matches no span (names: {names})"
        return (
            f"no span is an LLM call (names: {names}). A tracer that records LLM calls is needed, "
            'for instance tracer={"type": "otel", "instrument": ["openai"]}'
        )

    def _not_meant(self, agent: str | None, reward: TraceNode | None) -> str | None:
        if reward is not None:
            return f"it was made by the reward function {reward.label}"
        if self._agent is None:
            return None
        if agent is None:
            return f"it lies in no agent, so agent_match {self._agent.pattern!r} cannot match"
        if not self._agent.search(agent):
            return f"agent_match {self._agent.pattern!r} does not match its agent"
        return None

    def _why_empty(self, trace: TraceCalls) -> str:
        if not trace.spans:
            return "the trace has no spans"
        if trace.excluded:
            reasons = Counter(trace.excluded.values()).most_common(3)
            return f"{len(trace.excluded)} LLM calls, all left out: " + "; ".join(
                f"{reason} ({count} times)" if count > 1 else reason for reason, count in reasons
            )
        return self.without_calls(trace.tree)


class CallAdapter(TraceAdapter[T]):
    """An adapter that reads the LLM calls of a trace, and makes of them what its subclass says.

    Args:
        agent_match: Regular expression: only the calls of agents whose name it matches are taken.
        llm_call_match: Regular expression: the spans whose name it matches are the LLM calls.
        exclude_llm_call_in_reward: Whether the calls that a reward function made are left out.
        repair_hierarchy: Whether parents are found for spans that have none.

    Raises:
        ConfigurationError: If a pattern is no regular expression. This is a ``ValueError``.
    """

    def __init__(
        self,
        agent_match: str | None = None,
        llm_call_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
    ) -> None:
        self.agent_match = agent_match
        self.llm_call_match = llm_call_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.repair_hierarchy = repair_hierarchy
        self.finder = self.make_finder()

    def make_finder(self) -> CallFinder:
        """Return what finds the calls."""
        return CallFinder(
            self.agent_match, self.llm_call_match, self.exclude_llm_call_in_reward, self.repair_hierarchy
        )

    def tree(self, source: Sequence[SpanLike]) -> TraceTree:
        """Return the tree that the adapter sees; ``str()`` draws it."""
        return self.finder.tree(source)


def failure(node: TraceNode) -> str | None:
    """Say that a call failed and why, if its span says so."""
    status = node.span.status if node.span is not None else None
    code = getattr(status, "status_code", None)
    if getattr(code, "name", code) != "ERROR":
        return None
    return f"it failed: {getattr(status, 'description', None) or 'no reason recorded'}"


def _compiled(setting: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise ConfigurationError(f"{setting}: {pattern!r} is no regular expression: {error}") from None


def _within_rewards(rewards: Sequence[FoundReward]) -> dict[TraceNode, TraceNode]:
    """Map every node below a reward span to that span."""
    within: dict[TraceNode, TraceNode] = {}
    for reward in rewards:
        stack = list(reward.node.children)
        while stack:
            node = stack.pop()
            if node not in within:
                within[node] = reward.node
                stack.extend(node.children)
    return within
