"""The rewards of a trace, and which call each credit gives them to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_core.adapter.credit import CreditCall, CreditPolicy, CreditReward, CreditTrace
from lightning_core.emitter import get_reward_value, is_reward_span
from lightning_core.errors import ConfigurationError, UnknownPluginError
from lightning_core.plugin import resolve_argument

from .duplicates import RecordedCall
from .tree import TraceNode, TraceTree

__all__ = ["FoundReward", "GivenReward", "credit_of", "find_rewards", "match_rewards"]


@dataclass(eq=False)
class FoundReward:
    """A reward span.

    Attributes:
        node: The span.
        value: The reward; ``None`` if the span holds no finite number.
        call: The call that it landed on, if any; of several the last.
        reason: By which rule it landed there, or why it landed nowhere.
    """

    node: TraceNode
    value: float | None
    call: RecordedCall | None = None
    reason: str = ""


@dataclass(frozen=True)
class GivenReward:
    """What a call is given.

    Attributes:
        value: Its reward.
        source: The reward span that it comes from, of several the first; ``None`` if the credit does not say.
        reason: By which rule.
    """

    value: float
    source: FoundReward | None
    reason: str

    @property
    def span_id(self) -> str | None:
        """The id of that span."""
        return self.source.node.span_id if self.source is not None else None


def credit_of(spec: Any) -> CreditPolicy:
    """Return the credit that ``reward_match`` asks for.

    Args:
        spec: A ``RewardMatchPolicy``, or any specification of a credit.

    Raises:
        ConfigurationError: If there is no such credit, or it compares rollouts. This is a ``ValueError``.
    """
    try:
        credit: CreditPolicy = resolve_argument("reward_match", "credit", spec)
    except UnknownPluginError as error:
        raise ConfigurationError(str(error)) from None
    if credit.needs_group:
        raise ConfigurationError(
            f"the credit {credit.name!r} compares the rollouts of one task, and an adapter sees one "
            "attempt. It is for algorithms that call its assign_group; here choose another, such as 'final'"
        )
    return credit


def find_rewards(tree: TraceTree) -> list[FoundReward]:
    """Return the rewards of a trace in their order."""
    rewards: list[FoundReward] = []
    for node in tree.nodes:
        if node.attributes and node.span is not None and is_reward_span(node.span):
            value = get_reward_value(node.span)
            if value is not None and not math.isfinite(value):
                value = None
            rewards.append(FoundReward(node, value))
    return rewards


def match_rewards(
    tree: TraceTree, calls: Sequence[RecordedCall], rewards: Sequence[FoundReward], credit: CreditPolicy
) -> dict[RecordedCall, GivenReward]:
    """Assign the rewards to the calls, and write into each reward where it went and why.

    Args:
        tree: The trace.
        calls: The calls that may take a reward.
        rewards: The trace's rewards, in order.
        credit: The rule.

    Returns:
        What is given to each call that is given anything.
    """
    ordered = sorted(calls, key=lambda call: call.index)
    outcome = credit.assign(
        CreditTrace(
            [CreditCall(call.index, tuple(node.index for node in call.nodes)) for call in ordered],
            [CreditReward(reward.node.index, reward.value) for reward in rewards],
            [
                None if node.parent is None or node.parent.span is None else node.parent.index
                for node in tree.nodes
            ],
            [node.label for node in tree.nodes],
        )
    )
    for reward, gone in zip(rewards, outcome.rewards, strict=True):
        reward.call = None if gone.call is None else ordered[gone.call]
        reward.reason = gone.reason
    return {
        call: GivenReward(given.reward, None if given.source is None else rewards[given.source], given.reason)
        for call, given in zip(ordered, outcome.calls, strict=True)
        if given.reward is not None
    }
