"""How rewards become the reward of each LLM call."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core import resolve
from lightning_core.adapter.credit import (
    CallCredit,
    Credit,
    CreditCall,
    CreditPolicy,
    CreditReward,
    CreditTrace,
    DiscountedCredit,
    FinalCredit,
    FirstOccurrenceCredit,
    FirstSiblingCredit,
    GroupRelativeCredit,
    RewardCredit,
    read_attempt,
)
from lightning_core.errors import ConfigurationError, InvalidOutcomeError, PluginSettingsError
from lightning_core.testing import CreditConformance
from lightning_core.testing.adapter import as_readable, make_trace
from lightning_core.testing.credit import make_credit_trace as trace_of


class TestFinal(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return FinalCredit()


class TestFirstOccurrence(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return FirstOccurrenceCredit()


class TestFirstSibling(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return FirstSiblingCredit()


class TestDiscounted(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return DiscountedCredit(0.9)


class TestGroupRelative(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return GroupRelativeCredit()


class TestFunction(CreditConformance):
    @pytest.fixture
    def credit(self) -> CreditPolicy:
        return resolve("credit", _length)


def _length(trace: CreditTrace) -> list[float | None]:
    return [float(number) for number in range(len(trace.calls))]


# What each gives


def test_first_occurrence_gives_a_call_the_first_reward_that_follows_it() -> None:
    outcome = FirstOccurrenceCredit().assign(trace_of("rccrrcrc"))
    assert outcome.values == [None, 2.0, 4.0, None]
    assert [gone.call for gone in outcome.rewards] == [None, 1, None, 2]
    assert outcome.lines()[1] == "call #2: reward 2 of #3, first_occurrence: the last call before it"
    assert outcome.lines()[4] == "reward 1 #0: to no call, no call comes before it"
    assert "is #2, which has the reward of #3 already" in outcome.lines()[6]


def test_final_gives_every_call_the_last_reward() -> None:
    outcome = FinalCredit().assign(trace_of("crcrc", values=[0.25, 1.0]))
    assert outcome.values == [1.0, 1.0, 1.0]
    assert {call.source for call in outcome.calls} == {1}
    assert "only the last reward counts, which is #3" in outcome.rewards[0].reason


def test_discounted_sums_what_follows() -> None:
    trace = trace_of("ccrcrc", values=[1.0, 10.0])
    assert DiscountedCredit(1.0).assign(trace).values == [11.0, 11.0, 10.0, None]
    assert DiscountedCredit(0.5).assign(trace).values == [3.0, 6.0, 10.0, None]
    assert DiscountedCredit(0.0).assign(trace).values == [0.0, 1.0, 10.0, None]
    told = DiscountedCredit(0.5).assign(trace)
    assert [call.source for call in told.calls] == [0, 0, 1, None]
    assert [gone.call for gone in told.rewards] == [1, 2]


def test_group_relative_compares_final_rewards() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0]
    group = [trace_of("crcr", values=[9.0, reward]) for reward in rewards]
    outcomes = GroupRelativeCredit(epsilon=0.0).assign_group(group)
    expected = [(reward - fmean(rewards)) / stdev(rewards) for reward in rewards]
    assert [outcome.values for outcome in outcomes] == [[value, value] for value in expected]
    assert "among 4 rollouts with mean 0.5" in str(outcomes[0])
    unscaled = GroupRelativeCredit(scale=False).assign_group(group)
    assert [outcome.values[0] for outcome in unscaled] == [0.5, -0.5, -0.5, 0.5]


def test_group_relative_leaves_out_rollouts_without_a_reward() -> None:
    group = [
        trace_of("cr", values=[1.0]),
        trace_of("c"),
        trace_of("cr", values=[None]),
        trace_of("cr", values=[0.0]),
    ]
    outcomes = GroupRelativeCredit(scale=False).assign_group(group)
    assert [outcome.values for outcome in outcomes] == [[0.5], [None], [None], [-0.5]]
    assert "has no reward" in outcomes[1].calls[0].reason


def test_group_relative_of_equal_rewards_is_zero_and_says_so() -> None:
    # 0.1 + 0.2 is not 0.3: a difference of rounding must not become a difference of one deviation.
    outcomes = GroupRelativeCredit().assign_group(
        [trace_of("cr", values=[value]) for value in (0.3, 0.1 + 0.2)]
    )
    assert all(abs(outcome.values[0] or 0.0) < 1e-9 for outcome in outcomes)
    same = GroupRelativeCredit().assign_group([trace_of("cr", values=[1.0])] * 3)
    assert [outcome.values for outcome in same] == [[0.0]] * 3
    assert "all alike" in same[0].calls[0].reason


def test_trap_23_a_group_with_nothing_to_compare_gives_none_and_says_so() -> None:
    outcomes = GroupRelativeCredit().assign_group([trace_of("cr"), trace_of("cc")])
    assert [outcome.values for outcome in outcomes] == [[None], [None, None]]
    assert "1 of 2 rollouts of the task have a reward, and two are needed" in outcomes[0].calls[0].reason


@pytest.mark.parametrize("policy", ["first_occurrence", "first_sibling", "final", "discounted"])
def test_trap_19_a_reward_that_matches_nothing_says_so(policy: str) -> None:
    outcome = resolve("credit", policy).assign(trace_of("r"))
    (gone,) = outcome.rewards
    assert gone.call is None
    assert "no call" in gone.reason


def test_trap_18_what_is_no_finite_number_never_enters_a_policy() -> None:
    with pytest.raises(ConfigurationError, match="place 1 is nan"):
        trace_of("cr", values=[float("nan")])
    for policy in (FirstOccurrenceCredit(), FirstSiblingCredit(), FinalCredit(), DiscountedCredit()):
        outcome = policy.assign(trace_of("crr", values=[None, 2.0]))
        assert outcome.values == [2.0]
        assert outcome.rewards[0].reason == "holds no finite number"


# Against a slow search


letters = st.text(alphabet="ccrrx", min_size=1, max_size=25)


@st.composite
def traces(draw: st.DrawFn) -> CreditTrace:
    spans = draw(letters)
    parents: list[int | None] = []
    for place in range(len(spans)):
        later = range(place + 1, len(spans))
        parents.append(draw(st.none() | st.sampled_from(later)) if later else None)
    values = draw(
        st.lists(st.none() | st.floats(-9, 9), min_size=spans.count("r"), max_size=spans.count("r"))
    )
    return trace_of(spans, parents=parents, values=values)


def _is_at_or_below(place: int | None, other: int, parents: Sequence[int | None]) -> bool:
    while place is not None:
        if place == other:
            return True
        place = parents[place]
    return False


@given(traces(), st.booleans())
def test_nearest_call_is_that_of_a_slow_search(trace: CreditTrace, siblings: bool) -> None:
    expected: dict[int, float] = {}
    for reward in trace.rewards:
        if reward.value is None:
            continue
        above = trace.parent(reward.place) if siblings else None
        before = [
            number
            for number, call in enumerate(trace.calls)
            if call.place < reward.place
            and (above is None or _is_at_or_below(call.place, above, trace.parents))
        ]
        if before:
            expected.setdefault(before[-1], reward.value)
    policy = FirstSiblingCredit() if siblings else FirstOccurrenceCredit()
    assert policy.assign(trace).values == [expected.get(number) for number in range(len(trace.calls))]


@given(traces(), st.floats(0, 1))
def test_discounted_is_the_sum_by_its_definition(trace: CreditTrace, gamma: float) -> None:
    expected: list[float | None] = []
    for call in trace.calls:
        after = [reward for reward in trace.rewards if reward.place > call.place and reward.value is not None]
        terms = [
            (reward.value or 0.0)
            * gamma ** sum(call.place < other.place < reward.place for other in trace.calls)
            for reward in after
        ]
        expected.append(sum(terms) if after else None)
    got = DiscountedCredit(gamma).assign(trace).values
    assert [value is None for value in got] == [value is None for value in expected]
    assert [value or 0.0 for value in got] == pytest.approx([value or 0.0 for value in expected], abs=1e-9)


def test_a_call_of_several_spans_is_below_the_parents_of_each() -> None:
    # The framework's span of the call, in place 0, is at the top; the SDK's is below the parent of the reward.
    parents = [None, 2, None, 2]
    trace = CreditTrace([CreditCall(0, (0, 1))], [CreditReward(3, 1.0)], parents)
    assert FirstSiblingCredit().assign(trace).values == [1.0]
    assert FirstSiblingCredit().assign(CreditTrace([CreditCall(0)], trace.rewards, parents)).values == [None]


def test_parents_that_go_round_in_circles_are_no_error_and_do_not_mix() -> None:
    outcome = FirstSiblingCredit().assign(trace_of("cxxr", parents=[1, 0, 3, 2]))
    assert outcome.values == [None]
    assert "no call comes before it under #2" in outcome.rewards[0].reason


# How a credit is chosen


def test_each_is_chosen_by_name_and_the_default_is_first_occurrence() -> None:
    assert isinstance(resolve("credit", None), FirstOccurrenceCredit)
    assert isinstance(resolve("credit", "group-relative"), GroupRelativeCredit)
    discounted = resolve("credit", {"type": "discounted", "gamma": 0.5})
    assert isinstance(discounted, DiscountedCredit)
    assert discounted.gamma == 0.5


def test_wrong_settings_name_the_field() -> None:
    with pytest.raises(PluginSettingsError, match=r"credit\.gamma"):
        resolve("credit", {"type": "discounted", "gamma": 2})
    with pytest.raises(ConfigurationError, match="gamma"):
        DiscountedCredit(2)
    with pytest.raises(ConfigurationError, match="epsilon"):
        GroupRelativeCredit(epsilon=-1)


def _halves(trace: CreditTrace, share: float = 0.5) -> list[float | None]:
    return [share] * len(trace.calls)


def test_any_function_of_a_trace_is_a_credit() -> None:
    trace = trace_of("ccr")
    assert resolve("credit", lambda trace: [1, None]).assign(trace).values == [1.0, None]
    assert resolve("credit", f"{__name__}:_halves").assign(trace).values == [0.5, 0.5]
    assert resolve("credit", {"type": _halves, "share": 2.0}).assign(trace).values == [2.0, 2.0]
    assert resolve("credit", _halves).name == "_halves"
    assert "_halves does not say" in str(resolve("credit", _halves).assign(trace))


def test_a_factory_of_a_credit_is_still_called() -> None:
    assert isinstance(resolve("credit", lambda: FinalCredit()), FinalCredit)
    assert isinstance(resolve("credit", FinalCredit), FinalCredit)


def test_a_function_may_explain() -> None:
    def told(trace: CreditTrace) -> Credit:
        return Credit(trace, [CallCredit(1.0, 0, "since")], [RewardCredit(0, "there")])

    outcome = resolve("credit", told).assign(trace_of("cr"))
    assert outcome.lines() == ["call #0: reward 1 of #1, since", "reward 1 #1: to #0, there"]
    with pytest.raises(InvalidOutcomeError, match="explains 1 calls"):
        resolve("credit", told).assign(trace_of("ccr"))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 rewards for 2 calls"),
        (3.0, "must return a list .* not a value of type float"),
        ([float("nan"), 1.0], "must be finite"),
        (["a", 1.0], "must be a number"),
    ],
)
def test_what_a_function_returns_is_checked(returned: Any, message: str) -> None:
    def wrong(trace: CreditTrace) -> Any:
        return returned

    with pytest.raises(InvalidOutcomeError, match=f"credit function wrong.*{message}"):
        resolve("credit", wrong).assign(trace_of("ccr"))


def test_a_setting_that_a_function_does_not_take_is_an_error() -> None:
    with pytest.raises(ValueError, match="share_"):
        resolve("credit", {"type": _halves, "share_": 2.0})


def test_a_trace_out_of_order_is_refused() -> None:
    trace = trace_of("ccr")
    with pytest.raises(ConfigurationError, match="calls of a trace must be in order"):
        CreditTrace(trace.calls[::-1], [])
    with pytest.raises(ConfigurationError, match="parents are given for 1 spans"):
        CreditTrace(trace.calls, [], [None])


# Reading spans without an adapter


def call(response_id: str | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    message = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "q"}]}])
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": message,
        "gen_ai.output.messages": message,
        **more,
    }
    if response_id is not None:
        attributes["gen_ai.response.id"] = response_id
    return "chat m", attributes


REWARD = ("lightning.reward", {"reward": 1.0})


def test_calls_and_rewards_are_read_in_the_order_of_sequence_ids() -> None:
    """Trap 12: whatever the clocks say."""
    spans = make_trace([call("one"), REWARD, call("two"), ("agent", {})], parents=[3, 3, 3, None])
    for place, span in enumerate(spans):
        span.start_time = span.end_time = 100.0 - place
    shuffled = list(spans)
    random.Random(1).shuffle(shuffled)
    reading = read_attempt(shuffled)
    assert [one.place for one in reading.trace.calls] == [0, 2]
    assert [one.response_id for one in reading.calls] == ["one", "two"]
    assert reading.trace.rewards == [CreditReward(1, 1.0)]
    assert reading.trace.parents == [3, 3, 3, None]
    assert reading.trace.name(0) == f"#0 chat m [{spans[0].span_id}]"
    readable = read_attempt([as_readable(span) for span in spans])
    assert readable.trace == reading.trace


def test_calls_of_a_judge_take_no_reward() -> None:
    spans = make_trace([call("judge"), REWARD, call("agent")], parents=[1, None, None])
    reading = read_attempt(spans)
    assert [one.response_id for one in reading.calls] == ["agent"]
    assert reading.in_rewards == {0: 1}


def test_trap_19_a_frameworks_span_and_that_of_the_sdk_in_it_are_one_call() -> None:
    ids = {"response_token_ids": [1, 2], "prompt_token_ids": [3]}
    spans = make_trace([call("one", **ids), call(), call("two"), call("other")], parents=[1, None, 3, None])
    reading = read_attempt(spans)
    assert [one.spans for one in reading.trace.calls] == [(0, 1), (2,), (3,)]
    assert [one.response_id for one in reading.calls] == ["one", "two", "other"]


def test_a_retry_inside_of_a_frameworks_span_is_a_call_of_its_own() -> None:
    spans = make_trace([call("one"), call("two"), call()], parents=[2, 2, None])
    assert [one.spans for one in read_attempt(spans).trace.calls] == [(0, 2), (1,)]


def test_a_trace_whose_parents_go_in_circles_loses_no_call() -> None:
    spans = make_trace([call(), call(), call()], parents=[1, 2, 0])
    found = {place for one in read_attempt(spans).trace.calls for place in one.spans}
    assert found == {0, 1, 2}


def test_thousands_of_spans_within_each_other_are_read() -> None:
    count = 3000
    spans = make_trace([call(str(number)) for number in range(count)], parents=[*range(1, count), None])
    assert len(read_attempt(spans).calls) == count
