"""Answers in the shapes that engines give them, with short contents. Each says where its shape comes from.

None is a recording. Those of vLLM and SGLang are written from the models of requests and answers that these servers
declare (``protocol.py`` of their OpenAI-compatible entry points); what OpenAI and Anthropic give, from their API
references. What llama.cpp gives, ``test_proxy_llamacpp.py`` asks of a real one.
"""

from __future__ import annotations

import copy
import json
from typing import Any


def sse(*events: Any, end: str = "\n\n", done: bool = True) -> bytes:
    """Write events; dicts as JSON, pairs with the name of the event."""
    parts: list[str] = []
    for event in events:
        if isinstance(event, tuple):
            parts.append(f"event: {event[0]}\ndata: {json.dumps(event[1])}{end}")
        else:
            parts.append(f"data: {json.dumps(event)}{end}")
    if done:
        parts.append(f"data: [DONE]{end}")
    return "".join(parts).encode()


def vllm_chat(**changes: Any) -> dict[str, Any]:
    """vLLM's answer to a chat completion with return_token_ids and logprobs.

    ``return_token_ids`` is a parameter of the requests for chat and text completions since vLLM 0.10.2: ids of the
    prompt are beside the choices, and those of an answer in its choice, that of the token which ended it included.
    Older ones take the parameter without a word, and give neither field.
    """
    return {
        "id": "chatcmpl-5f1c",
        "object": "chat.completion",
        "created": 1761000000,
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi!",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning_content": None,
                },
                "logprobs": {
                    "content": [
                        {"token": "Hi", "logprob": -0.25, "bytes": [72, 105], "top_logprobs": []},
                        {"token": "!", "logprob": -0.5, "bytes": [33], "top_logprobs": []},
                        {"token": "<|im_end|>", "logprob": -0.125, "bytes": [60], "top_logprobs": []},
                    ]
                },
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": [13048, 0, 151645],
            }
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": 4,
            "total_tokens": 7,
            "completion_tokens": 3,
            "prompt_tokens_details": None,
        },
        "prompt_logprobs": None,
        "prompt_token_ids": [151644, 872, 198, 6023],
        "kv_transfer_params": None,
        **changes,
    }


def _vllm_chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-5f1c",
        "object": "chat.completion.chunk",
        "created": 1761000000,
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "choices": [
            {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None, **choice}
        ],
    }


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    entry = {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
    return {"content": [entry]}


def vllm_chat_chunks() -> list[dict[str, Any]]:
    """The same as a stream, with stream_options.include_usage.

    vLLM 0.10.2: the ids of the prompt are in the first chunk alone; each chunk has the ids of what it adds.
    """
    first = _vllm_chunk({"role": "assistant", "content": ""}) | {"prompt_token_ids": [151644, 872, 198, 6023]}
    usage = {"prompt_tokens": 4, "total_tokens": 7, "completion_tokens": 3}
    chunks = [
        first,
        _vllm_chunk({"content": "Hi"}, token_ids=[13048], logprobs=_logprob("Hi", -0.25)),
        _vllm_chunk({"content": "!"}, token_ids=[0], logprobs=_logprob("!", -0.5)),
        _vllm_chunk(
            {"content": ""},
            token_ids=[151645],
            logprobs=_logprob("<|im_end|>", -0.125),
            finish_reason="stop",
            stop_reason=None,
        ),
    ]
    last = {**_vllm_chunk({}), "choices": [], "usage": usage}
    return [*({**chunk, "usage": None} for chunk in chunks), last]


def vllm_tool_chunks() -> list[dict[str, Any]]:
    """Two calls of tools in pieces.

    vLLM 0.10.2: a parser of tool calls may swallow tokens, whose ids come with the next chunk that is sent.
    """

    def call(index: int, **function: Any) -> dict[str, Any]:
        return {"index": index, "function": function}

    return [
        _vllm_chunk({"role": "assistant", "content": ""}) | {"prompt_token_ids": [1, 2]},
        _vllm_chunk(
            {"tool_calls": [{"id": "call-a", "type": "function", **call(0, name="weather", arguments="")}]},
            token_ids=[10, 11],
        ),
        _vllm_chunk({"tool_calls": [call(0, arguments='{"city": ')]}, token_ids=[12]),
        _vllm_chunk({"tool_calls": [call(0, arguments='"Oslo"}')]}, token_ids=[13, 14]),
        _vllm_chunk(
            {"tool_calls": [{"id": "call-b", "type": "function", **call(1, name="time", arguments="{}")}]},
            token_ids=[15],
        ),
        _vllm_chunk({}, token_ids=[16], finish_reason="tool_calls"),
        {
            **_vllm_chunk({}),
            "choices": [],
            "usage": {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9},
        },
    ]


def vllm_text(streamed: bool = False) -> Any:
    """vLLM's answer to a text completion, whose prompt's ids are in the choice: ``return_token_ids`` of vLLM 0.10.2."""
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1761000000, "model": "m"}
    logprobs = {
        "text_offset": [0, 3],
        "token_logprobs": [-0.25, -0.5],
        "tokens": [" is", " up"],
        "top_logprobs": [{" is": -0.25}, {" up": -0.5}],
    }
    usage = {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2}
    if not streamed:
        choice = {
            "index": 0,
            "text": " is up",
            "logprobs": logprobs,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [374, 705],
            "prompt_logprobs": None,
            "prompt_token_ids": [785, 3166],
        }
        return {**base, "choices": [choice], "usage": usage}

    def piece(number: int, text: str, token: int, **more: Any) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": {key: value[number : number + 1] for key, value in logprobs.items()},
            "finish_reason": None,
            "token_ids": [token],
            **more,
        }
        return {**base, "choices": [choice], "usage": None}

    return [
        piece(0, " is", 374, prompt_token_ids=[785, 3166]),
        piece(1, " up", 705, finish_reason="length"),
        {**base, "choices": [], "usage": usage},
    ]


