"""What the spans of one rollout hold that an algorithm could learn from, and why it is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_core.adapter import advice
from lightning_core.algorithm.base import Need
from lightning_core.emitter import get_reward_value, is_reward_span
from lightning_core.types import LLMCall, Span, is_llm_call

__all__ = ["Evidence", "FoundReward"]


@dataclass(frozen=True)
class FoundReward:
    """A reward in a trace.

    Attributes:
        value: The reward; ``None`` if its span holds no finite number.
        after: How many calls of a model came before it.
    """

    value: float | None
    after: int


@dataclass(frozen=True)
class Evidence:
    """What the spans of one attempt hold.

    Attributes:
        spans: All of them, in the order of their sequence ids.
        calls: The calls of a language model.
        rewards: The rewards.
    """

    spans: Sequence[Span]
    calls: tuple[LLMCall, ...]
    rewards: tuple[FoundReward, ...]

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Evidence:
        """Read the spans."""
        calls: list[LLMCall] = []
        rewards: list[FoundReward] = []
        for span in spans:
            if is_reward_span(span):
                rewards.append(FoundReward(get_reward_value(span), len(calls)))
            elif is_llm_call(span.attributes):
                calls.append(LLMCall.from_span(span))
        return cls(spans, tuple(calls), tuple(rewards))

    @property
    def answered(self) -> list[LLMCall]:
        """The calls whose answer was recorded."""
        return [call for call in self.calls if call.choices]

    @property
    def final_reward(self) -> float | None:
        """The last reward, or ``None``."""
        return next((reward.value for reward in reversed(self.rewards) if reward.value is not None), None)

    def token_ids(self) -> tuple[Counter[str], Counter[str]]:
        """Count the answered calls by where their token ids were found, and those without by why there are none.

        Several spans of one call, such as those of a framework and of the client below it, count once.
        """
        found: Counter[str] = Counter()
        without: list[tuple[str, str]] = []
        known: set[str] = set()
        for call in self.answered:
            choice = call.choices[0]
            prompt, response = call.prompt_token_ids, choice.token_ids
            answer = json.dumps(choice.message, sort_keys=True, default=str)
            if prompt.ids is not None and response.ids is not None:
                found[f"prompt: {prompt.source}; response: {response.source}"] += 1
                known.add(answer)
            else:
                reasons = [ids.missing or "missing" for ids in (prompt, response) if ids.ids is None]
                without.append((answer, "; ".join(reasons)))
        return found, Counter(reason for answer, reason in without if answer not in known)

    def lack(self, need: Need) -> str | None:
        """Say why the trace does not hold what is needed; ``None`` if it does."""
        if need == "rewards":
            if self.final_reward is not None:
                return None
            return (
                "its reward spans hold no finite number"
                if self.rewards
                else "the agent neither returned a reward nor emitted one"
            )
        if not self.calls:
            return "none of its spans is a call of a language model"
        if need == "llm_calls":
            return None
        if not self.answered:
            return "no answer of a model was recorded"
        if need == "token_ids":
            found, without = self.token_ids()
            return None if found else without.most_common(1)[0][0]
        if any(call.choices[0].logprobs for call in self.answered):
            return None
        return "the engine gave no log-probabilities"

    def remedy(self, need: Need) -> str:
        """Say what to do where the trace does not hold what is needed."""
        if need == "rewards":
            return advice.NO_REWARD
        if need == "llm_calls" or not self.calls:
            return advice.NO_CALLS
        if not self.answered:
            return advice.NO_CONTENT
        if need == "logprobs":
            return advice.NO_LOGPROBS
        lacking = [
            span.attributes for span in self.spans if is_llm_call(span.attributes) and not _has_ids(span)
        ]
        return advice.token_ids_advice(*lacking)


def _has_ids(span: Span) -> bool:
    call = LLMCall.from_span(span)
    return call.prompt_token_ids.ids is not None and all(
        choice.token_ids.ids is not None for choice in call.choices[:1]
    )
