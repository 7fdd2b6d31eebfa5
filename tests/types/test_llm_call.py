"""Reading LLM-call spans in each convention, and their token ids."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core.types import Event, LLMCall, Span, is_llm_call
from lightning_core.types.llm import call as call_module


def genai(messages: Any) -> str:
    return json.dumps(messages)


def openinference(answer: dict[str, Any], **request: Any) -> dict[str, Any]:
    asked = {"model": "asked", "messages": [{"role": "user", "content": "hi"}], **request}
    return {
        "openinference.span.kind": "LLM",
        "input.value": json.dumps(asked),
        "output.value": json.dumps({"id": "chatcmpl-1", "model": "answered", **answer}),
    }


def choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ho"}, **fields}


# Conventions


def test_newest_genai_messages_with_tools_reasoning_and_instructions() -> None:
    call = LLMCall.from_attributes(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "asked",
            "gen_ai.response.model": "answered",
            "gen_ai.response.id": "r1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.stop_sequences": ["a", "b"],
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.system_instructions": genai([{"type": "text", "content": "be brief"}]),
            "gen_ai.input.messages": genai(
                [
                    {"role": "user", "parts": [{"type": "text", "content": "weather?"}]},
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "tool_call", "id": "t", "name": "f", "arguments": {"city": "Oslo"}}
                        ],
                    },
                    {
                        "role": "tool",
                        "parts": [{"type": "tool_call_response", "id": "t", "response": {"c": 3}}],
                    },
                ]
            ),
            "gen_ai.output.messages": genai(
                [
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "reasoning", "content": "cold"},
                            {"type": "text", "content": "3 degrees"},
                        ],
                        "finish_reason": "stop",
                    }
                ]
            ),
            "gen_ai.tool.definitions": genai([{"type": "function", "name": "f"}]),
        }
    )
    assert call.convention == "gen_ai"
    assert call.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "content": '{"c": 3}', "tool_call_id": "t"},
    ]
    assert call.response is not None
    assert call.response.message == {"role": "assistant", "content": "3 degrees", "reasoning_content": "cold"}
    assert call.response.finish_reason == "stop"
    assert (call.model, call.response_id) == ("answered", "r1")
    assert (call.input_tokens, call.output_tokens) == (7, 3)
    assert call.parameters == {"temperature": 0.5, "stop_sequences": ["a", "b"]}
    assert call.tools == [{"type": "function", "function": {"name": "f"}}]


def test_genai_messages_keep_parts_of_other_kinds() -> None:
    image = {"type": "uri", "modality": "image", "uri": "file:///cat.png"}
    call = LLMCall.from_attributes(
        {
            "gen_ai.input.messages": genai(
                [{"role": "user", "parts": [{"type": "text", "content": "what?"}, image]}]
            )
        }
    )
    assert call.messages == [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]


def test_genai_messages_in_the_form_of_chat_completions() -> None:
    call = LLMCall.from_attributes({"gen_ai.input.messages": genai([{"role": "user", "content": "hi"}])})
    assert call.messages == [{"role": "user", "content": "hi"}]


def test_indexed_messages_of_traceloop_and_agentops() -> None:
    call = LLMCall.from_attributes(
        {
            "gen_ai.system": "OpenAI",
            "gen_ai.request.model": "m",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "weather?",
            "gen_ai.prompt.1.role": "assistant",
            "gen_ai.prompt.1.tool_calls.0.id": "t",
            "gen_ai.prompt.1.tool_calls.0.name": "f",
            "gen_ai.prompt.1.tool_calls.0.arguments": "{}",
            "gen_ai.prompt.2.role": "tool",
            "gen_ai.prompt.2.tool_call_id": "t",
            "gen_ai.prompt.2.content": "3",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "3 degrees",
            "gen_ai.completion.0.finish_reason": "stop",
            "gen_ai.usage.prompt_tokens": 7,
            "gen_ai.usage.completion_tokens": 3,
            "llm.request.functions.0.name": "f",
            "llm.request.functions.0.parameters": '{"type": "object"}',
        }
    )
    assert call.convention == "gen_ai-indexed"
    assert [message["role"] for message in call.messages] == ["user", "assistant", "tool"]
    function = {"name": "f", "arguments": "{}"}
    assert call.messages[1]["tool_calls"] == [{"id": "t", "type": "function", "function": function}]
    assert call.messages[2]["tool_call_id"] == "t"
    assert call.response is not None
    assert call.response.message == {"role": "assistant", "content": "3 degrees"}
    assert call.response.finish_reason == "stop"
    assert (call.input_tokens, call.output_tokens) == (7, 3)
    assert call.tools == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("prefix", ["llm.request.functions", "gen_ai.request.functions"])
def test_tools_on_offer_are_read_under_the_names_of_traceloop_and_of_agentops(prefix: str) -> None:
    call = LLMCall.from_attributes(
        {
            "gen_ai.request.temperature": 0.5,
            f"{prefix}.0.name": "f",
            f"{prefix}.0.parameters": '{"type": "object"}',
            f"{prefix}.1.name": "g",
        }
    )
    functions = [{"name": "f", "parameters": {"type": "object"}}, {"name": "g"}]
    assert call.tools == [{"type": "function", "function": function} for function in functions]
    assert call.parameters == {"temperature": 0.5}


def test_scattered_messages_are_not_gathered_where_the_raw_call_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(attributes: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(call_module, "indexed_messages", refuse)
    request = {"model": "m", "messages": [{"role": "user", "content": "raw"}]}
    answer = {"choices": [{"message": {"role": "assistant", "content": "said"}}]}
    call = LLMCall.from_attributes(
        {
            "input.value": json.dumps(request),
            "output.value": json.dumps(answer),
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": "scattered",
        }
    )
    assert call.messages == request["messages"]
    assert call.response is not None
    assert call.response.message["content"] == "said"


def test_sparse_tool_calls_of_several_turns_are_read_without_roles() -> None:
    """Trap 22."""
    call = LLMCall.from_attributes(
        {
            "gen_ai.prompt.10.content": "and now?",
            "gen_ai.prompt.3.tool_calls.0.name": "search",
            "gen_ai.prompt.3.tool_calls.2.function.name": "fetch",
            "gen_ai.prompt.4.tool_call_id": "t",
            "gen_ai.completion.0.tool_calls.0.arguments": "{}",
        }
    )
    assert [message["role"] for message in call.messages] == ["assistant", "tool", None]
    assert [tool["function"]["name"] for tool in call.messages[0]["tool_calls"]] == ["search", "fetch"]
    assert call.messages[2]["content"] == "and now?"
    assert call.response is not None
    assert call.response.message["tool_calls"][0]["function"] == {"name": None, "arguments": "{}"}


def test_openinference_without_the_raw_request_and_answer() -> None:
    call = LLMCall.from_attributes(
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "m",
            "llm.invocation_parameters": '{"temperature": 1}',
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.contents.0.message_content.type": "text",
            "llm.input_messages.0.message.contents.0.message_content.text": "what?",
            "llm.input_messages.0.message.contents.1.message_content.type": "image",
            "llm.input_messages.0.message.contents.1.message_content.image.image.url": "data:,",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "t",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": "{}",
            "llm.tools.0.tool.json_schema": '{"type": "function"}',
            "llm.finish_reason": "tool_calls",
        }
    )
    assert call.convention == "openinference"
    assert call.messages == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what?"},
                {"type": "image_url", "image_url": {"url": "data:,"}},
            ],
        }
    ]
    assert call.response is not None
    assert call.response.message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert call.response.finish_reason == "tool_calls"
    assert call.tools == [{"type": "function"}]
    assert call.parameters == {"temperature": 1}


def test_the_items_of_one_answer_of_the_responses_api_are_one_message() -> None:
    call = LLMCall.from_attributes(
        {
            "openinference.span.kind": "LLM",
            "output.value": '{"object": "response", "id": "resp_1", "usage": {"input_tokens": 2, "output_tokens": 5}}',
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.contents.0.message_content.type": "text",
            "llm.output_messages.0.message.contents.0.message_content.text": "looking",
            "llm.output_messages.1.message.role": "assistant",
            "llm.output_messages.1.message.tool_calls.0.tool_call.function.name": "f",
        }
    )
    assert len(call.choices) == 1
    message = call.choices[0].message
    assert message["content"] == "looking"
    assert message["tool_calls"][0]["function"]["name"] == "f"
    assert (call.response_id, call.input_tokens, call.output_tokens) == ("resp_1", 2, 5)


def test_a_text_completion_keeps_its_prompt_as_text() -> None:
    attributes = openinference({"choices": [{"text": " world"}]})
    attributes["input.value"] = '{"model": "m", "prompt": "hello", "temperature": 0}'
    call = LLMCall.from_attributes(attributes)
    assert (call.text, call.messages) == ("hello", [])
    assert call.response is not None
    assert call.response.message == {"role": "assistant", "content": " world"}
    assert call.parameters == {"temperature": 0}


def test_events_hold_messages_in_older_conventions() -> None:
    def span(*events: tuple[str, dict[str, Any]]) -> Span:
        made = Span.from_attributes(attributes={"gen_ai.operation.name": "chat"})
        made.events = [Event(name=name, attributes=attributes) for name, attributes in events]
        return made

    each = LLMCall.from_span(
        span(
            ("gen_ai.user.message", {"content": "hi"}),
            ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": '{"content": "ho"}'}),
        )
    )
    assert each.messages == [{"role": "user", "content": "hi"}]
    assert each.response is not None
    assert (each.response.message["content"], each.response.finish_reason) == ("ho", "stop")

    whole = LLMCall.from_span(
        span(
            ("gen_ai.content.prompt", {"gen_ai.prompt": '[{"role": "user", "content": "hi"}]'}),
            ("gen_ai.content.completion", {"gen_ai.completion": '[{"role": "assistant", "content": "ho"}]'}),
        )
    )
    assert whole.messages == each.messages
    assert whole.response is not None
    assert whole.response.message["content"] == "ho"

    details = LLMCall.from_span(
        span(
            (
                "gen_ai.client.inference.operation.details",
                {
                    "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]',
                    "gen_ai.output.messages": '[{"role": "assistant", "parts": [{"type": "text", "content": "ho"}]}]',
                },
            )
        )
    )
    assert details.messages == each.messages
    assert details.response is not None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, False),
        ({"http.method": "POST"}, False),
        ({"openinference.span.kind": "LLM"}, True),
        ({"openinference.span.kind": "EMBEDDING", "gen_ai.input.messages": "[]"}, False),
        ({"gen_ai.operation.name": "chat"}, True),
        ({"gen_ai.operation.name": "embeddings"}, False),
        ({"gen_ai.operation.name": "invoke_agent", "gen_ai.input.messages": "[]"}, False),
        ({"agentops.span.kind": "llm"}, True),
        ({"agentops.span.kind": "agent", "gen_ai.prompt.0.content": "x"}, False),
        ({"traceloop.span.kind": "workflow", "gen_ai.prompt.0.content": "x"}, False),
        ({"llm.request.type": "chat"}, True),
        ({"llm.request.type": "rerank"}, False),
        ({"gen_ai.request.type": "chat"}, True),
        ({"gen_ai.output.messages": "[]"}, True),
        ({"gen_ai.prompt.3.tool_calls.0.name": "f"}, True),
    ],
)
def test_what_is_an_llm_call(attributes: dict[str, Any], expected: bool) -> None:
    assert is_llm_call(attributes) is expected


def test_every_field_is_set() -> None:
    assert set(vars(LLMCall.from_attributes({}))) == {field.name for field in fields(LLMCall)}
    assert LLMCall.from_attributes({}).prompt_token_ids.missing is not None


# Token ids


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"prompt_token_ids": [1, 2], "choices": [choice(token_ids=[3, 4])]}, ([1, 2], [3, 4])),
        ({"choices": [choice(prompt_token_ids=[1], token_ids=[3])]}, ([1], [3])),
        ({"choices": [choice(provider_specific_fields={"token_ids": [3]})]}, (None, [3])),
        ({"choices": [choice(logprobs={"content": [{"id": 3}, {"id": 4}]})]}, (None, [3, 4])),
        ({"choices": [choice(logprobs={"content": [{"token": "token_id:3"}]})]}, (None, [3])),
        ({"choices": [choice(logprobs={"tokens": ["token_id:3", "token_id:4"]})]}, (None, [3, 4])),
        ({"choices": [choice(logprobs={"content": [{"id": 3}, {"token": "x"}]})]}, (None, None)),
        ({"choices": [choice(token_ids=[3, "4"])]}, (None, None)),
        ({"choices": [choice(token_ids=[True, False])]}, (None, None)),
        ({"choices": [choice(token_ids=[])]}, (None, None)),
        ({"choices": [choice()]}, (None, None)),
    ],
)
def test_token_ids_come_from_the_raw_answer(answer: dict[str, Any], expected: tuple[Any, Any]) -> None:
    call = LLMCall.from_attributes(openinference(answer))
    assert call.response is not None
    found = call.prompt_token_ids, call.response.token_ids
    assert tuple(one.ids for one in found) == expected
    for one in found:
        assert bool(one.source) != bool(one.missing)


def test_token_ids_of_span_attributes() -> None:
    call = LLMCall.from_attributes(
        {
            "gen_ai.completion.0.content": "x",
            "prompt_token_ids": [1, 2],
            "response_token_ids": "[[3, 4]]",
        }
    )
    assert call.response is not None
    assert (call.prompt_token_ids.ids, call.response.token_ids.ids) == ([1, 2], [3, 4])


def test_a_prompt_that_was_sent_as_token_ids() -> None:
    attributes = openinference({"choices": [{"text": "x"}]})
    attributes["input.value"] = '{"model": "m", "prompt": [5, 6]}'
    assert LLMCall.from_attributes(attributes).prompt_token_ids.ids == [5, 6]


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [choice(logprobs={"content": [{"id": 3}]})], "usage": {"completion_tokens": 3}},
        {
            "object": "chat.completion.chunk",
            "choices": [choice(token_ids=[3])],
            "usage": {"completion_tokens": 3},
        },
    ],
)
def test_token_ids_that_were_dropped_on_the_way_are_missing_and_not_short(answer: dict[str, Any]) -> None:
    """Trap 20."""
    call = LLMCall.from_attributes(openinference(answer))
    assert call.response is not None
    assert call.response.token_ids.ids is None
    assert call.response.token_ids.missing is not None
    assert "3 response tokens" in call.response.token_ids.missing


def test_log_probabilities_that_merge_tokens_give_no_ids() -> None:
    """Trap 20: llama.cpp gives the pieces of one character as one entry, with the last id only."""
    answer = {"choices": [choice(logprobs={"content": [{"id": 3}]})], "usage": {"completion_tokens": 2}}
    call = LLMCall.from_attributes(openinference(answer))
    assert call.response is not None
    assert call.response.token_ids.ids is None
    assert "2 response tokens" in str(call.response.token_ids.missing)


def test_logprobs_are_those_of_the_engine() -> None:
    content = [{"id": 3, "logprob": -0.5}, {"id": 4, "logprob": 0}]
    call = LLMCall.from_attributes(openinference({"choices": [choice(logprobs={"content": content})]}))
    assert call.response is not None
    assert call.response.logprobs == [-0.5, 0.0]


def test_each_choice_has_its_own_ids() -> None:
    """Trap 20."""
    answer = {"choices": [choice(token_ids=[1]), choice(token_ids=[2])], "usage": {"completion_tokens": 2}}
    call = LLMCall.from_attributes({**openinference(answer), "response_token_ids": [9]})
    assert [one.token_ids.ids for one in call.choices] == [[1], [2]]
    without = {**openinference({"choices": [choice(), choice()]}), "response_token_ids": [9]}
    assert [one.token_ids.ids for one in LLMCall.from_attributes(without).choices] == [None, None]


def test_a_choice_without_a_message_does_not_lend_its_ids_to_the_next() -> None:
    """Trap 20."""
    answer = {"choices": [{"index": 0, "token_ids": [1]}, choice(token_ids=[2])]}
    (told,) = LLMCall.from_attributes(openinference(answer)).choices
    assert told.token_ids.ids == [2]


# Whatever the attributes

_KEYS = (
    st.sampled_from(
        [
            "openinference.span.kind",
            "gen_ai.operation.name",
            "gen_ai.input.messages",
            "gen_ai.output.messages",
            "gen_ai.system_instructions",
            "gen_ai.response.finish_reasons",
            "gen_ai.tool.definitions",
            "input.value",
            "output.value",
            "llm.invocation_parameters",
            "llm.tools.0.tool.json_schema",
            "llm.request.functions.0.name",
            "prompt_token_ids",
            "response_token_ids",
        ]
    )
    | st.builds(
        ".".join,
        st.tuples(
            st.sampled_from(
                ["gen_ai.prompt", "gen_ai.completion", "llm.input_messages", "llm.output_messages"]
            ),
            st.sampled_from(["0", "1", "12", "x", "", "9" * 5000]),
            st.sampled_from(
                ["role", "content", "message.role", "message.content", "tool_calls", "message.contents"]
            ),
            st.sampled_from(["0.name", "0.tool_call.id", "text", "0.message_content.text", ""]),
        ),
    )
    | st.text(max_size=12)
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "parts", "type", "choices", "message", "usage", "logprobs", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_VALUES = (
    st.text(max_size=8)
    | st.integers()
    | st.booleans()
    | st.lists(st.integers(), max_size=3)
    | _JSON.map(json.dumps)
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=8))
def test_no_attributes_raise_and_what_is_read_is_json(attributes: dict[str, Any]) -> None:
    """Trap 22."""
    is_llm_call(attributes)
    call = LLMCall.from_attributes(attributes)
    hash((call.model, call.response_id, call.text))
    json.dumps([call.messages, call.tools, call.parameters, [one.message for one in call.choices]])


def test_json_that_is_nested_too_deeply_is_no_error() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    LLMCall.from_attributes({"gen_ai.input.messages": deep, "input.value": '{"a":' * 5000})
