"""The credit interface: plain data in, the reward of each LLM call out, and why.

Order is that of an attempt's spans, by ``sequence_id``. A *place* is the number of a span in that order, from 0.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

from lightning_core.emitter import parse_reward
from lightning_core.errors import ConfigurationError, InvalidOutcomeError

__all__ = [
    "CallCredit",
    "Credit",
    "CreditCall",
    "CreditPolicy",
    "CreditReward",
    "CreditTrace",
    "FunctionCredit",
    "RewardCredit",
]


@dataclass(frozen=True, slots=True)
class CreditCall:
    """An LLM call in its place.

    Attributes:
        place: The place of the first span that recorded it.
        spans: The places of all spans that recorded it; empty if there is only that one.
    """

    place: int
    spans: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CreditReward:
    """A reward in its place.

    Attributes:
        place: The place of its span.
        value: The reward; ``None`` if the span holds no finite number.
    """

    place: int
    value: float | None


@dataclass(frozen=True)
class CreditTrace:
    """What credit assignment sees of one attempt.

    Attributes:
        calls: The calls that may take a reward, in order.
        rewards: The rewards, in order.
        parents: The place of each span's parent, ``None`` at the top; empty if all spans are at the top.
        names: How explanations name each span; empty: by its place, as ``#3``.

    Raises:
        ConfigurationError: If calls or rewards are out of order, a place has no parent listed, or a reward is not
            finite. This is a ``ValueError``.
    """

    calls: Sequence[CreditCall]
    rewards: Sequence[CreditReward]
    parents: Sequence[int | None] = ()
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for what, items in (("calls", self.calls), ("rewards", self.rewards)):
            places = [item.place for item in items]
            if any(one >= other for one, other in pairwise(places)):
                raise ConfigurationError(
                    f"the {what} of a trace must be in order, each in a place of its own"
                )
            if places and self.parents and not 0 <= places[0] <= places[-1] < len(self.parents):
                raise ConfigurationError(
                    f"{what} are in places {places[0]} to {places[-1]}, and parents are given for "
                    f"{len(self.parents)} spans"
                )
        for reward in self.rewards:
            if reward.value is not None and not math.isfinite(reward.value):
                raise ConfigurationError(
                    f"the reward in place {reward.place} is {reward.value}; give None for it"
                )

    def name(self, place: int) -> str:
        """Return how explanations name the span in a place."""
        return self.names[place] if self.names else f"#{place}"

    def parent(self, place: int) -> int | None:
        """Return the place of a span's parent."""
        return self.parents[place] if self.parents else None


@dataclass(frozen=True, slots=True)
class CallCredit:
    """What one call is given.

    Attributes:
        reward: Its reward; ``None`` for none.
        source: Which reward of the trace it comes from, by number; of several the first. ``None`` if it has none, or
            the policy does not say.
        reason: By which rule it has this reward, or why it has none.
    """

    reward: float | None
    source: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class RewardCredit:
    """Where one reward went.

    Attributes:
        call: The call of the trace that it landed on, by number; of several the last. ``None`` if it landed nowhere, or
            the policy does not say.
        reason: By which rule it landed there, or why it landed nowhere.
    """

    call: int | None
    reason: str


