"""Which reward belongs to which LLM call, by a reward-match policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_core.emitter import get_reward_value, is_reward_span

from .duplicates import RecordedCall
from .policy import RewardMatchPolicy
from .tree import TraceNode, TraceTree

__all__ = ["FoundReward", "find_rewards", "match_rewards"]


@dataclass(eq=False)
class FoundReward:
    """A reward span.

    Attributes:
        node: The span.
        value: The reward; ``None`` if the span holds no finite number.
        call: The call that it landed on, if any.
        reason: By which rule it landed there, or why it landed nowhere.
    """

    node: TraceNode
    value: float | None
    call: RecordedCall | None = None
    reason: str = ""


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
    tree: TraceTree, calls: Sequence[RecordedCall], rewards: Sequence[FoundReward], policy: RewardMatchPolicy
) -> dict[RecordedCall, FoundReward]:
    """Match rewards with calls, and write into each reward where it went and why.

    Args:
        tree: The trace.
        calls: The calls that may take a reward.
        rewards: The trace's rewards, in order.
        policy: The rule.

    Returns:
        The reward of each call that has one.
    """
    taken: dict[RecordedCall, FoundReward] = {}
    ordered = sorted(calls, key=lambda call: call.index)
    before = _LastBefore(tree, ordered) if policy is RewardMatchPolicy.FIRST_SIBLING else None
    passed = 0
    for reward in rewards:
        if reward.value is None:
            reward.reason = "holds no finite number"
            continue
        while passed < len(ordered) and ordered[passed].index < reward.node.index:
            if before is not None:
                before.add(passed)
            passed += 1
        last = ordered[passed - 1] if passed else None
        parent = reward.node.parent
        if before is None or parent is None:
            call, where = last, ""
        else:
            call, where = before.below(parent), f" under {parent.label}"
        if call is None:
            reward.reason = f"no call comes before it{where}"
            if last is not None:
                reward.reason += (
                    f"; {RewardMatchPolicy.FIRST_OCCURRENCE.value} would choose {last.node.label}"
                )
        elif call in taken:
            reward.reason = (
                f"the last call before it{where} is {call.node.label}, "
                f"which has the reward of {taken[call].node.label} already"
            )
        else:
            reward.call, reward.reason = call, f"{policy.value}: the last call before it{where}"
            taken[call] = reward
    return taken


class _LastBefore:
    """Answers which of the calls taken in so far comes last at or below a node.

    A segment tree over the walk of the trace: a subtree is a stretch of the walk, and the answer is its maximum.
    """

    def __init__(self, tree: TraceTree, calls: Sequence[RecordedCall]) -> None:
        self._calls = calls
        self._size = size = len(tree.nodes) + 1
        self._latest = [-1] * (2 * size)

    def add(self, number: int) -> None:
        """Take in the call of that number, which must come after all that were taken in before."""
        latest, size = self._latest, self._size
        for node in self._calls[number].nodes:
            place = node.first + size
            while place:
                latest[place] = number
                place >>= 1

    def below(self, node: TraceNode) -> RecordedCall | None:
        """Return the last call at or below ``node``."""
        latest, found = self._latest, -1
        left, right = node.first + self._size, node.last + 1 + self._size
        while left < right:
            if left & 1:
                found = max(found, latest[left])
                left += 1
            if right & 1:
                right -= 1
                found = max(found, latest[right])
            left >>= 1
            right >>= 1
        return self._calls[found] if found >= 0 else None
