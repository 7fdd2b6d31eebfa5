"""Chat messages as spans carry them, brought into the form of OpenAI's chat completions.

A message is a JSON-able dict: ``role`` (``None`` where the span does not tell), ``content`` (text, a list of parts, or
``None``), and where they apply ``tool_calls``, ``tool_call_id``, ``name`` and ``reasoning_content``. Nothing here
raises on sparse or odd attributes: what cannot be read is left out.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, cast

from pydantic_core import from_json

__all__ = [
    "MESSAGE_KEYS",
    "Message",
    "as_dict",
    "as_list",
    "genai_messages",
    "has_indexed",
    "indexed",
    "indexed_messages",
    "make_message",
    "make_tool_call",
    "messages_of_entries",
    "openai_messages",
    "openinference_messages",
    "parsed",
]

Message: TypeAlias = dict[str, Any]

MESSAGE_KEYS = ("gen_ai.prompt.", "gen_ai.completion.", "llm.input_messages.", "llm.output_messages.")
"""What the keys of messages begin with that are scattered over numbered attributes."""


def as_dict(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a dict, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return ``value`` as a list if it is a list or tuple, else an empty one."""
    if isinstance(value, list):
        return cast("list[Any]", value)
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else []


def parsed(value: Any) -> Any:
    """Return what a JSON text holds, or a copy of a value that is no text; ``None`` if it is no JSON."""
    try:
        # Twice as fast as json.loads, and refuses what is nested too deeply with a ValueError.
        return from_json(value) if isinstance(value, str | bytes) else copy.deepcopy(value)
    except (ValueError, RecursionError):
        return None


def has_indexed(attributes: Mapping[str, Any], prefixes: tuple[str, ...]) -> bool:
    """Say whether a key starts with one of the ``prefixes``."""
    for key in attributes:  # noqa: SIM110 - called for every span, and any() takes three times as long
        if key.startswith(prefixes):
            return True
    return False


