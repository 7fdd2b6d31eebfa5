"""How turns become sequences of tokens to train on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_core import resolve
from lightning_core.adapter import TraceAdapter, Trajectory, TrajectoryAdapter, Turn, merge_turns
from lightning_core.adapter.base import Explanation
from lightning_core.errors import ConfigurationError
from lightning_core.testing import AdapterConformance
from lightning_core.testing.adapter import make_trace
from lightning_core.types import LLMCall, Span, SpanLike, Triplet


def turn(prompt: Sequence[int], response: Sequence[int], reward: float | None = None, **more: Any) -> Turn:
    return Turn(prompt, response, [-0.5] * len(response), reward, **more)


def sampled(trajectory: Trajectory) -> list[int]:
    return [token for token, mask in zip(trajectory.token_ids, trajectory.loss_mask, strict=True) if mask]


# Merging


def test_a_conversation_is_one_sequence() -> None:
    (trajectory,) = merge_turns(
        [turn([1, 2], [3]), turn([1, 2, 3, 4], [5, 6], 1.0), turn([1, 2, 3, 4, 5, 6], [7])]
    )
    assert trajectory.token_ids == [1, 2, 3, 4, 5, 6, 7]
    assert trajectory.loss_mask == [0, 0, 1, 0, 1, 1, 1]
    assert trajectory.logprobs == [None, None, -0.5, None, -0.5, -0.5, -0.5]
    assert [(one.start, one.end) for one in trajectory.turns] == [(2, 3), (4, 6), (6, 7)]
    assert trajectory.rewards == [None, 1.0, None]
    assert (trajectory.branch_of, trajectory.shared) == (None, 0)


def test_trap_21_the_longest_history_is_gone_on_from() -> None:
    # Both [1] [2] and [1, 2] [3] are histories of the last prompt.
    merged = merge_turns([turn([1], [2]), turn([1, 2], [3]), turn([1], [2]), turn([1, 2, 3, 4], [5])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4, 5], [1, 2]]
    assert [len(one.turns) for one in merged] == [3, 1]


def test_trap_21_text_that_is_other_tokens_branches_off() -> None:
    # The engine sampled 3 and 4 for what the tokenizer writes as 34.
    merged = merge_turns([turn([1, 2], [3, 4]), turn([1, 2, 34, 5], [6])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4], [1, 2, 34, 5, 6]]
    assert merged[1].loss_mask == [0, 0, 0, 0, 1]
    assert (merged[1].branch_of, merged[1].shared) == (0, 2)


def test_a_compacted_history_branches_off() -> None:
    merged = merge_turns([turn([1, 2, 3], [4]), turn([1, 9], [5]), turn([1, 9, 5, 6], [7])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4], [1, 9, 5, 6, 7]]
    assert (merged[1].branch_of, merged[1].shared) == (0, 1)


def test_of_a_fork_each_sampled_token_is_trained_once() -> None:
    merged = merge_turns([turn([1], [2]), turn([1, 2, 3], [4]), turn([1, 2, 5], [6])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4], [1, 2, 5, 6]]
    assert [sampled(one) for one in merged] == [[2, 4], [6]]
    assert (merged[1].branch_of, merged[1].shared) == (0, 2)


def test_several_answers_to_one_prompt_are_several_trajectories() -> None:
    merged = merge_turns([turn([1, 2], [3]), turn([1, 2], [3]), turn([1, 2], [4]), turn([1, 2, 3], [5])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 5], [1, 2, 3], [1, 2, 4]]
    assert [one.branch_of for one in merged] == [None, 0, 0]


def test_of_equal_histories_the_one_that_was_begun_first_goes_on() -> None:
    # The second trajectory comes to 1, 2, 3, 4 before the first one does.
    merged = merge_turns(
        [turn([1], [2]), turn([1], [2, 3, 4]), turn([1, 2, 3], [4]), turn([1, 2, 3, 4], [5])]
    )
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4, 5], [1, 2, 3, 4]]


def test_agents_at_once_are_kept_apart() -> None:
    merged = merge_turns([turn([1], [2]), turn([7], [8]), turn([1, 2, 3], [4]), turn([7, 8, 9], [10])])
    assert [one.token_ids for one in merged] == [[1, 2, 3, 4], [7, 8, 9, 10]]
    assert merged[1].branch_of is None


def test_turns_of_two_models_are_never_merged() -> None:
    merged = merge_turns([turn([1], [2], model="one"), turn([1, 2, 3], [4], model="other")])
    assert [(one.model, one.token_ids) for one in merged] == [("one", [1, 2]), ("other", [1, 2, 3, 4])]
    assert merged[1].branch_of is None


def test_trap_20_turns_without_token_ids_stay_apart() -> None:
    turns = [turn([1], [2]), Turn(None, [3]), Turn([1, 2], None), Turn([], [4]), turn([1, 2], [5])]
    (trajectory,) = merge_turns(turns)
    assert trajectory.token_ids == [1, 2, 5]


def test_log_probabilities_that_are_not_one_for_each_token_count_as_unknown() -> None:
    (trajectory,) = merge_turns([Turn([1], [2, 3], [-1.0])])
    assert trajectory.logprobs == [None, None, None]


def test_trajectories_share_nothing_with_the_turns() -> None:
    prompt, response = [1, 2], [3]
    (trajectory,) = merge_turns([turn(prompt, response), turn([1, 2, 3], [4])])
    prompt.clear()
    response.clear()
    assert trajectory.token_ids == [1, 2, 3, 4]


# Against a naive model


@dataclass
class Naive:
    """A trajectory that is found by comparing every prompt with everything before it."""

    token_ids: list[int]
    loss_mask: list[int]
    turns: list[tuple[int, int]] = field(default_factory=list)
    branch_of: int | None = None
    shared: int = 0


def common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def merge_naively(turns: Sequence[Turn]) -> list[Naive]:
    merged: list[Naive] = []
    histories: list[tuple[list[int], int]] = []  # all sequences there were, and whose they are
    for one in turns:
        prompt, response = list(one.prompt or ()), list(one.response or ())
        begins = [sequence for sequence, _ in histories if prompt[: len(sequence)] == sequence]
        longest = max(begins, key=len, default=None)
        open_ = [number for number, found in enumerate(merged) if found.token_ids == longest]
        if longest is not None and open_:
            number = open_[0]
            found = merged[number]
        else:
            shared, neighbour = 0, None
            for sequence, owner in histories:
                if common(prompt, sequence) > shared:
                    shared, neighbour = common(prompt, sequence), owner
            found = Naive([], [], [], neighbour, shared)
            number = len(merged)
            merged.append(found)
        new = prompt[len(found.token_ids) :]
        found.token_ids += new + response
        found.loss_mask += [0] * len(new) + [1] * len(response)
        found.turns.append((len(prompt), len(prompt) + len(response)))
        histories.append((prompt + response, number))
    return merged


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Turns of which many go on from an earlier one, wholly, in part, or with an edit."""
    turns: list[Turn] = []
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 14))):
        prompt: list[int] = []
        if sequences and draw(st.booleans()):
            before = draw(st.sampled_from(sequences))
            prompt = before if draw(st.booleans()) else before[: draw(st.integers(0, len(before)))]
        more = draw(st.lists(st.integers(0, 2), max_size=3))
        prompt = [*prompt, *more] or [0]
        response = draw(tokens)
        turns.append(turn(prompt, response, draw(st.none() | st.floats(0, 1))))
        sequences.append([*prompt, *response])
    return turns


