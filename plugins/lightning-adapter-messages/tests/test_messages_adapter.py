"""From traces to examples of a fine-tuning file."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from lightning_adapter_messages import TraceMessagesAdapter

from lightning_core.testing.adapter import make_trace
from lightning_core.types import Span, TraceStatus

TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {}), **more}


def tool_call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "search", "arguments": arguments}}


def tool(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": call_id}


def call(
    messages: list[dict[str, Any]],
    answer: dict[str, Any],
    tools: list[dict[str, Any]] | None = None,
    **more: Any,
) -> tuple[str, dict[str, Any]]:
    """A span with the raw request and answer of a chat completion."""
    request = {"model": "m", "messages": messages, **({"tools": tools} if tools else {}), **more}
    raw = {"id": None, "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}]}
    return "ChatCompletion", {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(request),
        "output.value": json.dumps(raw),
    }


def example(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"messages": list(messages), **({"tools": tools} if tools else {})}


def only(adapter: TraceMessagesAdapter, spans: list[Span]) -> str:
    """Why the only call of a trace gave no example."""
    assert adapter.adapt(spans) == []
    (told,) = adapter.explain(spans).calls
    assert told.excluded_because is not None
    assert told.excluded_because in str(adapter.explain(spans).empty_because)
    return told.excluded_because


# Examples


def test_an_example_is_a_line_of_a_fine_tuning_file() -> None:
    prompt = [{"role": "system", "content": "be brief"}, user("weather?")]
    asked = assistant(None, tool_call("t1", '{"city": "Oslo"}'))
    spans = make_trace(
        [call(prompt, asked, [TOOL]), call([*prompt, asked, tool("t1", "3")], assistant("3 degrees"), [TOOL])]
    )
    first, second = TraceMessagesAdapter().adapt(spans)
    assert first == example(*prompt, asked, tools=[TOOL])
    assert second == example(*prompt, asked, tool("t1", "3"), assistant("3 degrees"), tools=[TOOL])
    assert json.loads(json.dumps(second)) == second


def test_tools_are_left_out_where_there_are_none() -> None:
    (made,) = TraceMessagesAdapter().adapt(make_trace([call([user("q")], assistant("a"))]))
    assert set(made) == {"messages"}


def test_only_what_a_file_may_hold_is_kept() -> None:
    answer = assistant("a", annotations=[], audio=None, reasoning_content="hm", tool_calls=[])
    asked = {
        "role": "user",
        "content": [{"type": "text", "text": "q", "cache_control": {}}],
        "name": "ann",
        "x": 1,
    }
    spans = make_trace([call([asked], answer, [TOOL, {"type": "web_search"}])])
    (made,) = TraceMessagesAdapter().adapt(spans)
    assert made == example(
        {"role": "user", "content": [{"type": "text", "text": "q"}], "name": "ann"},
        assistant("a"),
        tools=[TOOL],
    )
    (told,) = TraceMessagesAdapter().explain(spans).calls
    assert told.notes == ("what the model thought is left out", "1 tools that are no functions are left out")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_if_asked(name: str) -> None:
    spans = make_trace([call([user("q")], assistant("a", **{name: "hm"}))])
    (made,) = TraceMessagesAdapter(keep_reasoning=True).adapt(spans)
    assert made["messages"][-1] == assistant("a", reasoning_content="hm")


def test_roles_have_the_names_of_chat_completions() -> None:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.prompt.0.role": "human",
        "gen_ai.prompt.0.content": "q",
        "gen_ai.prompt.1.role": "model",
        "gen_ai.prompt.1.content": "a",
        "gen_ai.prompt.2.role": "developer",
        "gen_ai.prompt.2.content": "go on",
        "gen_ai.completion.0.role": "ai",
        "gen_ai.completion.0.content": "b",
    }
    (made,) = TraceMessagesAdapter().adapt(make_trace([("chat", attributes)]))
    assert [message["role"] for message in made["messages"]] == [
        "user",
        "assistant",
        "developer",
        "assistant",
    ]


def test_a_refusal_is_an_answer() -> None:
    (made,) = TraceMessagesAdapter().adapt(make_trace([call([user("q")], assistant(None, refusal="no"))]))
    assert made["messages"][-1] == assistant(None, refusal="no")


def test_several_agents_and_a_judge_in_one_trace() -> None:
    judge = ("judge", {"agentops.entity.output": '{"type": "reward", "value": 1}'})
    spans = make_trace(
        [
            call([user("plan")], assistant("a")),
            ("planner", {"openinference.span.kind": "AGENT"}),
            call([user("work")], assistant("b")),
            ("worker", {"openinference.span.kind": "AGENT"}),
            call([user("how good?")], assistant("c")),
            judge,
            ("root", {}),
        ],
        parents=[1, 6, 3, 6, 5, 6, None],
    )

    def questions(**settings: Any) -> list[str]:
        return [made["messages"][0]["content"] for made in TraceMessagesAdapter(**settings).adapt(spans)]

    assert questions() == ["plan", "work"]
    assert questions(agent_match="^work") == ["work"]
    assert questions(exclude_llm_call_in_reward=False) == ["plan", "work", "how good?"]
    told = TraceMessagesAdapter(agent_match="^work").explain(spans).calls
    assert [one.agent for one in told] == ["planner", "worker", None]
    assert "agent_match '^work' does not match its agent" in str(told[0])


def test_a_framework_span_and_its_sdk_span_are_one_example() -> None:
    """Trap 19."""
    framework = {
        "gen_ai.operation.name": "chat",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "q",
        "gen_ai.completion.0.content": "a",
    }
    spans = make_trace([call([user("q")], assistant("a")), ("ChatModel", framework)], parents=[1, None])
    assert TraceMessagesAdapter().adapt(spans) == [example(user("q"), assistant("a"))]
    assert "the same call as #1 ChatModel" in str(TraceMessagesAdapter().explain(spans))


# Sparse attributes


def test_sparse_tool_calls_without_roles_and_ids() -> None:
    """Trap 22."""
    attributes = {
        "gen_ai.request.model": "m",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "weather?",
        "gen_ai.prompt.3.tool_calls.0.name": "search",
        "gen_ai.prompt.3.tool_calls.0.arguments": '{"city": "Oslo"}',
        "gen_ai.prompt.3.tool_calls.2.name": "search",
        "gen_ai.prompt.5.role": "tool",
        "gen_ai.prompt.5.content": "3",
        "gen_ai.prompt.6.tool_call_id": "t2",
        "gen_ai.prompt.6.content": "4",
        "gen_ai.completion.0.tool_calls.0.name": "search",
        "gen_ai.completion.0.tool_calls.0.arguments": "{}",
    }
    spans = make_trace([("chat", attributes)])
    (made,) = TraceMessagesAdapter().adapt(spans)
    assert made["messages"] == [
        user("weather?"),
        assistant(None, tool_call("call_1_0", '{"city": "Oslo"}'), tool_call("t2")),
        tool("call_1_0", "3"),
        tool("t2", "4"),
        assistant(None, tool_call("call_4_0")),
    ]
    (told,) = TraceMessagesAdapter().explain(spans).calls
    assert told.notes == (
        "the arguments of tool call 1 of message 1 were not recorded, and are empty here",
        "message 2 does not say which tool call it answers; 'call_1_0' is the next in order",
        "ids of tool calls that were not recorded are made up: call_1_0, call_4_0",
    )


def test_sparse_messages_of_openinference() -> None:
    """Trap 22."""
    prefix = "llm.input_messages"
    attributes = {
        "openinference.span.kind": "LLM",
        f"{prefix}.0.message.role": "user",
        f"{prefix}.0.message.contents.0.message_content.type": "text",
        f"{prefix}.0.message.contents.0.message_content.text": "q",
        f"{prefix}.2.message.tool_calls.1.tool_call.function.name": "search",
        f"{prefix}.2.message.tool_calls.1.tool_call.function.arguments": "{}",
        f"{prefix}.3.message.tool_call_id": "t1",
        f"{prefix}.3.message.content": "3",
        "llm.output_messages.0.message.content": "a",
        "llm.tools.0.tool.json_schema": json.dumps(TOOL),
    }
    (made,) = TraceMessagesAdapter().adapt(make_trace([("chat", attributes)]))
    asked = {"role": "user", "content": [{"type": "text", "text": "q"}]}
    assert made == example(
        asked, assistant(None, tool_call("t1")), tool("t1", "3"), assistant("a"), tools=[TOOL]
    )


# Calls that give none


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [user("q"), assistant(None, tool_call("t1")), user("go on")],
            "'t1' of message 1 is not answered before",
        ),
        (
            [user("q"), assistant(None, tool_call("t1")), assistant("b")],
            "'t1' of message 1 is not answered before",
        ),
        ([user("q"), assistant(None, tool_call("t1"))], "'t1' of message 1 is not answered before message 2"),
        ([user("q"), tool("t1", "3")], "message 1 answers the tool call 't1', which was not made before it"),
        ([user("q"), {"role": "tool", "content": "3"}], "message 1, of a tool, answers no tool call"),
        (
            [user("q"), assistant(None, tool_call("t1")), tool("t1", "3"), tool("t1", "4")],
            "message 3 answers the tool call 't1'",
        ),
        ([user("q"), assistant(None)], "message 1, of the assistant, is empty"),
        ([{"role": "user", "content": None}], "message 0, of the user, is empty"),
        ([{"role": "user", "content": []}], "message 0, of the user, is empty"),
        ([{"role": "user", "content": 3}], "the content of message 0 is neither text nor a list of parts"),
        ([{"role": None, "content": "q"}], "message 0 has no role"),
        ([{"role": "function", "content": "q"}], "the role 'function', which chat completions do not know"),
        (
            [{"role": "user", "content": [{"type": "video", "url": "x"}]}],
            "message 0 has a part of type 'video'",
        ),
        (
            [user("q"), assistant(None, {"id": "t", "function": {"arguments": "{}"}})],
            "tool call 0 of message 1 has no name",
        ),
    ],
)
def test_a_call_that_would_make_no_valid_example_is_explained(
    messages: list[dict[str, Any]], reason: str
) -> None:
    assert reason in only(TraceMessagesAdapter(), make_trace([call(messages, assistant("a"))]))


def test_a_text_completion_is_no_chat() -> None:
    attributes = {
        "openinference.span.kind": "LLM",
        "input.value": '{"model": "m", "prompt": "hello"}',
        "output.value": '{"choices": [{"text": " world"}]}',
    }
    assert "plain text completion" in only(TraceMessagesAdapter(), make_trace([("completion", attributes)]))


def test_a_response_whose_history_only_the_server_has() -> None:
    attributes = {
        "openinference.span.kind": "LLM",
        "input.value": '{"model": "m", "input": "and now?", "previous_response_id": "resp_1"}',
        "output.value": '{"object": "response", "output": [{"type": "message", "role": "assistant", "content": "a"}]}',
    }
    assert "previous_response_id" in only(TraceMessagesAdapter(), make_trace([("responses", attributes)]))


def test_a_failed_call_and_a_trace_without_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Trap 23: an empty training set says why it is empty."""
    name, attributes = call([user("q")], assistant("a"))
    del attributes["output.value"]
    spans = make_trace([(name, attributes)])
    spans[0].status = TraceStatus(status_code="ERROR", description="429 too many requests")
    assert only(TraceMessagesAdapter(), spans) == "it failed: 429 too many requests"
    assert "1 spans gave no example: 1 LLM calls, all left out: it failed: 429" in caplog.text

    spans = make_trace([("http", {})])
    assert "no span is an LLM call (names: http)" in str(TraceMessagesAdapter().explain(spans).empty_because)
    assert TraceMessagesAdapter().explain([]).empty_because == "the trace has no spans"


