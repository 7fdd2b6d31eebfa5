"""The policies that come with the core. All take time in proportion to the trace, ``first_sibling`` times its log."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import ClassVar

from lightning_core.errors import ConfigurationError

from .base import CallCredit, Credit, CreditCall, CreditPolicy, CreditTrace, RewardCredit

__all__ = [
    "DiscountedCredit",
    "FinalCredit",
    "FirstOccurrenceCredit",
    "FirstSiblingCredit",
    "GroupRelativeCredit",
]

_NO_NUMBER = "holds no finite number"
_NO_CALL = "the trace has no call"


class FirstOccurrenceCredit(CreditPolicy):
    """A reward belongs to the last call before it, wherever in the trace; a call takes one reward, the first.

    So a call gets the first reward that follows it, unless another call comes first.
    """

    name = "first_occurrence"

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Give each reward to one call."""
        return _nearest(trace, self.name, None)


class FirstSiblingCredit(CreditPolicy):
    """A reward belongs to the last call before it among its siblings and below them; a call takes one, the first.

    So agents that run at once, each under a span of its own with its own reward, do not take each other's rewards.
    """

    name = "first_sibling"

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Give each reward to one call."""
        return _nearest(trace, self.name, _LastBelow(trace))


class FinalCredit(CreditPolicy):
    """Every call gets the last reward of the attempt; rewards before it count nothing."""

    name = "final"

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Give the last reward to every call."""
        last = _final(trace)
        if last is None:
            return _without(trace, "final: the attempt has no reward")
        value = trace.rewards[last].value
        return Credit(
            trace,
            [CallCredit(value, last, "final: the last reward of the attempt") for _ in trace.calls],
            _only(trace, last, "final: every call has the last reward"),
        )


class DiscountedCredit(CreditPolicy):
    """A call gets the sum of all rewards after it, each multiplied by ``gamma`` for every call in between.

    A call that no reward follows gets none.

    Args:
        gamma: From 0 to 1. 1: the plain sum; 0: only what comes before the next call.

    Raises:
        ConfigurationError: If ``gamma`` is out of range. This is a ``ValueError``.
    """

    name = "discounted"

    def __init__(self, gamma: float = 1.0) -> None:
        if not 0 <= gamma <= 1:
            raise ConfigurationError(f"gamma must be from 0 to 1, not {gamma}")
        self.gamma = gamma

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Give each call what it leads to."""
        calls: list[CallCredit] = []
        rewards: list[RewardCredit] = []
        total, count = 0.0, 0
        nearest: int | None = None
        number = len(trace.rewards) - 1
        for call in reversed(trace.calls):
            while number >= 0 and trace.rewards[number].place > call.place:
                value = trace.rewards[number].value
                if value is not None:
                    total, count, nearest = total + value, count + 1, number
                rewards.append(self._gone(trace, value, len(trace.calls) - len(calls)))
                number -= 1
            if nearest is None:
                calls.append(CallCredit(None, None, "discounted: no reward follows it"))
            else:
                summed = "the reward" if count == 1 else f"the {count} rewards"
                calls.append(
                    CallCredit(
                        total,
                        nearest,
                        f"discounted: {summed} after it, times {self.gamma:g} for each call between",
                    )
                )
            total *= self.gamma
        rewards += [self._gone(trace, reward.value, 0) for reward in trace.rewards[: number + 1]]
        return Credit(trace, calls[::-1], rewards[::-1])

    def _gone(self, trace: CreditTrace, value: float | None, before: int) -> RewardCredit:
        if value is None:
            return RewardCredit(None, _NO_NUMBER)
        if not before:
            return RewardCredit(None, "no call comes before it" if trace.calls else _NO_CALL)
        calls = "the call" if before == 1 else f"the {before} calls"
        return RewardCredit(before - 1, f"discounted: {calls} before it")


class GroupRelativeCredit(CreditPolicy):
    """Every call of a rollout gets its final reward, relative to those of other rollouts of the same task.

    That is ``(reward - mean) / (deviation + epsilon)`` with the mean and the sample standard deviation of the final
    rewards of the group. Rollouts without a reward count nothing and get none. At least two need one.

    Args:
        scale: Divide by the deviation; else only the mean is subtracted.
        epsilon: Keeps the differences of rewards that are all but equal from being blown up.

    Raises:
        ConfigurationError: If ``epsilon`` is negative. This is a ``ValueError``.
    """

    name = "group-relative"
    needs_group: ClassVar[bool] = True

    def __init__(self, scale: bool = True, epsilon: float = 1e-6) -> None:
        if not epsilon >= 0:
            raise ConfigurationError(f"epsilon must not be negative: {epsilon}")
        self.scale = scale
        self.epsilon = epsilon

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Refuse: one rollout has nothing to be compared with."""
        raise ConfigurationError(
            "credit 'group-relative' compares the rollouts of one task, and was given a single one: give all of "
            "them together to assign_group, or choose a credit that looks at one, such as 'final'"
        )

    def assign_group(self, traces: Sequence[CreditTrace], /) -> list[Credit]:
        """Compare the rollouts of one task."""
        finals = [_final(trace) for trace in traces]
        values = [
            value
            for trace, last in zip(traces, finals, strict=True)
            if last is not None and (value := trace.rewards[last].value) is not None
        ]
        if len(values) < 2:
            rewarded = f"{len(values)} of {len(traces)} rollouts of the task have a reward"
            reason = f"group-relative: {rewarded}, and two are needed"
            return [_without(trace, reason) for trace in traces]
        mean, deviation = fmean(values), stdev(values)
        among = f"group-relative: among {len(values)} rollouts with mean {mean:g} and deviation {deviation:g}"
        if deviation == 0:
            among += ", which are all alike"
        return [
            self._relative(trace, last, mean, deviation, among)
            for trace, last in zip(traces, finals, strict=True)
        ]

    def _relative(
        self, trace: CreditTrace, last: int | None, mean: float, deviation: float, among: str
    ) -> Credit:
        value = None if last is None else trace.rewards[last].value
        if last is None or value is None:
            return _without(trace, "group-relative: the attempt has no reward")
        advantage = value - mean
        if self.scale:
            advantage = advantage / (deviation + self.epsilon) if deviation else 0.0
        return Credit(
            trace,
            [CallCredit(advantage, last, among) for _ in trace.calls],
            _only(trace, last, "group-relative: every call has the last reward, compared"),
        )