@given(conversations())
@settings(max_examples=4 * settings().max_examples)
def test_trap_21_merging_is_that_of_the_naive_model(turns: list[Turn]) -> None:
    got, expected = merge_turns(turns), merge_naively(turns)
    assert [(one.token_ids, one.loss_mask, one.branch_of, one.shared) for one in got] == [
        (one.token_ids, one.loss_mask, one.branch_of, one.shared) for one in expected
    ]
    assert [[(place.start, place.end) for place in one.turns] for one in got] == [
        one.turns for one in expected
    ]


@given(conversations())
def test_every_turn_is_in_one_trajectory_exactly_as_it_was(turns: list[Turn]) -> None:
    merged = merge_turns(turns)
    found: list[tuple[list[int], list[int], float | None]] = []
    for one in merged:
        assert len(one.token_ids) == len(one.loss_mask) == len(one.logprobs)
        assert [value is not None for value in one.logprobs] == [bool(mask) for mask in one.loss_mask]
        inside = {place for at in one.turns for place in range(at.start, at.end)}
        assert {place for place, mask in enumerate(one.loss_mask) if mask} == inside
        found += [
            (one.token_ids[: at.start], one.token_ids[at.start : at.end], at.reward) for at in one.turns
        ]
        if one.branch_of is not None:
            assert merged[one.branch_of].token_ids[: one.shared] == one.token_ids[: one.shared]
    given_turns = [(list(one.prompt or ()), list(one.response or ()), one.reward) for one in turns]
    assert sorted(found, key=repr) == sorted(given_turns, key=repr)


