"""Raw requests and answers of the Responses API and of Anthropic's Messages API, read as chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_core.types import LLMCall


def read(request: dict[str, Any], answer: dict[str, Any]) -> LLMCall:
    return LLMCall.from_attributes(
        {
            "openinference.span.kind": "LLM",
            "input.value": json.dumps({"model": "m", **request}),
            "output.value": json.dumps(answer),
        }
    )


def function(name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


SCHEMA = {"type": "object"}
DEFINITION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


# The Responses API


def test_items_of_a_response_become_messages() -> None:
    call = read(
        {
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "look it up"}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "3"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "4"}],
                },
                {"type": "message", "role": "user", "content": "and now?"},
            ],
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}],
            "temperature": 0.5,
        },
        {
            "object": "response",
            "id": "resp_1",
            "model": "answered",
            "output": [
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [
                        {"type": "output_text", "text": "3 "},
                        {"type": "output_text", "text": "degrees"},
                    ],
                },
                {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
            ],
            "usage": {"input_tokens": 7, "output_tokens": 3},
        },
    )
    assert call.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "look it up",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function("f", '{"a": 1}')},
                {"id": "c2", "type": "function", "function": function("g")},
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "4", "tool_call_id": "c2"},
        {"role": "user", "content": "and now?"},
    ]
    assert call.response is not None
    assert call.response.message == {
        "role": "assistant",
        "content": "3 degrees",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c3", "type": "function", "function": function("f")}],
    }
    assert (call.model, call.response_id, call.input_tokens, call.output_tokens) == (
        "answered",
        "resp_1",
        7,
        3,
    )
    assert call.tools == [DEFINITION]
    assert call.parameters == {"temperature": 0.5}


def test_a_response_to_a_text_that_was_cut_off() -> None:
    call = read(
        {"input": "hi"},
        {
            "object": "response",
            "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "h"}]}
            ],
            "incomplete_details": {"reason": "max_output_tokens"},
        },
    )
    assert call.messages == [{"role": "user", "content": "hi"}]
    assert call.response is not None
    assert (call.response.message["content"], call.response.finish_reason) == ("h", "max_output_tokens")


def test_images_and_items_that_chat_completions_do_not_know_are_kept() -> None:
    search = {"type": "web_search_call", "id": "ws"}
    call = read(
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what?"},
                        {"type": "input_image", "image_url": "data:,", "detail": "low"},
                    ],
                }
            ]
        },
        {
            "object": "response",
            "output": [
                search,
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
                {"type": "custom_tool_call", "call_id": "c", "name": "shell", "input": "ls"},
            ],
        },
    )
    assert call.messages[0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
    ]
    assert call.response is not None
    assert call.response.message["content"] == [search, {"type": "text", "text": "a"}]
    custom = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    assert call.response.message["tool_calls"] == [custom]


# Anthropic's Messages API


def test_blocks_of_anthropic_become_messages() -> None:
    call = read(
        {
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "look it up", "signature": "s"},
                        {"type": "text", "text": "looking"},
                        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [{"type": "text", "text": "3"}],
                        },
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
            "max_tokens": 9,
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "model": "answered",
            "content": [{"type": "text", "text": "3 degrees"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 7, "output_tokens": 3},
        },
    )
    assert call.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "looking",
            "reasoning_content": "look it up",
            "tool_calls": [{"id": "t1", "type": "function", "function": function("f", '{"a": 1}')}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "t1"},
        {"role": "user", "content": "go on"},
    ]
    assert call.response is not None
    assert call.response.message == {"role": "assistant", "content": "3 degrees"}
    assert call.response.finish_reason == "end_turn"
    assert (call.model, call.response_id, call.input_tokens, call.output_tokens) == (
        "answered",
        "msg_1",
        7,
        3,
    )
    assert call.tools == [DEFINITION]
    assert call.parameters == {"max_tokens": 9}


def test_images_of_anthropic() -> None:
    sources = [
        {"type": "base64", "media_type": "image/png", "data": "AA=="},
        {"type": "url", "url": "http://127.0.0.1/cat.png"},
    ]
    blocks = [{"type": "image", "source": source} for source in sources]
    call = read({"messages": [{"role": "user", "content": blocks}]}, {})
    assert [part["image_url"]["url"] for part in call.messages[0]["content"]] == [
        "data:image/png;base64,AA==",
        "http://127.0.0.1/cat.png",
    ]


def test_messages_of_chat_completions_are_left_as_they_are() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
    ]
    assert read({"messages": messages}, {}).messages == messages


# Definitions of tools


@pytest.mark.parametrize(
    "tool",
    [
        DEFINITION,
        {"type": "web_search"},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "custom", "name": "shell", "format": {"type": "text"}},
    ],
)
def test_definitions_that_are_no_functions_of_another_form_are_left_as_they_are(tool: dict[str, Any]) -> None:
    assert read({"messages": [], "tools": [tool]}, {}).tools == [tool]


def test_a_function_without_parameters() -> None:
    tool = {"type": "function", "name": "f", "strict": True}
    assert read({"messages": [], "tools": [tool]}, {}).tools == [
        {"type": "function", "function": {"name": "f", "strict": True}}
    ]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({"input": [3, None, "x", {}]}, {"output": [None, 3, {"type": 5}]}),
        ({"input": [{"type": "function_call"}]}, {"output": [{"type": "function_call_output"}]}),
        ({"input": {}}, {"type": "message", "content": [3, {"type": "text"}]}),
        (
            {"messages": [{"role": 3, "content": [{"type": "tool_use"}, 4]}]},
            {"type": "message", "content": []},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": 3}]}], "system": 3},
            {"output": 3},
        ),
        (
            {"input": [{"role": "user", "content": 3}], "instructions": {}},
            {"incomplete_details": "x", "output": {}},
        ),
    ],
)
def test_odd_requests_and_answers_raise_nothing(request_: dict[str, Any], answer: dict[str, Any]) -> None:
    call = read(request_, answer)
    json.dumps([call.messages, call.tools, [choice.message for choice in call.choices]])
