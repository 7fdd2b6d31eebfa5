"""What every credit policy promises, as tests to inherit."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from lightning_core.adapter.credit import Credit, CreditCall, CreditPolicy, CreditReward, CreditTrace

__all__ = ["CreditConformance", "make_credit_trace"]

_MANY = 3000


def make_credit_trace(
    spans: str, *, parents: Sequence[int | None] = (), values: Sequence[float | None] | None = None
) -> CreditTrace:
    """Make the trace of an attempt.

    Args:
        spans: One letter for each span, in order: ``c`` for a call, ``r`` for a reward, and any other for others.
        parents: The place of each span's parent; by default none has one.
        values: The rewards, in order. By default 1, 2, 3, and so on.
    """
    places = [place for place, letter in enumerate(spans) if letter == "r"]
    given = values if values is not None else [float(number + 1) for number in range(len(places))]
    return CreditTrace(
        [CreditCall(place) for place, letter in enumerate(spans) if letter == "c"],
        [CreditReward(place, value) for place, value in zip(places, given, strict=True)],
        parents,
    )


def _random_trace(source: random.Random) -> CreditTrace:
    spans = "".join(source.choice("ccrrx") for _ in range(source.randint(1, 30)))
    parents = [
        None
        if place == len(spans) - 1 or source.random() < 0.1
        else source.randint(place + 1, len(spans) - 1)
        for place in range(len(spans))
    ]
    values = [None if source.random() < 0.1 else source.uniform(-2, 2) for _ in range(spans.count("r"))]
    return make_credit_trace(spans, parents=parents, values=values)


class CreditConformance:
    """Inherit it, override the fixture ``credit``, and pytest checks the policy.

    Example:
        ::

            class TestShared(CreditConformance):
                @pytest.fixture
                def credit(self):
                    return SharedCredit()
    """

    @pytest.fixture
    def credit(self) -> CreditPolicy:
        """The policy to check."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture credit")

    def test_it_has_a_name(self, credit: CreditPolicy) -> None:
        """By which explanations tell it from others."""
        assert credit.name

    def test_every_call_and_every_reward_is_explained(self, credit: CreditPolicy) -> None:
        """With a finite reward or none, a source that exists, and a reason."""
        source = random.Random(0)
        for _ in range(100):
            traces = [_random_trace(source) for _ in range(3)]
            for trace, outcome in zip(traces, credit.assign_group(traces), strict=True):
                _check(trace, outcome)

    def test_one_attempt_is_a_group_of_its_own(self, credit: CreditPolicy) -> None:
        """Unless the policy compares: then it refuses to look at one."""
        trace = make_credit_trace("ccrcr")
        if credit.needs_group:
            with pytest.raises(ValueError, match="group"):
                credit.assign(trace)
        else:
            other = make_credit_trace("cr", values=[-5.0])
            assert credit.assign_group([trace, other]) == [credit.assign(trace), credit.assign(other)]

    def test_an_attempt_without_calls_or_rewards_is_no_error(self, credit: CreditPolicy) -> None:
        """Neither is one without either, nor one without a number in its rewards."""
        for spans in ("", "x", "c", "r", "ccc", "rrr"):
            trace = make_credit_trace(spans)
            for outcome in credit.assign_group([trace, trace]):
                _check(trace, outcome)
        trace = make_credit_trace("crcr", values=[None, None])
        for outcome in credit.assign_group([trace, trace]):
            _check(trace, outcome)
        assert credit.assign_group([]) == []

    def test_it_is_a_pure_function(self, credit: CreditPolicy) -> None:
        """The same trace gives the same, whatever was looked at in between, and is left as it is."""
        trace, other = make_credit_trace("ccrcrr"), make_credit_trace("crr", values=[7.0, -7.0])
        before = repr(trace)
        first = credit.assign_group([trace, other])
        credit.assign_group([other, other])
        assert credit.assign_group([trace, other]) == first
        assert repr(trace) == before

    def test_thousands_of_nested_calls_are_no_error(self, credit: CreditPolicy) -> None:
        """As a recursive agent leaves them."""
        spans = "cr" * _MANY + "x"
        trace = make_credit_trace(spans, parents=[*range(1, len(spans)), None])
        for outcome in credit.assign_group([trace, trace]):
            _check(trace, outcome)


def _check(trace: CreditTrace, outcome: Credit) -> None:
    assert len(outcome.calls) == len(trace.calls)
    assert len(outcome.rewards) == len(trace.rewards)
    for call in outcome.calls:
        assert call.reward is None or math.isfinite(call.reward)
        assert call.reason, "every call has a reason"
        if call.source is not None:
            assert trace.rewards[call.source].value is not None, "a reward without a number is nobody's"
    for gone in outcome.rewards:
        assert gone.reason, "every reward has a reason"
        assert gone.call is None or 0 <= gone.call < len(trace.calls)
    assert len(str(outcome).splitlines()) == len(trace.calls) + len(trace.rewards)
