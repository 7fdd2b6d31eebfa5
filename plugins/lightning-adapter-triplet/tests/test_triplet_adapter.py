"""From traces to triplets: matching, rewards, duplicates and explanations."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from lightning_adapter_triplet import RewardMatchPolicy, TraceTripletAdapter

from lightning_core import resolve
from lightning_core.emitter import emit_reward
from lightning_core.errors import PluginSettingsError
from lightning_core.testing.adapter import make_trace
from lightning_core.tracer.dummy import DummyTracer
from lightning_core.types import Span, TraceStatus, Triplet

FIRST_SIBLING = RewardMatchPolicy.FIRST_SIBLING


def call(
    question: str = "q", answer: str = "a", response_id: str | None = None
) -> tuple[str, dict[str, Any]]:
    """An SDK's span, in the newest convention."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(
            [{"role": "user", "parts": [{"type": "text", "content": question}]}]
        ),
        "gen_ai.output.messages": json.dumps(
            [{"role": "assistant", "parts": [{"type": "text", "content": answer}]}]
        ),
    }
    if response_id is not None:
        attributes["gen_ai.response.id"] = response_id
    return "chat m", attributes


def framework(question: str = "q", answer: str = "a", **more: Any) -> tuple[str, dict[str, Any]]:
    """A framework's span of a call, in another convention."""
    return "ChatModel", {
        "openinference.span.kind": "LLM",
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": question,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": answer + " ",
        **more,
    }


def reward(value: Any) -> tuple[str, dict[str, Any]]:
    return "lightning.reward", {"reward": value}


def agent(name: str) -> tuple[str, dict[str, Any]]:
    return f"invoke_agent {name}", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}


ROOT: tuple[str, dict[str, Any]] = ("root", {})


def rewards_of(triplets: list[Triplet]) -> list[float | None]:
    return [triplet.reward for triplet in triplets]


def questions_of(triplets: list[Triplet]) -> list[str]:
    return [triplet.prompt["messages"][-1]["content"] for triplet in triplets]


# The shape of a triplet