class Counted(int):
    """A token that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


def _comparisons(turns: list[tuple[list[int], list[int]]]) -> tuple[int, int]:
    """Return how many tokens the turns have, and how often one was compared while they were merged."""
    Counted.compared = 0
    fresh = [
        Turn([Counted(token) for token in prompt], [Counted(token) for token in answer])
        for prompt, answer in turns
    ]
    total = sum(len(prompt) + len(answer) for prompt, answer in turns)
    merge_turns(fresh)
    return total, Counted.compared


def test_time_grows_with_the_number_of_tokens() -> None:
    # One long conversation, the same prompt answered again and again, and prompts that differ at their end.
    def talk(count: int) -> list[tuple[list[int], list[int]]]:
        return [
            (list(range(10 * (number + 1))), list(range(10 * (number + 1), 10 * (number + 1) + 5)))
            for number in range(count)
        ]

    def again(count: int) -> list[tuple[list[int], list[int]]]:
        return [(list(range(500)), [1000 + number, 7]) for number in range(count)]

    def edited(count: int) -> list[tuple[list[int], list[int]]]:
        return [([*range(400 + number % 90), -1 - number], [5]) for number in range(count)]

    for shape in (talk, again, edited):
        total, compared = _comparisons(shape(100))
        assert compared <= 4 * total, shape.__name__


# The adapter


@dataclass
class Reading(TraceAdapter[list[Triplet]]):
    """Reads the calls of a trace without looking further."""

    reward: float | None = None

    def adapt(self, source: Sequence[SpanLike], /) -> list[Triplet]:
        ordered = sorted(source, key=lambda span: span.sequence_id if isinstance(span, Span) else 0)
        return [
            self._triplet(span) for span in ordered if "openinference.span.kind" in (span.attributes or {})
        ]

    def _triplet(self, span: SpanLike) -> Triplet:
        found = LLMCall.from_span(span)
        response = found.response
        ids = response.token_ids if response is not None else None
        return Triplet(
            prompt={"token_ids": found.prompt_token_ids.ids},
            response={
                "token_ids": ids.ids if ids is not None else None,
                "logprobs": response.logprobs if response is not None else None,
            },
            reward=self.reward,
            metadata={
                "span_id": span.span_id if isinstance(span, Span) else None,
                "model": found.model,
                "token_ids": {
                    "prompt": "missing, the engine gave none",
                    "response": "missing, the engine gave none",
                },
            },
        )


def call(prompt: Sequence[int] | None, response: Sequence[int] | None) -> tuple[str, dict[str, Any]]:
    """A span of a call with the raw answer of an engine."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": "a"}, "token_ids": response}
    if response is not None:
        choice["logprobs"] = {"content": [{"token": "t", "logprob": -0.25} for _ in response]}
    return "ChatCompletion", {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps({"model": "m", "messages": [{"role": "user", "content": "q"}]}),
        "output.value": json.dumps({"model": "m", "prompt_token_ids": prompt, "choices": [choice]}),
    }


