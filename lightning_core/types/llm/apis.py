"""Raw requests and answers of model APIs, brought into the form of OpenAI's chat completions.

Understood are chat completions themselves, OpenAI's Responses API, and Anthropic's Messages API. Parts that chat
completions do not know are kept as they are. Nothing here raises on odd input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .messages import Message, as_dict, as_list, make_message, make_tool_call, openai_messages

__all__ = ["answer_message", "request_messages", "tool_definition"]

_ANTHROPIC_BLOCKS = ("document", "image", "redacted_thinking", "thinking", "tool_result", "tool_use")
_TEXT_PARTS = ("input_text", "output_text", "text")
_DEFINITION = ("name", "description", "strict")


def request_messages(request: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a raw request; none if it holds none.

    Args:
        request: The body of a request for a chat completion, a response, or an Anthropic message.
    """
    if "messages" in request:
        messages = openai_messages(request["messages"])
        system = _instructions(request.get("system")) if messages else []
        return system + [message for given in messages for message in _unblocked(given)]
    if "model" not in request or "input" not in request:
        return []
    items = request["input"]
    messages = [make_message("user", items)] if isinstance(items, str) else _joined_items(as_list(items))
    return _instructions(request.get("instructions")) + messages if messages else []


def answer_message(answer: Mapping[str, Any]) -> Message | None:
    """Return the model's message of a raw answer that is no chat completion, with ``finish_reason`` where it is known.

    Args:
        answer: The body of a response, or of an Anthropic message.
    """
    if answer.get("type") == "message" and isinstance(answer.get("content"), list):
        messages = _spread("assistant", answer["content"])
        reason = answer.get("stop_reason")
    else:
        messages = _joined_items(as_list(answer.get("output")))
        reason = as_dict(answer.get("incomplete_details")).get("reason")
    if not messages or messages[-1]["role"] != "assistant":
        return None
    if reason is not None:
        messages[-1]["finish_reason"] = reason
    return messages[-1]


def tool_definition(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the definition of a function in the form of chat completions, and that of any other tool as it is."""
    if "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    schema = tool.get("parameters", tool.get("input_schema"))
    if tool.get("type", "function") != "function" and not isinstance(schema, dict):
        return tool
    function = {key: tool[key] for key in _DEFINITION if tool.get(key) is not None}
    if schema is not None:
        function["parameters"] = schema
    return {"type": "function", "function": function}


def _instructions(value: Any) -> list[Message]:
    if value is None:
        return []
    content = _content(value)
    return [make_message("system", content)] if content else []


def _content(value: Any) -> Any:
    """Return a text or a list of parts; a list of a single text as that text."""
    if isinstance(value, str):
        return value
    parts = [_part(as_dict(part)) for part in as_list(value)]
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0].get("text")
    return parts or None


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return _image(part["image_url"], part.get("detail"))
    if kind == "image":
        source = as_dict(part.get("source"))
        if source.get("type") == "url":
            return _image(source.get("url"))
        if source.get("type") == "base64":
            return _image(f"data:{source.get('media_type')};base64,{source.get('data')}")
    return part


def _image(url: Any, detail: Any = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}


def _as_text(value: Any) -> str | None:
    """Return what a tool gave back as text."""
    if value is None or isinstance(value, str):
        return value
    texts = [_part(as_dict(part)).get("text") for part in as_list(value)]
    if texts and all(isinstance(text, str) for text in texts):
        return "".join(map(str, texts))
    return json.dumps(value)


# Anthropic


def _unblocked(message: Message) -> list[Message]:
    """Return the messages that one of a request stands for, which is itself unless it has blocks of Anthropic's."""
    blocks = message.get("content")
    if not isinstance(blocks, list):
        return [message]
    if not any(as_dict(block).get("type") in _ANTHROPIC_BLOCKS for block in as_list(blocks)):
        return [message]
    return _spread(message.get("role"), as_list(blocks))


def _spread(role: Any, blocks: list[Any]) -> list[Message]:
    """Make messages of Anthropic's blocks: results of tools are messages of their own, before the rest."""
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    messages: list[Message] = []
    reasoning: list[str] = []
    for block in filter(None, map(as_dict, blocks)):
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(make_tool_call(block.get("id"), block.get("name"), block.get("input")))
        elif kind == "tool_result":
            text = _as_text(block.get("content"))
            messages.append(make_message("tool", text, tool_call_id=block.get("tool_use_id")))
        elif kind == "thinking":
            reasoning.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            content.append(block)
    if content or calls or reasoning or not messages:
        message = make_message(
            role, _content(content), tool_calls=calls, reasoning_content="\n".join(reasoning)
        )
        messages.append(message)
    return messages


# Responses


def _joined_items(items: list[Any]) -> list[Message]:
    """Make messages of the items of a response: those of the model that follow each other are one message."""
    messages: list[Message] = []
    parts: list[dict[str, Any]] = []  # the content of the last message, if it is the model's
    for item in filter(None, map(as_dict, items)):
        kind = str(item.get("type") or "message")
        models = item.get("role") == "assistant" if kind == "message" else not kind.endswith("_output")
        if models:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            _add(messages[-1], parts, kind, item)
            continue
        _close(messages, parts)
        parts = []
        if kind == "message":
            messages.append(make_message(item.get("role"), _content(item.get("content"))))
        else:
            messages.append(
                make_message("tool", _as_text(item.get("output")), tool_call_id=item.get("call_id"))
            )
    _close(messages, parts)
    return messages


def _add(message: Message, parts: list[dict[str, Any]], kind: str, item: dict[str, Any]) -> None:
    if kind == "function_call":
        call = make_tool_call(item.get("call_id"), item.get("name"), item.get("arguments"))
        message.setdefault("tool_calls", []).append(call)
    elif kind == "custom_tool_call":
        custom = {"name": item.get("name"), "input": item.get("input")}
        call = {"id": item.get("call_id"), "type": "custom", "custom": custom}
        message.setdefault("tool_calls", []).append(call)
    elif kind == "reasoning":
        texts = [as_dict(part).get("text") for part in as_list(item.get("content") or item.get("summary"))]
        reasoning = [message.get("reasoning_content"), *texts]
        joined = "\n".join(text for text in reasoning if isinstance(text, str) and text)
        if joined:
            message["reasoning_content"] = joined
    elif kind == "message":
        content = item.get("content")
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        else:
            parts.extend(_part(as_dict(part)) for part in as_list(content))
    else:
        parts.append(item)


def _close(messages: list[Message], parts: list[dict[str, Any]]) -> None:
    """Give the model's last message its content, which is a text where all parts are texts."""
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if parts and len(texts) == len(parts):
        messages[-1]["content"] = "".join(text for text in texts if isinstance(text, str))
    elif parts:
        messages[-1]["content"] = parts
