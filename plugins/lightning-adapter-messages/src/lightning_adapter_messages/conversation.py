"""Which examples are the beginning of a later one, so that the last one of a conversation holds them all."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

from lightning_core.types import Message
from lightning_core.types.llm.messages import as_dict, as_list, parsed

from .example import ChatExample

__all__ = ["continuations"]


def continuations(examples: Sequence[ChatExample]) -> dict[int, int]:
    """Find the examples that later ones continue: all their messages, the answer included, begin a later prompt.

    Messages are compared by role, content, and the names and arguments of tool calls. A conversation that was edited,
    shortened or begun anew continues nothing, nor does one that offers other tools. This takes time in proportion to
    the number of messages.

    Args:
        examples: Examples in their order.

    Returns:
        For each example that is continued, by its place, the place of the last one that holds it.
    """
    steps: dict[
        tuple[int, Hashable], int
    ] = {}  # a tree of prefixes: from a prefix, by a message, to the longer one
    ends: dict[int, list[int]] = {}
    continued: dict[int, int] = {}
    for place, example in enumerate(examples):
        prefix = steps.setdefault((-1, _canonical(example.get("tools"))), len(steps))
        for message in example["messages"]:
            for earlier in ends.pop(prefix, ()):
                continued[earlier] = place
            prefix = steps.setdefault((prefix, _key(message)), len(steps))
        ends.setdefault(prefix, []).append(place)
    for place in sorted(continued, reverse=True):
        continued[place] = continued.get(continued[place], continued[place])
    return continued


def _key(message: Message) -> Hashable:
    calls: list[Any] = []
    for call in as_list(message.get("tool_calls")):
        function = as_dict(as_dict(call).get("function"))
        arguments = function.get("arguments")
        # Agents that send a call back may write the same arguments with other blanks.
        calls.append([function.get("name"), parsed(arguments) or arguments, as_dict(call).get("custom")])
    return message["role"], _text(message.get("content")), _canonical(calls) if calls else ""


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if all(as_dict(part).get("type") == "text" for part in as_list(content)):
        return "".join(str(as_dict(part).get("text")) for part in as_list(content))
    return _canonical(content)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
