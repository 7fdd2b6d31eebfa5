"""Calls of a model as attributes of a span, under the names that AgentOps gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from pydantic import BaseModel

from lightning_core.types.llm import LLMCall

__all__ = ["KIND", "Attributes", "call_attributes", "message_attributes", "text_of", "tool_attributes"]

Attributes: TypeAlias = dict[str, Any]

KIND = "agentops.span.kind"
"""Names what a span stands for: ``llm``, ``tool``, ``chain`` and so on."""


def text_of(value: Any) -> str:
    """Return a text as it is, and anything else as JSON; what JSON has no form for becomes text in it."""
    return value if isinstance(value, str) else json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True, warnings=False, fallback=str)
    if isinstance(value, set | frozenset):
        return list(cast("set[Any]", value))
    return str(value)


def message_attributes(prefix: str, message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield ``<prefix>.role`` and its like for a message of the chat-completion form."""
    if message.get("role"):
        yield f"{prefix}.role", message["role"]
    content = message.get("content")
    calls = message.get("tool_calls") or ()
    if content or not calls:
        yield f"{prefix}.content", text_of(content or "")
    for index, call in enumerate(calls):
        function = call.get("function") or call.get("custom") or {}
        fields = (
            ("id", call.get("id")),
            ("name", function.get("name")),
            ("arguments", function.get("arguments", function.get("input"))),
        )
        for key, value in fields:
            if value is not None:
                yield f"{prefix}.tool_calls.{index}.{key}", text_of(value)
    for key in ("tool_call_id", "name", "reasoning_content", "refusal"):
        if message.get(key):
            yield f"{prefix}.{key}", text_of(message[key])


def tool_attributes(tools: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield ``gen_ai.request.functions.{i}.name`` and its like for the tools that a model is offered."""
    for index, tool in enumerate(tools):
        definition = cast("dict[str, Any]", tool) if isinstance(tool, dict) else {}
        function = cast("dict[str, Any]", definition.get("function", definition))
        for name in ("name", "description", "parameters"):
            if function.get(name) is not None:
                yield f"gen_ai.request.functions.{index}.{name}", text_of(function[name])


def call_attributes(call: LLMCall) -> Attributes:
    """Return all that is known of a call."""
    attributes: Attributes = {}
    for name, value in (
        ("gen_ai.response.model", call.model if call.choices else None),
        ("gen_ai.response.id", call.response_id),
        ("gen_ai.usage.prompt_tokens", call.input_tokens),
        ("gen_ai.usage.completion_tokens", call.output_tokens),
        ("llm.prompts.0.prompt.text", call.text),
    ):
        if value is not None:
            attributes[name] = value
    if call.input_tokens is not None and call.output_tokens is not None:
        attributes["gen_ai.usage.total_tokens"] = call.input_tokens + call.output_tokens
    for parameter, value in call.parameters.items():
        name = "streaming" if parameter == "stream" else parameter
        if value is not None:
            attributes[f"gen_ai.request.{name}"] = (
                value if isinstance(value, bool | int | float) else text_of(value)
            )
    attributes.update(tool_attributes(call.tools))
    for index, message in enumerate(call.messages):
        attributes.update(message_attributes(f"gen_ai.prompt.{index}", message))
    for index, choice in enumerate(call.choices):
        prefix = f"gen_ai.completion.{index}"
        attributes.update(message_attributes(prefix, choice.message))
        if choice.finish_reason is not None:
            attributes[f"{prefix}.finish_reason"] = choice.finish_reason
    return attributes