def indexed(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Gather ``<prefix>3.tool_calls.0.name = "f"`` into nested dicts, one for each first index, in its order.

    Gaps in the numbering are closed. Deeper indices stay dict keys; :func:`_entries` lists them.
    """
    top: dict[str, Any] = {}
    cut = len(prefix)
    for key, value in attributes.items():
        if key.startswith(prefix):
            _place(top, key[cut:].split("."), value)
    return _entries(top)


def indexed_messages(attributes: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Gather what is under each of :data:`MESSAGE_KEYS`, as :func:`indexed` does, but in one go."""
    tops: dict[str, dict[str, Any]] = {}
    for key, value in attributes.items():
        found = _prefix_and_path(key)
        if found is None:
            continue
        prefix, path = found
        top = tops.get(prefix)
        if top is None:
            top = tops[prefix] = {}
        node = top.get(path[0])
        if len(path) != 2 or (node is not None and path[1] in node):
            _place(top, path, value)
        elif node is None:
            top[path[0]] = {path[1]: value}
        else:
            node[path[1]] = value
    return {prefix: _entries(top) for prefix, top in tops.items()}


@lru_cache(2048)  # the keys of one span are those of the next
def _prefix_and_path(key: str) -> tuple[str, list[str]] | None:
    if not key.startswith(MESSAGE_KEYS):
        return None
    cut = key.index(".", 7) + 1  # behind the second dot of each
    return key[:cut], key[cut:].split(".")


def _place(node: dict[str, Any], path: list[str], value: Any) -> None:
    if len(path) < 2:
        return
    for part in path[:-1]:
        child: Any = node.get(part)
        if not isinstance(child, dict):
            # A value already stands where another key needs a level: keep both.
            node[part] = child = {} if child is None else {"": child}
        node = cast("dict[str, Any]", child)
    leaf = path[-1]
    if isinstance(node.get(leaf), dict):
        node[leaf][""] = value
    else:
        node[leaf] = value


def _entries(level: Any) -> list[dict[str, Any]]:
    if not isinstance(level, dict):
        return []
    entries = cast("dict[str, Any]", level)
    numbered = [key for key, value in entries.items() if key.isdecimal() and isinstance(value, dict)]
    if len(numbered) > 1:
        numbered.sort(key=lambda key: (len(key), key))  # by length first, which orders numbers of any size
    return [entries[key] for key in numbered]


def _plain(value: Any) -> Any:
    return value.get("") if isinstance(value, dict) else value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - see indexed()


def make_message(role: Any, content: Any, **optional: Any) -> Message:
    """Make a message with those ``optional`` fields that hold something.

    Args:
        role: The role; anything but a text is none, and then what the message does may tell.
        content: A text, a list of parts, or ``None``.
        optional: ``tool_calls`` and other fields.
    """
    message: Message = {"role": role if isinstance(role, str) else None, "content": content}
    message.update({key: value for key, value in optional.items() if value})
    if message["role"] is None:
        # Only the model calls tools, and only a tool answers a call.
        if "tool_calls" in message:
            message["role"] = "assistant"
        elif "tool_call_id" in message:
            message["role"] = "tool"
    return message


def make_tool_call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """Make an entry of ``tool_calls``; arguments that are no text become JSON."""
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def openai_messages(value: Any) -> list[Message]:
    """Return the messages of a raw chat-completion request, or nothing if ``value`` is not a list of them."""
    messages = as_list(value)
    if messages and all(isinstance(message, dict) and "role" in message for message in messages):
        return messages
    return []


def messages_of_entries(entries: Iterable[dict[str, Any]]) -> list[Message]:
    """Read ``gen_ai.prompt.{i}.role`` and its like, as Traceloop's and AgentOps' instrumentations write them."""
    messages: list[Message] = []
    for entry in entries:
        role, content = entry.get("role"), entry.get("content")
        if len(entry) == 2 and isinstance(role, str) and isinstance(content, str):
            messages.append({"role": role, "content": content})
            continue
        calls: list[dict[str, Any]] = []
        for call in _entries(entry.get("tool_calls")):
            function = as_dict(call.get("function")) or call
            calls.append(make_tool_call(call.get("id"), function.get("name"), function.get("arguments")))
        single = as_dict(entry.get("function_call"))
        if single:
            calls.append(make_tool_call(single.get("id"), single.get("name"), single.get("arguments")))
        message = make_message(
            role,
            _plain(content),
            tool_calls=calls,
            tool_call_id=entry.get("tool_call_id"),
            name=entry.get("name"),
            reasoning_content=entry.get("reasoning_content") or entry.get("reasoning"),
        )
        if "finish_reason" in entry:
            message["finish_reason"] = entry["finish_reason"]
        messages.append(message)
    return messages


def openinference_messages(entries: Iterable[dict[str, Any]]) -> list[Message]:
    """Read OpenInference's ``llm.input_messages.{i}.message.role`` and its like."""
    messages: list[Message] = []
    for entry in entries:
        fields = as_dict(entry.get("message"))
        calls: list[dict[str, Any]] = []
        for item in _entries(fields.get("tool_calls")):
            call = as_dict(item.get("tool_call"))
            function = as_dict(call.get("function"))
            calls.append(make_tool_call(call.get("id"), function.get("name"), function.get("arguments")))
        if fields.get("function_call_name"):
            calls.append(
                make_tool_call(None, fields["function_call_name"], fields.get("function_call_arguments_json"))
            )
        parts = [_openinference_part(part) for part in _entries(fields.get("contents"))]
        content = _plain(fields.get("content"))
        if content is None and parts:
            content = parts
        messages.append(
            make_message(
                fields.get("role"),
                content,
                tool_calls=calls,
                tool_call_id=fields.get("tool_call_id"),
                name=fields.get("name"),
            )
        )
    return messages


def _openinference_part(entry: dict[str, Any]) -> dict[str, Any]:
    part = as_dict(entry.get("message_content"))
    if part.get("type") == "image":
        url = as_dict(as_dict(part.get("image")).get("image")).get("url")
        return {"type": "image_url", "image_url": {"url": url}}
    return part


def genai_messages(value: Any) -> list[Message]:
    """Read the JSON of ``gen_ai.input.messages`` and ``gen_ai.output.messages``: messages made of parts."""
    messages: list[Message] = []
    for entry in as_list(parsed(value)):
        if isinstance(entry, str):
            messages.append(make_message(None, entry))
        elif isinstance(entry, dict):
            messages.extend(_genai_message(cast("dict[str, Any]", entry)))
    return messages


def _genai_message(entry: dict[str, Any]) -> Iterable[Message]:
    if "parts" not in entry:
        # Some writers put messages of the chat-completion form here.
        yield {
            **entry,
            **make_message(entry.get("role"), entry.get("content"), tool_calls=entry.get("tool_calls")),
        }
        return
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    answers: list[Message] = []
    reasoning: list[str] = []
    for item in as_list(entry["parts"]):
        part = {"type": "text", "content": item} if isinstance(item, str) else as_dict(item)
        kind = part.get("type")
        if kind == "text":
            content.append({"type": "text", "text": part.get("content")})
        elif kind == "reasoning":
            reasoning.append(str(part.get("content") or ""))
        elif kind == "tool_call":
            calls.append(make_tool_call(part.get("id"), part.get("name"), part.get("arguments")))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            text = result if result is None or isinstance(result, str) else json.dumps(result)
            answers.append(make_message("tool", text, tool_call_id=part.get("id")))
        elif part:
            content.append(part)
    yield from answers
    if answers and not content and not calls:
        return
    single = len(content) == 1 and content[0].get("type") == "text"
    message = make_message(
        entry.get("role"),
        content[0]["text"] if single else content or None,
        tool_calls=calls,
        name=entry.get("name"),
        reasoning_content="\n".join(reasoning),
    )
    if "finish_reason" in entry:
        message["finish_reason"] = entry["finish_reason"]
    yield message
