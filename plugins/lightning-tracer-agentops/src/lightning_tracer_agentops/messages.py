"""Messages, answers and parameters of a model in LangChain's form, as attributes of a span."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, LLMResult

from .attributes import Attributes, message_attributes, tool_attributes

__all__ = ["answer_attributes", "parameter_attributes", "prompt_attributes"]

_PARAMETERS = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    **{
        name: name
        for name in (
            "frequency_penalty",
            "max_tokens",
            "presence_penalty",
            "seed",
            "temperature",
            "top_k",
            "top_p",
        )
    },
}
_MODEL_KEYS = ("model", "model_name", "model_id", "deployment_name")


def prompt_attributes(messages: Sequence[BaseMessage]) -> Attributes:
    """Return ``gen_ai.prompt.{i}.role`` and its like."""
    entries = [entry for message in messages for entry in _messages(message)]
    attributes: Attributes = {}
    for index, entry in enumerate(entries):
        attributes.update(message_attributes(f"gen_ai.prompt.{index}", entry))
    return attributes


def _messages(message: BaseMessage) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = convert_to_openai_messages([message])
    except (ValueError, KeyError, TypeError):
        # Content that is of no known form. It is what the model is given all the same.
        return [{"role": message.type, "content": message.content}]
    for entry in entries:
        if isinstance(message, AIMessage) and entry["role"] == "assistant":
            entry.update(_calls(message))
            entry["reasoning_content"] = message.additional_kwargs.get("reasoning_content")
    return entries


def _calls(message: AIMessage) -> dict[str, Any]:
    """Return the calls of tools: with the very text of their arguments where it is known, also if it is no JSON."""
    raw = message.additional_kwargs.get("tool_calls")
    if isinstance(raw, list) and raw:
        return {"tool_calls": raw}
    calls = [(call, json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    wrong = [(call, call["args"]) for call in message.invalid_tool_calls]
    entries = [
        {"id": call["id"], "function": {"name": call["name"], "arguments": arguments}}
        for call, arguments in (*calls, *wrong)
    ]
    return {"tool_calls": entries} if entries else {}


def answer_attributes(result: LLMResult) -> Attributes:
    """Return ``gen_ai.completion.{i}.role`` and its like, the usage, and what names the answer."""
    attributes: Attributes = {}
    usage: Mapping[str, Any] = {}
    facts: dict[str, Any] = dict(result.llm_output or {})
    for index, generation in enumerate(result.generations[0] if result.generations else ()):
        prefix = f"gen_ai.completion.{index}"
        info: dict[str, Any] = dict(generation.generation_info or {})
        if isinstance(generation, ChatGeneration):
            message = generation.message
            attributes.update(message_attributes(prefix, _messages(message)[-1]))
            info.update(message.response_metadata)
            usage = usage or getattr(message, "usage_metadata", None) or {}
        else:
            attributes.update(message_attributes(prefix, {"role": "assistant", "content": generation.text}))
        reason = info.get("finish_reason") or info.get("stop_reason")
        if isinstance(reason, str):
            attributes[f"{prefix}.finish_reason"] = reason
        facts = {**info, **facts}
    attributes.update(_usage(usage or facts.get("token_usage") or facts.get("usage") or {}))
    for key, names in (
        ("gen_ai.response.model", ("model_name", "model")),
        ("gen_ai.response.id", ("id",)),
        ("gen_ai.openai.system_fingerprint", ("system_fingerprint",)),
    ):
        value = next(
            (facts[name] for name in names if isinstance(facts.get(name), str) and facts[name]), None
        )
        if value is not None:
            attributes[key] = value
    return attributes


def _usage(usage: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, names in (
        ("gen_ai.usage.prompt_tokens", ("input_tokens", "prompt_tokens")),
        ("gen_ai.usage.completion_tokens", ("output_tokens", "completion_tokens")),
        ("gen_ai.usage.total_tokens", ("total_tokens",)),
    ):
        value = next((usage[name] for name in names if isinstance(usage.get(name), int)), None)
        if value is not None:
            yield key, value


def parameter_attributes(parameters: Mapping[str, Any], metadata: Mapping[str, Any]) -> Attributes:
    """Return ``gen_ai.request.model`` and its like, and the tools that the model is offered."""
    attributes: Attributes = {}
    model = next((parameters[key] for key in _MODEL_KEYS if isinstance(parameters.get(key), str)), None)
    for key, value in (
        ("gen_ai.request.model", model or metadata.get("ls_model_name")),
        ("gen_ai.system", metadata.get("ls_provider")),
    ):
        if isinstance(value, str):
            attributes[key] = value
    for name, key in _PARAMETERS.items():
        value = parameters.get(name)
        if isinstance(value, int | float | str) or _is_texts(value):
            attributes[f"gen_ai.request.{key}"] = value
    tools = parameters.get("tools") or parameters.get("functions")
    if isinstance(tools, list):
        attributes.update(tool_attributes(cast("list[Any]", tools)))
    return attributes


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value))
