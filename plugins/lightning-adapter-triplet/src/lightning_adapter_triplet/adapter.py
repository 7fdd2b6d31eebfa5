"""``TraceTripletAdapter``: the LLM calls of a trace as (prompt, response, reward) triplets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_core.adapter.credit import CreditPolicy
from lightning_core.errors import ConfigurationError
from lightning_core.types import LLMCall, LLMChoice, SpanLike, Triplet

from .calls import CallAdapter, TraceCalls
from .duplicates import RecordedCall
from .explanation import CallExplanation, RewardExplanation, TripletExplanation
from .policy import RewardMatchPolicy, as_given
from .rewards import GivenReward, credit_of, match_rewards
from .tree import TraceNode

__all__ = ["TraceTripletAdapter"]


class TraceTripletAdapter(CallAdapter[list[Triplet]]):
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
        reward_match: How rewards are matched with calls: a :class:`RewardMatchPolicy`, or any other credit, by name,
            with settings, or as a function.

    Raises:
        ConfigurationError: If a setting is wrong. This is a ``ValueError``.
    """

    def __init__(
        self,
        agent_match: str | None = None,
        llm_call_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
        reward_match: Any = RewardMatchPolicy.FIRST_OCCURRENCE,
    ) -> None:
        super().__init__(agent_match, llm_call_match, exclude_llm_call_in_reward, repair_hierarchy)
        self.reward_match = as_given(reward_match)
        try:
            self.credit = credit_of(reward_match)
        except ConfigurationError as error:
            raise ConfigurationError(f"reward_match: {error}") from None

    def adapt(self, source: Sequence[SpanLike], /) -> list[Triplet]:
        """Make the triplets of one attempt. Logs a warning if there are none, or if no reward found its call."""
        analysis = self._analyse(source)
        trace, warning = analysis.trace, analysis.warning()
        if source and trace.empty_because is not None:
            self.warn("%d spans gave no triplet: %s", len(source), trace.empty_because)
        elif warning is not None:
            self.warn("%s", warning)
        return [_triplet(call, trace.agents[call.node], analysis.matches.get(call)) for call in trace.calls]

    def explain(self, source: Sequence[SpanLike], /) -> TripletExplanation:
        """Say which reward landed on which call, by which rule, and why a span or the trace gave no triplet."""
        return self._analyse(source).explanation()

    def _analyse(self, source: Sequence[SpanLike]) -> _Analysis:
        trace = self.finder.find(source)
        matches = match_rewards(trace.tree, trace.calls, trace.rewards, self.credit)
        return _Analysis(trace, self.credit, matches)


@dataclass
class _Analysis:
    """All that is known of a trace."""

    trace: TraceCalls
    credit: CreditPolicy
    matches: dict[RecordedCall, GivenReward]

    def warning(self) -> str | None:
        if not self.trace.calls:
            return None
        warnings = [text for text in (self.trace.warning, self._unmatched()) if text is not None]
        return "; ".join(warnings) or None

    def _unmatched(self) -> str | None:
        rewards, calls = self.trace.rewards, self.trace.calls
        if not rewards:
            return None
        by_policy = f"(reward_match {self.credit.name!r})"
        if not self.matches:
            first = rewards[0]
            return (
                f"none of {len(rewards)} rewards landed on one of {len(calls)} LLM calls "
                f"{by_policy}; {first.node.label}: {first.reason}"
            )
        final = next((reward for reward in reversed(rewards) if reward.value is not None), None)
        if final is None or final.call is not None:
            return None
        if any(reward.value == final.value for reward in self.matches.values()):
            return None  # most likely the same reward, emitted twice
        return f"the final reward, {final.value:g} of {final.node.label}, landed on no call {by_policy}: {final.reason}"

    def explanation(self) -> TripletExplanation:
        trace = self.trace
        calls: dict[TraceNode, CallExplanation] = {
            node: CallExplanation(node.label, node.span_id, trace.agents[node], excluded_because=reason)
            for node, reason in trace.excluded.items()
        }
        notes = list(trace.tree.notes)
        for call in trace.calls:
            node, reward = call.node, self.matches.get(call)
            calls[node] = CallExplanation(
                node.label,
                node.span_id,
                trace.agents[node],
                reward=reward.value if reward is not None else None,
                reward_span_id=reward.span_id if reward is not None else None,
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
            for reward in trace.rewards
        )
        return TripletExplanation(
            trace.spans,
            len(trace.calls),
            trace.empty_because,
            tuple(notes),
            tuple(calls[node] for node in sorted(calls, key=lambda node: node.index)),
            rewards,
            self.warning(),
        )


def _evidence(call: LLMCall) -> dict[str, str]:
    parts = {"prompt": call.prompt_token_ids, "response": (call.response or LLMChoice({})).token_ids}
    return {
        part: found.source or f"missing, {found.missing or 'not looked for'}" for part, found in parts.items()
    }


def _triplet(recorded: RecordedCall, agent: str | None, reward: GivenReward | None) -> Triplet:
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
        "reward_span_id": reward.span_id if reward is not None else None,
        "token_ids": _evidence(call),
    }
    prompt = {
        "messages": call.messages,
        "text": call.text,
        "tools": call.tools,
        "token_ids": call.prompt_token_ids.ids,
    }
    said = {
        "message": response.message,
        "finish_reason": response.finish_reason,
        "token_ids": response.token_ids.ids,
        "logprobs": response.logprobs,
    }
    value = reward.value if reward is not None else None
    return Triplet.trusted({"prompt": prompt, "response": said, "reward": value, "metadata": metadata})