def test_calls_that_are_left_out_among_others_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    spans = make_trace([call([user("q")], assistant("a")), call([user("r")], assistant(None))])
    with caplog.at_level(logging.WARNING):
        assert len(TraceMessagesAdapter().adapt(spans)) == 1
    assert "1 of 2 LLM calls gave no example: message 1, of the assistant, is empty" in caplog.text


# Conversations


def conversation(*turns: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a conversation in which the user says one text after another."""
    messages: list[dict[str, Any]] = []
    calls: list[tuple[str, dict[str, Any]]] = []
    for turn in turns:
        messages.append(user(turn))
        answer = assistant(turn.upper())
        calls.append(call(messages, answer))
        messages.append(answer)
    return calls


def texts(adapter: TraceMessagesAdapter, spans: list[Span]) -> list[str]:
    return ["".join(message["content"] for message in made["messages"]) for made in adapter.adapt(spans)]


def test_the_last_call_of_a_conversation_holds_the_earlier_ones() -> None:
    spans = make_trace(conversation("a", "b", "c"))
    adapter = TraceMessagesAdapter(per="conversation")
    assert texts(adapter, spans) == ["aAbBcC"]
    assert texts(TraceMessagesAdapter(), spans) == ["aA", "aAbB", "aAbBcC"]
    explanation = adapter.explain(spans)
    assert explanation.results == 1
    assert [one.part_of for one in explanation.calls] == [f"#2 ChatCompletion [{spans[2].span_id}]"] * 2 + [
        None
    ]
    assert "part of the conversation of #2" in str(explanation)


def test_conversations_side_by_side_are_kept_apart() -> None:
    one, other = conversation("a", "b"), conversation("x", "y")
    spans = make_trace([one[0], other[0], other[1], one[1]])
    assert texts(TraceMessagesAdapter(per="conversation"), spans) == ["xXyY", "aAbB"]


def test_a_conversation_that_forks_is_two() -> None:
    first, left = conversation("a", "b")
    right = conversation("a", "c")[1]
    adapter = TraceMessagesAdapter(per="conversation")
    assert texts(adapter, make_trace([first, left, right])) == ["aAbB", "aAcC"]


def test_an_edited_history_continues_nothing() -> None:
    first = call([user("a")], assistant("A"))
    edited = call([user("a"), assistant("edited"), user("b")], assistant("B"))
    other_tools = call([user("a"), assistant("A"), user("b")], assistant("B"), [TOOL])
    adapter = TraceMessagesAdapter(per="conversation")
    assert texts(adapter, make_trace([first, edited])) == ["aA", "aeditedbB"]
    assert texts(adapter, make_trace([first, other_tools])) == ["aA", "aAbB"]


def test_a_question_that_is_asked_twice_is_two_conversations() -> None:
    spans = make_trace([*conversation("a"), *conversation("a")])
    assert texts(TraceMessagesAdapter(per="conversation"), spans) == ["aA", "aA"]


def test_tool_calls_continue_a_conversation_however_their_arguments_are_written() -> None:
    asked = assistant("", tool_call("t1", '{"a": 1, "b": [2]}'))
    sent_back = assistant(None, tool_call("t1", '{"b":[2],"a":1}'))
    spans = make_trace(
        [
            call([user("q")], asked, [TOOL]),
            call([user("q"), sent_back, tool("t1", "3")], assistant("a"), [TOOL]),
        ]
    )
    (made,) = TraceMessagesAdapter(per="conversation").adapt(spans)
    assert [message["role"] for message in made["messages"]] == ["user", "assistant", "tool", "assistant"]


def test_an_explanation_reads_well() -> None:
    spans = make_trace(
        [call([user("q")], assistant("a"), [TOOL]), call([user("r")], assistant(None)), ("root", {})]
    )
    assert str(TraceMessagesAdapter().explain(spans)).splitlines() == [
        "3 spans -> 1 training sample",
        f"call #0 ChatCompletion [{spans[0].span_id}]: an example of 2 messages, with 1 tool",
        f"call #1 ChatCompletion [{spans[1].span_id}]: no example, message 1, of the assistant, is empty",
        "note: 3 spans without a parent in the trace hang from a virtual root",
    ]


def test_the_tree_that_the_adapter_sees_can_be_drawn() -> None:
    spans = make_trace([call([user("q")], assistant("a")), ("agent", {})], parents=[1, None])
    drawn = str(TraceMessagesAdapter(llm_call_match="agent").tree(spans)).splitlines()
    assert [line.endswith("(LLM call)") for line in drawn] == [True, False]
