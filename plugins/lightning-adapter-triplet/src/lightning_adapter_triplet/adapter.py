"""``TraceTripletAdapter``: the LLM calls of a trace as (prompt, response, reward) triplets."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_core.adapter.base import TraceAdapter
from lightning_core.errors import ConfigurationError
from lightning_core.types import LLMCall, LLMChoice, SpanLike, Triplet

from .agents import agents_of
from .duplicates import RecordedCall, merge_duplicates
from .explanation import CallExplanation, RewardExplanation, TripletExplanation
from .policy import RewardMatchPolicy
from .rewards import FoundReward, find_rewards, match_rewards
from .tree import TraceNode, TraceTree

__all__ = ["TraceTripletAdapter"]

logger = logging.getLogger(__name__)


class TraceTripletAdapter(TraceAdapter[list[Triplet]]):
    """Makes one :class:`~lightning_core.types.Triplet` of every LLM call of an attempt, in order of sequence ids.

    A triplet is JSON-able::

        prompt   = {"messages": [...], "text": None, "tools": [...], "token_ids": [...] or None}
        response = {"message": {...}, "finish_reason": "stop", "token_ids": [...] or None, "logprobs": [...] or None}
        reward   = 1.0 or None
        metadata = {"response_id", "model", "agent_name", "parameters", "span_id", "span_name", "sequence_id",
                    "reward_span_id", "token_ids": {"prompt": ..., "response": ...}}

    Messages have the form of OpenAI's chat completions. Token ids are those that the engine gave, or ``None``: then
    ``metadata["token_ids"]`` says why they are missing, else where they were found. Text is never tokenized again.

    Args:
        agent_match: Regular expression; only the calls of agents whose name it matches somewhere are taken. A call
            belongs to the nearest agent that it lies in.
        llm_call_match: Regular expression; the spans whose name it matches somewhere are the LLM calls. By default
            the spans' attributes tell.
        exclude_llm_call_in_reward: Leave out the calls that a reward function made, such as those to a judge.
        repair_hierarchy: See :meth:`TraceTree.from_spans`.
        reward_match: How rewards are matched with calls; see :class:`RewardMatchPolicy`.

    Raises:
        ConfigurationError: If a setting is wrong. This is a ``ValueError``.
    """

    def __init__(
        self,
        agent_match: str | None = None,
        llm_call_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
    ) -> None:
        self.agent_match = agent_match
        self.llm_call_match = llm_call_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.repair_hierarchy = repair_hierarchy
        try:
            self.reward_match = RewardMatchPolicy(reward_match)
        except ValueError:
            known = ", ".join(policy.value for policy in RewardMatchPolicy)
            raise ConfigurationError(f"reward_match: {reward_match!r} is none of {known}") from None
        self._agent = _compiled("agent_match", agent_match)
        self._call = _compiled("llm_call_match", llm_call_match)

    def adapt(self, source: Sequence[SpanLike], /) -> list[Triplet]:
        """Make the triplets of one attempt. Logs a warning if there are none, or if no reward found its call."""
        analysis = self._analyse(source)
        empty, warning = analysis.empty_because(), analysis.warning()
        if source and empty is not None:
            logger.warning("%d spans gave no triplet: %s", len(source), empty)
        elif warning is not None:
            logger.warning("%s", warning)
        return [
            _triplet(call, analysis.agents[call.node], analysis.matches.get(call)) for call in analysis.calls
        ]

    def explain(self, source: Sequence[SpanLike], /) -> TripletExplanation:
        """Say which reward landed on which call, by which rule, and why a span or the trace gave no triplet."""
        return self._analyse(source).explanation()

    def tree(self, source: Sequence[SpanLike]) -> TraceTree:
        """Return the tree that the adapter sees; ``str()`` draws it."""
        pattern = self._call
        if pattern is None:
            return TraceTree.from_spans(source, repair=self.repair_hierarchy)

        def is_call(name: str, attributes: Mapping[str, Any]) -> bool:
            return pattern.search(name) is not None

        return TraceTree.from_spans(source, repair=self.repair_hierarchy, is_call=is_call)

    def _analyse(self, source: Sequence[SpanLike]) -> _Analysis:
        tree = self.tree(source)
        spans = [node for node in tree.nodes if node.is_call]
        rewards = find_rewards(tree)
        analysis = _Analysis(self, len(source), tree, agents_of(spans), rewards)
        excluded = analysis.excluded
        in_reward = _within_rewards(rewards) if self.exclude_llm_call_in_reward else {}
        found: list[tuple[TraceNode, LLMCall]] = []
        for node in spans:
            agent = analysis.agents[node]
            if node in in_reward:
                excluded[node] = f"it was made by the reward function {in_reward[node].label}"
            elif self._agent is not None and agent is None:
                excluded[node] = f"it lies in no agent, so agent_match {self.agent_match!r} cannot match"
            elif self._agent is not None and agent is not None and not self._agent.search(agent):
                excluded[node] = f"agent_match {self.agent_match!r} does not match its agent"
            else:
                assert node.span is not None, "a virtual root is no call"
                call = LLMCall.from_span(node.span)
                reason = _unusable(node, call)
                if reason is None:
                    found.append((node, call))
                else:
                    excluded[node] = reason
        analysis.calls = merge_duplicates(found)
        analysis.matches = match_rewards(tree, analysis.calls, rewards, self.reward_match)
        return analysis


@dataclass
class _Analysis:
    """All that is known of a trace."""

    adapter: TraceTripletAdapter
    spans: int
    tree: TraceTree
    agents: Mapping[TraceNode, str | None]
    rewards: list[FoundReward]
    excluded: dict[TraceNode, str] = field(default_factory=dict[TraceNode, str])
    calls: list[RecordedCall] = field(default_factory=list[RecordedCall])
    matches: dict[RecordedCall, FoundReward] = field(default_factory=dict[RecordedCall, FoundReward])

    def empty_because(self) -> str | None:
        if self.calls:
            return None
        if not self.spans:
            return "the trace has no spans"
        if self.excluded:
            reasons = Counter(self.excluded.values()).most_common(3)
            return f"{len(self.excluded)} LLM calls, all left out: " + "; ".join(
                f"{reason} ({count} times)" if count > 1 else reason for reason, count in reasons
            )
        names = Counter(node.name for node in self.tree.nodes).most_common(5)
        listed = ", ".join(name for name, _ in names)
        if self.adapter.llm_call_match is not None:
            return f"llm_call_match {self.adapter.llm_call_match!r} matches no span (names: {listed})"
        return (
            f"no span is an LLM call (names: {listed}). A tracer that records LLM calls is needed, "
            'for instance tracer={"type": "otel", "instrument": ["openai"]}'
        )

    def warning(self) -> str | None:
        if not self.calls or not self.rewards or self.matches:
            return None
        reward = self.rewards[0]
        return (
            f"none of {len(self.rewards)} rewards landed on one of {len(self.calls)} LLM calls "
            f"(reward_match {self.adapter.reward_match.value!r}); {reward.node.label}: {reward.reason}"
        )

    def explanation(self) -> TripletExplanation:
        calls: dict[TraceNode, CallExplanation] = {
            node: CallExplanation(node.label, node.span_id, self.agents[node], excluded_because=reason)
            for node, reason in self.excluded.items()
        }
        notes = list(self.tree.notes)
        for call in self.calls:
            node, reward = call.node, self.matches.get(call)
            calls[node] = CallExplanation(
                node.label,
                node.span_id,
                self.agents[node],
                reward=reward.value if reward is not None else None,
                reward_span_id=reward.node.span_id if reward is not None else None,
                rule=reward.reason if reward is not None else None,
                same_call=tuple(other.label for other in call.nodes if other is not node),
                token_ids="; ".join(
                    f"{part} token ids: {text}" for part, text in _evidence(call.call).items()
                ),
            )
            if len(call.call.choices) > 1:
                notes.append(
                    f"call {node.label} has {len(call.call.choices)} choices; the triplet holds the first"
                )
        rewards = tuple(
            RewardExplanation(
                reward.node.label,
                reward.node.span_id,
                reward.value,
                reward.call.node.span_id if reward.call is not None else None,
                reward.reason,
            )
            for reward in self.rewards
        )
        return TripletExplanation(
            self.spans,
            len(self.calls),
            self.empty_because(),
            tuple(notes),
            tuple(calls[node] for node in sorted(calls, key=lambda node: node.index)),
            rewards,
            self.warning(),
        )


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


def _unusable(node: TraceNode, call: LLMCall) -> str | None:
    if call.response is None:
        status = node.span.status if node.span is not None else None
        code = getattr(status, "status_code", None)
        if getattr(code, "name", code) == "ERROR":
            return f"it failed: {getattr(status, 'description', None) or 'no reason recorded'}"
        return "its span holds no answer; is the tracer allowed to record contents, and was the stream read to its end?"
    if not call.messages and call.text is None and call.prompt_token_ids.ids is None:
        return "its span holds no prompt; is the tracer allowed to record contents?"
    return None


def _evidence(call: LLMCall) -> dict[str, str]:
    parts = {"prompt": call.prompt_token_ids, "response": (call.response or LLMChoice({})).token_ids}
    return {
        part: found.source or f"missing, {found.missing or 'not looked for'}" for part, found in parts.items()
    }


def _triplet(recorded: RecordedCall, agent: str | None, reward: FoundReward | None) -> Triplet:
    node, call = recorded.node, recorded.call
    response = call.response
    assert response is not None, "calls without an answer were left out"
    metadata: dict[str, Any] = {
        "response_id": call.response_id,
        "model": call.model,
        "agent_name": agent,
        "parameters": call.parameters,
        "span_id": node.span_id,
        "span_name": node.name,
        "sequence_id": node.sequence_id,
        "reward_span_id": reward.node.span_id if reward is not None else None,
        "token_ids": _evidence(call),
    }
    return Triplet(
        prompt={
            "messages": call.messages,
            "text": call.text,
            "tools": call.tools,
            "token_ids": call.prompt_token_ids.ids,
        },
        response={
            "message": response.message,
            "finish_reason": response.finish_reason,
            "token_ids": response.token_ids.ids,
            "logprobs": response.logprobs,
        },
        reward=reward.value if reward is not None else None,
        metadata=metadata,
    )