def _final(trace: CreditTrace) -> int | None:
    """Return the number of the last reward that holds a number."""
    for number in range(len(trace.rewards) - 1, -1, -1):
        if trace.rewards[number].value is not None:
            return number
    return None


def _only(trace: CreditTrace, last: int, reason: str) -> list[RewardCredit]:
    """Say where the rewards went if only one of them counts."""
    gone: list[RewardCredit] = []
    for number, reward in enumerate(trace.rewards):
        if reward.value is None:
            gone.append(RewardCredit(None, _NO_NUMBER))
        elif number != last:
            counts = trace.name(trace.rewards[last].place)
            gone.append(RewardCredit(None, f"only the last reward counts, which is {counts}"))
        elif not trace.calls:
            gone.append(RewardCredit(None, _NO_CALL))
        else:
            gone.append(RewardCredit(len(trace.calls) - 1, reason))
    return gone


def _without(trace: CreditTrace, reason: str) -> Credit:
    """Give no call anything."""
    return Credit(
        trace,
        [CallCredit(None, None, reason) for _ in trace.calls],
        [RewardCredit(None, _NO_NUMBER if reward.value is None else reason) for reward in trace.rewards],
    )


def _nearest(trace: CreditTrace, name: str, below: _LastBelow | None) -> Credit:
    """Give each reward to the last call before it, ``below`` the parent of the reward if that is given."""
    calls = trace.calls
    gone: list[RewardCredit] = []
    taken: dict[int, int] = {}
    passed = 0
    for number, reward in enumerate(trace.rewards):
        if reward.value is None:
            gone.append(RewardCredit(None, _NO_NUMBER))
            continue
        while passed < len(calls) and calls[passed].place < reward.place:
            if below is not None:
                below.add(passed, calls[passed])
            passed += 1
        last = passed - 1 if passed else None
        parent = trace.parent(reward.place)
        if below is None or parent is None:
            call, where = last, ""
        else:
            call, where = below.last(parent), f" under {trace.name(parent)}"
        if call is None:
            reason = f"no call comes before it{where}"
            if last is not None:
                other = trace.name(calls[last].place)
                reason += f"; {FirstOccurrenceCredit.name} would choose {other}"
            gone.append(RewardCredit(None, reason))
        elif call in taken:
            holder = trace.name(trace.rewards[taken[call]].place)
            gone.append(
                RewardCredit(
                    None,
                    f"the last call before it{where} is {trace.name(calls[call].place)}, "
                    f"which has the reward of {holder} already",
                )
            )
        else:
            taken[call] = number
            gone.append(RewardCredit(call, f"{name}: the last call before it{where}"))
    given: list[CallCredit] = []
    for number in range(len(calls)):
        source = taken.get(number)
        if source is None:
            given.append(CallCredit(None, None, f"{name}: it is the last call before no reward"))
        else:
            given.append(CallCredit(trace.rewards[source].value, source, gone[source].reason))
    return Credit(trace, given, gone)


class _LastBelow:
    """Answers which of the calls taken in so far comes last at or below a span.

    A segment tree over a walk of the trace that visits parents before children: what lies below a span is a stretch of
    the walk, and the answer is its maximum.
    """

    def __init__(self, trace: CreditTrace) -> None:
        self._first, self._end = _walk(trace.parents)
        self._size = size = len(self._first)
        self._latest = [-1] * (2 * size)

    def add(self, number: int, call: CreditCall) -> None:
        """Take in the call of that number, which must come after all that were taken in before."""
        if not self._size:
            return
        latest, size = self._latest, self._size
        for span in call.spans or (call.place,):
            at = self._first[span] + size
            while at:
                latest[at] = number
                at >>= 1

    def last(self, span: int) -> int | None:
        """Return the number of the last call at or below a span."""
        latest, found = self._latest, -1
        left, right = self._first[span] + self._size, self._end[span] + self._size
        while left < right:
            if left & 1:
                found = max(found, latest[left])
                left += 1
            if right & 1:
                right -= 1
                found = max(found, latest[right])
            left >>= 1
            right >>= 1
        return found if found >= 0 else None


def _walk(parents: Sequence[int | None]) -> tuple[list[int], list[int]]:
    """Return for each span its number in a walk, and that of the first span after it that does not lie below it."""
    children: list[list[int]] = [[] for _ in parents]
    for span, parent in enumerate(parents):
        if parent is not None:
            children[parent].append(span)
    first = [-1] * len(parents)
    end = [0] * len(parents)
    count = 0
    tops = [span for span, parent in enumerate(parents) if parent is None]
    # What no top leads to goes round in a circle, and is entered anywhere.
    for top in (*tops, *range(len(parents))):
        stack = [top]
        while stack:
            span = stack.pop()
            if span < 0:
                end[~span] = count
            elif first[span] < 0:
                first[span] = count
                count += 1
                stack.append(~span)
                stack.extend(children[span])
    return first, end