REWARD = ("lightning.reward", {"reward": 1.0})
CONVERSATION = [call([1, 2], [3]), REWARD, call([1, 2, 3, 4], [5]), REWARD]


class TestConformance(AdapterConformance):
    @pytest.fixture
    def adapter(self) -> TrajectoryAdapter:
        return TrajectoryAdapter(Reading())

    @pytest.fixture
    def trace(self) -> list[Span]:
        return make_trace(CONVERSATION)


def test_an_attempt_becomes_trajectories() -> None:
    (trajectory,) = TrajectoryAdapter(Reading(0.5)).adapt(make_trace(CONVERSATION))
    assert trajectory.token_ids == [1, 2, 3, 4, 5]
    assert trajectory.logprobs == [None, None, -0.25, None, -0.25]
    assert trajectory.rewards == [0.5, 0.5]
    assert trajectory.turns[0].metadata["span_id"] == f"{1:016x}"
    assert trajectory.model == "m"


def test_trap_20_turns_without_ids_are_named_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    spans = make_trace([call([1, 2], [3]), call(None, None), call([1, 2, 3], [4])])
    adapter = TrajectoryAdapter(Reading())
    with caplog.at_level(logging.WARNING):
        assert [one.token_ids for one in adapter.adapt(spans)] == [[1, 2, 3, 4]]
    assert "1 of 3 turns are in no trajectory" in caplog.text
    text = str(adapter.explain(spans))
    assert "turn #1 [0000000000000002] stays apart: prompt token ids: missing" in text
    assert 'llm_proxy="gateway"' in text
    assert "trajectory 0: 2 turns, 4 tokens, 2 of them sampled; rewards: none, none" in text


def test_trap_23_no_token_ids_at_all_is_an_empty_result_with_its_reason() -> None:
    explanation = TrajectoryAdapter(Reading()).explain(make_trace([call(None, None), call(None, [1])]))
    assert explanation.results == 0
    assert "none of 2 turns has token ids" in (explanation.empty_because or "")
    assert 'llm_proxy="gateway"' in (explanation.empty_because or "")


def test_an_explanation_names_branches() -> None:
    spans = make_trace([call([1, 2], [3]), call([1, 9], [4])])
    assert (
        "trajectory 1: 1 turn, 3 tokens, 1 of them sampled; rewards: none; its first 1 tokens are those of trajectory 0"
        in str(TrajectoryAdapter(Reading()).explain(spans))
    )


def test_an_adapter_that_gives_no_triplets_is_refused() -> None:
    class Words(TraceAdapter[list[str]]):
        def adapt(self, source: Sequence[SpanLike], /) -> list[str]:
            return ["word"]

        def explain(self, source: Sequence[SpanLike], /) -> Explanation:
            return Explanation(len(source), 1)

    adapter = resolve("adapter", {"type": "trajectory", "triplets": Words})
    assert adapter is not None
    with pytest.raises(ConfigurationError, match="merges triplets, and Words gives none"):
        adapter.adapt(make_trace([call([1], [2])]))


def test_it_is_chosen_by_name_with_the_triplets_of_another_adapter() -> None:
    pytest.importorskip("lightning_adapter_triplet", reason="the usual adapter for the turns is a plugin")
    adapter = resolve(
        "adapter", {"type": "trajectory", "triplets": {"type": "triplet", "reward_match": "final"}}
    )
    assert isinstance(adapter, TrajectoryAdapter)
    (trajectory,) = adapter.adapt(make_trace([call([1, 2], [3]), call([1, 2, 3, 4], [5]), REWARD]))
    assert trajectory.token_ids == [1, 2, 3, 4, 5]
    assert trajectory.rewards == [1.0, 1.0]
    assert isinstance(resolve("adapter", "trajectory"), TrajectoryAdapter)
