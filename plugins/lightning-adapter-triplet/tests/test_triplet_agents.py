"""Traces of several agents with tools, intermediate and final rewards, as frameworks and SDKs leave them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from lightning_adapter_triplet import TraceTripletAdapter

from lightning_core.testing.adapter import as_readable, make_trace
from lightning_core.types import Span, Triplet

Named = tuple[str, dict[str, Any]]

SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
ROOT: Named = ("rollout", {})


def call(text: str, *, tool: str | None = None, **more: Any) -> Named:
    """An SDK's span, with the raw request and answer."""
    message: dict[str, Any] = {"role": "assistant", "content": text.upper()}
    if tool is not None:
        function = {"name": tool, "arguments": '{"a": 1}'}
        message |= {"content": None, "tool_calls": [{"id": "t1", "type": "function", "function": function}]}
    request = {"model": "m", "messages": [{"role": "user", "content": text}], "tools": [SEARCH]}
    return "ChatCompletion", {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(request),
        "output.value": json.dumps({"choices": [{"message": message}]}),
        **more,
    }


def framework(text: str, tool: str | None = None) -> Named:
    """A framework's span of the same call, without the tools that were offered."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": text,
    }
    if tool is None:
        attributes["gen_ai.completion.0.content"] = text.upper()
    else:
        attributes["gen_ai.completion.0.tool_calls.0.name"] = tool
        attributes["gen_ai.completion.0.tool_calls.0.arguments"] = '{"a":1}'
    return "ChatModel", attributes


def tool(name: str) -> Named:
    return f"execute_tool {name}", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}


def agent(name: str) -> Named:
    return f"invoke_agent {name}", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}


def reward(value: float) -> Named:
    return "lightning.reward", {"reward": value}


def told(triplets: list[Triplet]) -> list[tuple[str, str | None, float | None]]:
    return [
        (triplet.prompt["messages"][-1]["content"], triplet.metadata["agent_name"], triplet.reward)
        for triplet in triplets
    ]


def an_agent_that_is_a_tool() -> list[Span]:
    """A planner asks a researcher, which is rewarded by itself, as one of its tools; the end is rewarded too."""
    return make_trace(
        [
            call("plan", tool="search"),
            call("research"),
            reward(0.25),
            agent("researcher"),
            tool("search"),
            call("answer"),
            agent("planner"),
            reward(1.0),
            ROOT,
        ],
        parents=[6, 3, 3, 4, 6, 6, 8, 8, None],
    )


@pytest.mark.parametrize("policy", ["first_occurrence", "first_sibling"])
@pytest.mark.parametrize("readable", [False, True])
def test_intermediate_and_final_rewards_of_agents_and_tools(policy: str, readable: bool) -> None:
    spans: list[Any] = an_agent_that_is_a_tool()
    spans = [as_readable(span) for span in spans] if readable else spans
    triplets = TraceTripletAdapter(reward_match=policy).adapt(spans)
    assert told(triplets) == [
        ("plan", "planner", None),
        ("research", "researcher", 0.25),
        ("answer", "planner", 1.0),
    ]
    assert [triplet.prompt["tools"] for triplet in triplets] == [[SEARCH]] * 3
    (asked,) = triplets[0].response["message"]["tool_calls"]
    assert asked["function"] == {"name": "search", "arguments": '{"a": 1}'}


def test_an_agent_is_trained_on_its_own_rewards_with_first_sibling_only() -> None:
    """By first occurrence the researcher's reward goes to the last call before it that is taken: the planner's."""
    spans = an_agent_that_is_a_tool()
    taken = {
        policy: told(TraceTripletAdapter(agent_match="^planner$", reward_match=policy).adapt(spans))
        for policy in ("first_occurrence", "first_sibling")
    }
    assert [reward for *_, reward in taken["first_occurrence"]] == [0.25, 1.0]
    assert [reward for *_, reward in taken["first_sibling"]] == [None, 1.0]
    assert {agent for _, agent, _ in taken["first_sibling"]} == {"planner"}
    (research,) = TraceTripletAdapter(agent_match="researcher").adapt(spans)
    assert research.reward == 0.25


def test_agents_at_once_ask_the_same_and_are_rewarded_each() -> None:
    """Trap 19: a framework's span and an SDK's span of two calls that look alike are two calls, not one or four."""
    spans = make_trace(
        [
            call("same"),
            call("same"),
            framework("same"),
            framework("same"),
            reward(1),
            reward(2),
            agent("one"),
            agent("two"),
            ROOT,
        ],
        parents=[2, 3, 6, 7, 6, 7, 8, 8, None],
    )
    triplets = TraceTripletAdapter(reward_match="first_sibling").adapt(spans)
    assert told(triplets) == [("same", "one", 1.0), ("same", "two", 2.0)]


def test_three_recordings_of_a_call_side_by_side_are_one() -> None:
    """Trap 19: the one that tells most is read, tools included."""
    gateway = call("q", tool="search", prompt_token_ids=[1], response_token_ids=[2])
    spans = make_trace(
        [("chat m", gateway[1]), call("q", tool="search"), framework("q", "search"), reward(1), ROOT],
        parents=[4, 4, 4, 4, None],
    )
    for policy in ("first_occurrence", "first_sibling"):
        (triplet,) = TraceTripletAdapter(reward_match=policy).adapt(spans)
        assert triplet.reward == 1.0
        assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([1], [2])
        assert triplet.prompt["tools"] == [SEARCH]


def test_a_handoff_between_agents() -> None:
    spans = make_trace(
        [call("who?"), agent("triage"), call("refund"), agent("billing"), reward(1), ROOT],
        parents=[1, 5, 3, 5, 5, None],
    )
    for policy in ("first_occurrence", "first_sibling"):
        triplets = TraceTripletAdapter(reward_match=policy).adapt(spans)
        assert told(triplets) == [("who?", "triage", None), ("refund", "billing", 1.0)]


def test_each_step_may_have_its_reward_and_the_end_another() -> None:
    spans = make_trace(
        [call("1"), reward(0.1), call("2"), reward(0.2), call("3"), reward(1.0), ROOT],
        parents=[6, 6, 6, 6, 6, 6, None],
    )
    for policy in ("first_occurrence", "first_sibling"):
        triplets = TraceTripletAdapter(reward_match=policy).adapt(spans)
        assert [triplet.reward for triplet in triplets] == [0.1, 0.2, 1.0]


def test_a_final_reward_that_lands_nowhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 19: the last call has the reward of its step, and takes no other."""
    spans = make_trace([call("1"), reward(0.1), reward(1.0)])
    adapter = TraceTripletAdapter()
    with caplog.at_level(logging.WARNING):
        assert [triplet.reward for triplet in adapter.adapt(spans)] == [0.1]
    assert (
        f"the final reward, 1 of #2 lightning.reward [{spans[2].span_id}], landed on no call" in caplog.text
    )
    assert "has the reward of #1" in caplog.text
    assert "warning: the final reward" in str(adapter.explain(spans))


def test_a_reward_that_was_emitted_and_returned_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 18."""
    with caplog.at_level(logging.WARNING):
        TraceTripletAdapter().adapt(make_trace([call("1"), reward(1.0), reward(1.0)]))
    assert caplog.text == ""


def test_the_tree_that_the_adapter_sees_can_be_drawn() -> None:
    spans = an_agent_that_is_a_tool()
    lines = str(TraceTripletAdapter().tree(spans)).splitlines()
    assert lines[0] == f"#8 rollout [{spans[8].span_id}]"
    assert lines[1] == f"  #6 invoke_agent planner [{spans[6].span_id}]"
    assert lines[2] == f"    #0 ChatCompletion [{spans[0].span_id}] (LLM call)"
    assert len(lines) == len(spans)