@dataclass(frozen=True)
class Credit:
    """The outcome, with its explanation. ``str()`` gives it as text.

    Attributes:
        trace: What was looked at.
        calls: What each call of the trace is given.
        rewards: Where each reward of the trace went.
    """

    trace: CreditTrace
    calls: Sequence[CallCredit]
    rewards: Sequence[RewardCredit]

    @property
    def values(self) -> list[float | None]:
        """The reward of each call."""
        return [call.reward for call in self.calls]

    def lines(self) -> list[str]:
        """Return the explanation, one line for each call and each reward."""
        trace, lines = self.trace, list[str]()
        for call, given in zip(trace.calls, self.calls, strict=True):
            if given.reward is None:
                worth = "no reward"
            elif given.source is None:
                worth = f"reward {given.reward:g}"
            else:
                worth = f"reward {given.reward:g} of {trace.name(trace.rewards[given.source].place)}"
            lines.append(f"call {trace.name(call.place)}: {worth}, {given.reason}")
        for reward, gone in zip(trace.rewards, self.rewards, strict=True):
            value = "" if reward.value is None else f" {reward.value:g}"
            where = "no call" if gone.call is None else trace.name(trace.calls[gone.call].place)
            lines.append(f"reward{value} {trace.name(reward.place)}: to {where}, {gone.reason}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


class CreditPolicy(ABC):
    """Decides which rewards each LLM call of an attempt is given.

    A policy is a pure function of what it is given: it keeps nothing between calls, and changes nothing.
    ``lightning_core.testing.CreditConformance`` checks it.
    """

    name: str = ""
    """How explanations name the policy."""
    needs_group: ClassVar[bool] = False
    """Whether it compares the rollouts of one task, so that :meth:`assign`, which sees only one, cannot do."""

    @abstractmethod
    def assign(self, trace: CreditTrace, /) -> Credit:
        """Assign the rewards of one attempt.

        Raises:
            ConfigurationError: If the policy needs a group of rollouts.
        """

    def assign_group(self, traces: Sequence[CreditTrace], /) -> list[Credit]:
        """Assign the rewards of several rollouts of one task, each by itself unless the policy compares them."""
        return [self.assign(trace) for trace in traces]

    @staticmethod
    def from_function(value: Any, settings: Mapping[str, Any], /) -> CreditPolicy | None:
        """Make a policy of a function that takes a trace, and maybe settings.

        Returns:
            The policy; ``None`` if the value does not have exactly one parameter left for the trace.
        """
        try:
            parameters = inspect.signature(value).parameters.values()
        except (TypeError, ValueError):
            return None
        left = [
            parameter
            for parameter in parameters
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            and parameter.name not in settings
        ]
        return FunctionCredit(value, **settings) if len(left) == 1 else None


class FunctionCredit(CreditPolicy):
    """The policy that a function is.

    Args:
        function: Takes a :class:`CreditTrace`. Returns the reward of each of its calls, ``None`` for none; or a
            :class:`Credit`, which also explains.
        **settings: Further keywords for it.

    Raises:
        ConfigurationError: If the function does not take these settings. This is a ``ValueError``.
    """

    def __init__(self, function: Callable[..., Sequence[float | None] | Credit], **settings: Any) -> None:
        self.function = function
        self.settings = settings
        self.name = getattr(function, "__name__", None) or type(function).__name__
        try:
            inspect.signature(function).bind(None, **settings)
        except TypeError as error:
            raise ConfigurationError(f"credit function {self.name}: {error}") from None

    def assign(self, trace: CreditTrace, /) -> Credit:
        """Call the function.

        Raises:
            InvalidOutcomeError: If it returns anything but one finite number or ``None`` for each call, or a
                ``Credit``. This is a ``TypeError`` and a ``ValueError``.
        """
        result = self.function(trace, **self.settings)
        if isinstance(result, Credit):
            if (len(result.calls), len(result.rewards)) != (len(trace.calls), len(trace.rewards)):
                raise InvalidOutcomeError(
                    f"credit function {self.name} explains {len(result.calls)} calls and {len(result.rewards)} "
                    f"rewards of a trace that has {len(trace.calls)} and {len(trace.rewards)}"
                )
            return result
        values = self._values(result, len(trace.calls))
        given = f"{self.name} gives it this"
        return Credit(
            trace,
            [
                CallCredit(value, None, f"{self.name} gives it none" if value is None else given)
                for value in values
            ],
            [RewardCredit(None, f"{self.name} does not say where it went") for _ in trace.rewards],
        )

    def _values(self, result: Any, calls: int) -> list[float | None]:
        # numpy arrays and tensors
        tolist = getattr(result, "tolist", None)
        if callable(tolist):
            result = tolist()
        if not isinstance(result, list | tuple):
            raise InvalidOutcomeError(
                f"credit function {self.name} must return a list with the reward of each call, or a Credit, not "
                f"a value of type {type(result).__name__}"
            )
        values = cast("Sequence[Any]", result)
        if len(values) != calls:
            raise InvalidOutcomeError(
                f"credit function {self.name} returned {len(values)} rewards for {calls} calls; "
                "give None to a call without one"
            )
        try:
            return [None if value is None else parse_reward(value) for value in values]
        except InvalidOutcomeError as error:
            raise InvalidOutcomeError(f"credit function {self.name}: {error}") from error