def test_a_triplet_is_json_and_says_where_it_comes_from() -> None:
    raw = {
        "id": "chatcmpl-1",
        "model": "answered",
        "prompt_token_ids": [1, 2],
        "choices": [
            {
                "message": {"role": "assistant", "content": "ho"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"id": 3, "logprob": -0.5}]},
            }
        ],
    }
    asked = {"model": "asked", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    attributes = {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(asked),
        "output.value": json.dumps(raw),
    }
    spans = make_trace([("ChatCompletion", attributes), reward(1), agent("solver")], parents=[2, 2, None])
    (triplet,) = TraceTripletAdapter().adapt(spans)
    assert triplet.prompt == {
        "messages": [{"role": "user", "content": "hi"}],
        "text": None,
        "tools": [],
        "token_ids": [1, 2],
    }
    assert triplet.response == {
        "message": {"role": "assistant", "content": "ho"},
        "finish_reason": "stop",
        "token_ids": [3],
        "logprobs": [-0.5],
    }
    assert triplet.reward == 1.0
    assert triplet.metadata == {
        "response_id": "chatcmpl-1",
        "model": "answered",
        "agent_name": "solver",
        "parameters": {"temperature": 0.5},
        "span_id": spans[0].span_id,
        "span_name": "ChatCompletion",
        "sequence_id": 1,
        "reward_span_id": spans[1].span_id,
        "token_ids": {
            "prompt": "prompt_token_ids of the raw answer",
            "response": "logprobs of the raw answer's choice",
        },
    }
    assert Triplet.model_validate_json(triplet.model_dump_json()) == triplet


def test_token_ids_are_marked_missing_and_never_made_from_text() -> None:
    """Trap 20."""
    (triplet,) = TraceTripletAdapter().adapt(make_trace([call()]))
    assert triplet.prompt["token_ids"] is None
    assert triplet.response["token_ids"] is None
    assert triplet.metadata["token_ids"] == {
        "prompt": "missing, the engine gave no prompt token ids",
        "response": "missing, the engine gave no response token ids",
    }


# Rewards


def test_a_call_gets_the_first_reward_that_follows_it() -> None:
    spans = make_trace(
        [reward(9), call("1"), call("2"), reward(0.5), reward(0.7), call("3"), reward(True), call("4")]
    )
    adapter = TraceTripletAdapter()
    assert rewards_of(adapter.adapt(spans)) == [None, 0.5, 1.0, None]
    told = adapter.explain(spans).rewards
    assert [one.call_span_id for one in told] == [None, spans[2].span_id, None, spans[5].span_id]
    assert "no call comes before it" in told[0].reason
    assert "has the reward of #3" in told[2].reason


def test_a_reward_whose_clock_is_behind_still_counts() -> None:
    """Trap 12."""
    spans = make_trace([call(), reward(1.0), ROOT], parents=[2, 2, None])
    spans[1].start_time = spans[1].end_time = 5.0
    for policy in RewardMatchPolicy:
        assert rewards_of(TraceTripletAdapter(reward_match=policy).adapt(spans)) == [1.0]


def test_a_reward_that_was_emitted_twice_counts_once() -> None:
    """Trap 18."""
    spans = make_trace([call("1"), call("2"), reward(0.5), reward(0.5)])
    for policy in RewardMatchPolicy:
        assert rewards_of(TraceTripletAdapter(reward_match=policy).adapt(spans)) == [None, 0.5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much"])
def test_what_is_no_finite_number_poisons_nothing(value: Any) -> None:
    """Trap 18."""
    spans = make_trace([call("1"), reward(value), reward(0.5)])
    adapter = TraceTripletAdapter()
    assert rewards_of(adapter.adapt(spans)) == [0.5]
    assert adapter.explain(spans).rewards[0].value is None
    assert "holds no finite number" in str(adapter.explain(spans))


def test_the_rewards_of_emitters_are_understood() -> None:
    tracer = DummyTracer()
    with tracer.trace_context() as trace:
        emit_reward(1)
    stored = [Span.from_opentelemetry(span, "rollout", "attempt", 2) for span in trace.spans]
    assert rewards_of(TraceTripletAdapter().adapt([*make_trace([call()]), *stored])) == [1.0]


def test_first_sibling_keeps_agents_at_once_apart() -> None:
    # Both agents call, then both are rewarded, the first one first.
    spans = make_trace(
        [call("1"), call("2"), reward(1), reward(2), agent("one"), agent("two"), ROOT],
        parents=[4, 5, 4, 5, 6, 6, None],
    )
    assert rewards_of(TraceTripletAdapter(reward_match=FIRST_SIBLING).adapt(spans)) == [1.0, 2.0]
    assert rewards_of(TraceTripletAdapter().adapt(spans)) == [None, 1.0]


def test_first_sibling_finds_calls_below_its_siblings() -> None:
    spans = make_trace([call("1"), agent("one"), reward(1), ROOT], parents=[1, 3, 3, None])
    assert rewards_of(TraceTripletAdapter(reward_match=FIRST_SIBLING).adapt(spans)) == [1.0]


def test_a_policy_that_matches_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 19."""
    spans = make_trace([call("1"), agent("one"), reward(1), ("score", {}), ROOT], parents=[1, 4, 3, 4, None])
    adapter = TraceTripletAdapter(reward_match="first_sibling")
    with caplog.at_level(logging.WARNING):
        assert rewards_of(adapter.adapt(spans)) == [None]
    assert "none of 1 rewards landed on one of 1 LLM calls (reward_match 'first_sibling')" in caplog.text
    explanation = adapter.explain(spans)
    assert explanation.warning is not None
    assert "under #3 score" in explanation.rewards[0].reason
    assert "first_occurrence would choose #0" in explanation.rewards[0].reason
    assert "warning: none of 1 rewards" in str(explanation)


# Which calls


def test_agent_match_takes_the_nearest_agent() -> None:
    spans = make_trace(
        [call("inner"), agent("worker"), call("outer"), agent("boss"), call("stray"), ROOT],
        parents=[1, 3, 3, 5, 5, None],
    )
    assert questions_of(TraceTripletAdapter(agent_match="^work").adapt(spans)) == ["inner"]
    assert questions_of(TraceTripletAdapter(agent_match="boss").adapt(spans)) == ["outer"]
    told = TraceTripletAdapter(agent_match="boss").explain(spans).calls
    assert [one.agent for one in told] == ["worker", "boss", None]
    assert "'boss' does not match its agent" in str(told[0].excluded_because)
    assert "lies in no agent" in str(told[2].excluded_because)


@pytest.mark.parametrize(
    "attributes",
    [
        {"agent.name": "solver"},
        {"agentops.span.kind": "agent", "agentops.entity.name": "solver"},
        {"traceloop.span.kind": "agent", "traceloop.entity.name": "solver"},
        {"openinference.span.kind": "CHAIN", "metadata": '{"langgraph_node": "solver"}'},
        {"recipient_agent_type": "solver"},
    ],
)
def test_agents_are_recognised_as_frameworks_record_them(attributes: dict[str, Any]) -> None:
    spans = make_trace([call(), ("run", attributes), ROOT], parents=[1, 2, None])
    assert len(TraceTripletAdapter(agent_match="^solver$").adapt(spans)) == 1


@pytest.mark.parametrize("kind", ["openinference.span.kind", "agentops.span.kind"])
def test_an_agent_may_be_named_by_its_span(kind: str) -> None:
    value = "AGENT" if kind.startswith("openinference") else "agent"
    spans = make_trace([call(), ("solver", {kind: value})], parents=[1, None])
    assert len(TraceTripletAdapter(agent_match="^solver$").adapt(spans)) == 1


def test_agent_match_works_with_calls_that_hang_from_the_root() -> None:
    spans = make_trace([call(), agent("solver"), ROOT], parents=[2, 2, None])
    spans[1].start_time, spans[1].end_time = 1.0, 4e9
    spans[2].start_time, spans[2].end_time = 0.0, 5e9
    assert len(TraceTripletAdapter(agent_match="solver").adapt(spans)) == 1
    assert TraceTripletAdapter(agent_match="solver", repair_hierarchy=False).adapt(spans) == []


def test_llm_call_match_decides_by_name() -> None:
    attributes = {**call("mine")[1], "gen_ai.operation.name": "my_own_operation"}
    spans = make_trace([call("other"), ("my.model", attributes)])
    assert questions_of(TraceTripletAdapter().adapt(spans)) == ["other"]
    assert questions_of(TraceTripletAdapter(llm_call_match=r"^my\.").adapt(spans)) == ["mine"]


def test_calls_of_a_reward_function_are_left_out() -> None:
    judge = ("judge", {"agentops.entity.output": '{"type": "reward", "value": 0.5}'})
    spans = make_trace([call("task"), call("how good?"), judge, ROOT], parents=[3, 2, 3, None])
    adapter = TraceTripletAdapter()
    assert questions_of(adapter.adapt(spans)) == ["task"]
    assert rewards_of(adapter.adapt(spans)) == [0.5]
    assert "made by the reward function #2 judge" in str(adapter.explain(spans).calls[1])
    kept = TraceTripletAdapter(exclude_llm_call_in_reward=False)
    assert questions_of(kept.adapt(spans)) == ["task", "how good?"]


def test_only_the_first_of_several_choices_is_taken_and_it_is_said() -> None:
    name, attributes = call()
    attributes["gen_ai.output.messages"] = json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": text}]} for text in "ab"]
    )
    spans = make_trace([(name, attributes)])
    (triplet,) = TraceTripletAdapter().adapt(spans)
    assert triplet.response["message"]["content"] == "a"
    assert "has 2 choices" in str(TraceTripletAdapter().explain(spans))


# One call, several spans


def test_a_framework_span_and_its_sdk_span_are_one_call() -> None:
    """Trap 19."""
    spans = make_trace([call(), framework(), reward(1), ROOT], parents=[1, 3, 3, None])
    for policy in RewardMatchPolicy:
        adapter = TraceTripletAdapter(reward_match=policy)
        assert rewards_of(adapter.adapt(spans)) == [1.0]
        (told,) = adapter.explain(spans).calls
        assert told.same_call == (f"#1 ChatModel [{spans[1].span_id}]",)


def test_the_span_with_token_ids_is_the_one_that_is_read() -> None:
    name, attributes = framework(prompt_token_ids=[1], response_token_ids=[2])
    for order, parents in (
        (((name, attributes), call()), [1, None]),
        ((call(), (name, attributes)), [1, None]),
    ):
        (triplet,) = TraceTripletAdapter().adapt(make_trace(order, parents=parents))
        assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([1], [2])


def test_siblings_with_one_response_id_are_one_call() -> None:
    """Trap 19."""
    spans = make_trace(
        [call(response_id="r"), call(response_id="r"), reward(1), ROOT], parents=[3, 3, 3, None]
    )
    assert rewards_of(TraceTripletAdapter().adapt(spans)) == [1.0]


def test_siblings_of_two_instrumentations_are_one_call() -> None:
    """Trap 19."""
    spans = make_trace([call(), framework(), call(), framework(), ROOT], parents=[4, 4, 4, 4, None])
    assert len(TraceTripletAdapter().adapt(spans)) == 2


def test_the_same_question_asked_twice_is_two_calls() -> None:
    flat = make_trace([call(), call(), ROOT], parents=[2, 2, None])
    assert len(TraceTripletAdapter().adapt(flat)) == 2
    nested = make_trace(
        [call(response_id="1"), framework(), call(response_id="2"), framework(), ROOT],
        parents=[1, 4, 3, 4, None],
    )
    assert len(TraceTripletAdapter().adapt(nested)) == 2


def test_a_retry_inside_a_framework_span_is_a_call_of_its_own() -> None:
    spans = make_trace([call(), call(), framework()], parents=[2, 2, None])
    assert len(TraceTripletAdapter().adapt(spans)) == 2


def test_a_server_that_gives_every_answer_one_id_loses_no_call() -> None:
    spans = make_trace(
        [call("1", "yes", "id"), call("2", "yes", "id"), call("2", "no", "id"), ROOT], parents=[3, 3, 3, None]
    )
    assert questions_of(TraceTripletAdapter().adapt(spans)) == ["1", "2", "2"]


def test_tool_calls_are_compared_by_their_arguments() -> None:
    def sdk(arguments: str) -> tuple[str, dict[str, Any]]:
        return "sdk", {
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "q",
            "gen_ai.completion.0.tool_calls.0.name": "f",
            "gen_ai.completion.0.tool_calls.0.arguments": arguments,
        }

    outer = framework(
        **{
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"b": 2, "a": 1}',
            "llm.output_messages.0.message.content": "",
        }
    )
    for arguments, count in (('{"a":1,"b":2}', 1), ('{"a":1,"b":3}', 2)):
        assert (
            len(TraceTripletAdapter().adapt(make_trace([sdk(arguments), outer], parents=[1, None]))) == count
        )


# Why nothing was made


def test_a_trace_without_calls_says_which_spans_there_are(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 23."""
    adapter = TraceTripletAdapter()
    spans = make_trace([("http", {}), reward(1)])
    assert adapter.adapt(spans) == []
    assert "no span is an LLM call (names: http, lightning.reward)" in caplog.text
    assert "no span is an LLM call" in str(adapter.explain(spans).empty_because)
    assert "llm_call_match 'x' matches no span" in str(TraceTripletAdapter(llm_call_match="x").explain(spans))


def test_an_empty_trace_is_explained_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert TraceTripletAdapter().adapt([]) == []
    assert caplog.text == ""
    assert str(TraceTripletAdapter().explain([])) == "0 spans -> 0 training samples: the trace has no spans"


def test_a_failed_call_gives_its_error() -> None:
    spans = make_trace([call()])
    del spans[0].attributes["gen_ai.output.messages"]
    assert "holds no answer" in str(TraceTripletAdapter().explain(spans))
    spans[0].status = TraceStatus(status_code="ERROR", description="429 too many requests")
    assert "it failed: 429 too many requests" in str(TraceTripletAdapter().explain(spans).empty_because)


def test_a_call_without_its_prompt_gives_no_triplet() -> None:
    spans = make_trace([call()])
    del spans[0].attributes["gen_ai.input.messages"]
    assert "holds no prompt" in str(TraceTripletAdapter().explain(spans).empty_because)


def test_an_explanation_reads_well() -> None:
    spans = make_trace([call(), framework(), reward(0.5), ROOT], parents=[1, 3, 3, None])
    assert str(TraceTripletAdapter().explain(spans)).splitlines() == [
        "4 spans -> 1 training sample",
        f"call #0 chat m [{spans[0].span_id}]: a triplet with reward 0.5 of [{spans[2].span_id}] "
        "(first_occurrence: the last call before it); "
        f"the same call as #1 ChatModel [{spans[1].span_id}]; "
        "prompt token ids: missing, the engine gave no prompt token ids; "
        "response token ids: missing, the engine gave no response token ids",
        f"reward 0.5 #2 lightning.reward [{spans[2].span_id}]: to call [{spans[0].span_id}], "
        "first_occurrence: the last call before it",
    ]


# Size


def test_thousands_of_calls_within_each_other() -> None:
    """Trap 32."""
    count = 3000
    named = [call(str(number), str(number)) for number in range(count)]
    spans = make_trace(named, parents=[*range(1, count), None])
    for policy in RewardMatchPolicy:
        assert len(TraceTripletAdapter(reward_match=policy).adapt(spans)) == count


def test_first_sibling_is_that_of_a_slow_search() -> None:
    import random

    random_ = random.Random(1)
    for _ in range(60):
        count = random_.randint(2, 25)
        parents = [random_.randint(index + 1, count - 1) for index in range(count - 1)] + [None]
        kinds = [random_.choice("crx") for _ in range(count - 1)] + ["x"]
        named = [
            call(str(index), str(index)) if kind == "c" else reward(index) if kind == "r" else ("x", {})
            for index, kind in enumerate(kinds)
        ]
        spans = make_trace(named, parents=parents)
        expected: dict[int, float] = {}
        for index, kind in enumerate(kinds):
            if kind != "r":
                continue
            above = parents[index]
            before = [
                other for other in range(index) if kinds[other] == "c" and _is_below(other, above, parents)
            ]
            if before and before[-1] not in expected:
                expected[before[-1]] = float(index)
        triplets = TraceTripletAdapter(reward_match=FIRST_SIBLING, exclude_llm_call_in_reward=False).adapt(
            spans
        )
        got = {
            triplet.metadata["sequence_id"] - 1: triplet.reward
            for triplet in triplets
            if triplet.reward is not None
        }
        assert got == expected


def _is_below(index: int | None, other: int | None, parents: list[int | None]) -> bool:
    while index is not None:
        if index == other:
            return True
        index = parents[index]
    return False


def test_a_pattern_that_matches_every_span_loses_no_reward() -> None:
    spans = make_trace([call(), reward(1), ROOT], parents=[2, 2, None])
    assert rewards_of(TraceTripletAdapter(llm_call_match=".").adapt(spans)) == [1.0]


# Other credits than the two usual ones


def test_any_credit_may_be_chosen() -> None:
    spans = make_trace([call("1"), reward(0.25), call("2"), reward(1.0)])
    assert rewards_of(TraceTripletAdapter(reward_match="final").adapt(spans)) == [1.0, 1.0]
    discounted = {"type": "discounted", "gamma": 0.5}
    assert rewards_of(TraceTripletAdapter(reward_match=discounted).adapt(spans)) == [0.75, 1.0]
    told = TraceTripletAdapter(reward_match="final").explain(spans)
    assert [one.reward_span_id for one in told.calls] == [spans[3].span_id] * 2
    assert "only the last reward counts" in told.rewards[0].reason


def test_a_function_may_be_the_credit_even_without_a_reward() -> None:
    adapter = TraceTripletAdapter(reward_match=lambda trace: [0.5] * len(trace.calls))
    (triplet,) = adapter.adapt(make_trace([call()]))
    assert (triplet.reward, triplet.metadata["reward_span_id"]) == (0.5, None)
    assert "a triplet with reward 0.5 (" in str(adapter.explain(make_trace([call()])))


def test_a_credit_that_compares_rollouts_is_refused() -> None:
    with pytest.raises(
        ValueError, match="reward_match: the credit 'group-relative' compares the rollouts of one task"
    ):
        TraceTripletAdapter(reward_match="group-relative")
    with pytest.raises(PluginSettingsError, match=r"adapter\.reward_match: .*assign_group"):
        resolve("adapter", {"type": "triplet", "reward_match": "group-relative"})