def sglang_chat() -> dict[str, Any]:
    """SGLang's answer to a chat completion with return_meta_info, return_prompt_token_ids and logprobs.

    The two parameters, and the fields of a choice that they fill, are those of ``ChatCompletionRequest`` and
    ``ChatCompletionResponseChoice`` in SGLang's main branch of 2026; which release was the first to have them was not
    looked up. Older ones ignore them, and give neither field. ``meta_info`` is that of SGLang's own ``/generate``:
    its ``output_token_logprobs`` are lists of a log-probability, the id of the token, and its text or null
    (``return_text_in_logprobs``).
    """
    return {
        "id": "9a1f",
        "object": "chat.completion",
        "created": 1761000000,
        "model": "qwen",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi!",
                    "reasoning_content": None,
                    "tool_calls": None,
                },
                "logprobs": {
                    "content": [
                        {"token": "Hi", "bytes": [72, 105], "logprob": -0.25, "top_logprobs": []},
                        {"token": "!", "bytes": [33], "logprob": -0.5, "top_logprobs": []},
                    ]
                },
                "finish_reason": "length",
                "matched_stop": None,
                "prompt_token_ids": [151644, 872],
                "meta_info": {
                    "id": "9a1f",
                    "finish_reason": {"type": "length", "length": 2},
                    "prompt_tokens": 2,
                    "completion_tokens": 2,
                    "output_token_logprobs": [[-0.25, 13048, None], [-0.5, 0, None]],
                },
            }
        ],
        "usage": {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2},
        "metadata": {"weight_version": "default"},
    }


def vllm_tokens_as_ids(answer: dict[str, Any]) -> dict[str, Any]:
    """The same answer of a vLLM that writes tokens as ids, and gives these nowhere else.

    That is its option ``--return-tokens-as-token-ids``, of 2024 and so older than ``return_token_ids``, or the
    parameter ``return_tokens_as_token_ids`` of a request: each ``token`` of the log-probabilities reads
    ``token_id:13048``.
    """
    answer = copy.deepcopy(answer)
    answer.pop("prompt_token_ids", None)
    for choice in answer["choices"]:
        for entry, token in zip(choice["logprobs"]["content"], choice.pop("token_ids"), strict=True):
            entry["token"] = f"token_id:{token}"
    return answer


def responses_events(calls: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """A stream of OpenAI's Responses API: a text, and the call of a function."""
    response = {"id": "resp_1", "object": "response", "model": "m", "status": "in_progress", "output": []}
    text = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    text["content"] = [{"type": "output_text", "text": "Hello there", "annotations": []}]
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
    usage = {
        "input_tokens": 5,
        "output_tokens": 6,
        "total_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": {**text, "content": []}},
        {
            "type": "response.content_part.added",
            "output_index": 0,
            "content_index": 0,
            "item_id": "msg_1",
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
        {
            "type": "response.output_text.delta",
            "output_index": 0,
            "content_index": 0,
            "item_id": "msg_1",
            "delta": "Hello",
            "logprobs": [],
        },
        {
            "type": "response.output_text.delta",
            "output_index": 0,
            "content_index": 0,
            "item_id": "msg_1",
            "delta": " there",
            "logprobs": [],
        },
        {"type": "response.output_item.done", "output_index": 0, "item": text},
        {"type": "response.output_item.added", "output_index": 1, "item": {**call, "arguments": ""}},
        {
            "type": "response.function_call_arguments.delta",
            "output_index": 1,
            "item_id": "fc_1",
            "delta": '{"a"',
        },
        {
            "type": "response.function_call_arguments.delta",
            "output_index": 1,
            "item_id": "fc_1",
            "delta": ": 1}",
        },
        {"type": "response.output_item.done", "output_index": 1, "item": call},
    ]
    output = [text, call]
    if not calls:
        events = [event for event in events if event.get("output_index") != 1]
        output = [text]
    whole = {**response, "status": "completed", "output": output, "usage": usage}
    events.append({"type": "response.completed", "response": whole})
    return [(str(event["type"]), {**event, "sequence_number": i}) for i, event in enumerate(events)]


def anthropic_events() -> list[tuple[str, dict[str, Any]]]:
    """A stream of Anthropic's Messages API: a text and the use of a tool."""
    start = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Let me "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "look."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"city": "O'},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": 'slo"}'},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    return [(str(event["type"]), event) for event in events]


def anthropic_message() -> dict[str, Any]:
    """The same as a whole answer."""
    events = [event for _, event in anthropic_events()]
    content = [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
    ]
    usage = {"input_tokens": 5, "output_tokens": 9}
    return {**events[0]["message"], "content": content, "stop_reason": "tool_use", "usage": usage}
