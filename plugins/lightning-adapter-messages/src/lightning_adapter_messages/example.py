"""``ChatExample``: one LLM call as a line of a fine-tuning file, checked against what such a file may hold."""

from __future__ import annotations

import json
from typing import Any, NotRequired, TypedDict

from lightning_core.types import LLMCall, Message
from lightning_core.types.llm.messages import as_dict, as_list

__all__ = ["ChatExample", "UnfitCallError", "make_example"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
# Names that frameworks have for the same roles.
_SAME_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}
# Parts of a content that chat completions know, and what each holds.
_PARTS = {
    "text": "text",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "refusal": "refusal",
}


class ChatExample(TypedDict):
    """What the model was given and what it answered, in the form of OpenAI's chat completions.

    Attributes:
        messages: The prompt, and last the model's answer.
        tools: Definitions of the tools that it was offered, if there were any.
    """

    messages: list[Message]
    tools: NotRequired[list[dict[str, Any]]]


class UnfitCallError(ValueError):
    """A call that would make no valid example. The message says why, as the end of a sentence."""


def make_example(call: LLMCall, *, keep_reasoning: bool) -> tuple[ChatExample, list[str]]:
    """Make the example of a call.

    Ids of tool calls that were not recorded are made up, since they only say which message answers which call.

    Args:
        call: A call with an answer.
        keep_reasoning: Whether messages keep their ``reasoning_content``.

    Returns:
        The example, and what was filled in or left out, one phrase each.

    Raises:
        UnfitCallError: If a part is missing, or the messages do not fit each other.
    """
    if not call.messages:
        raise UnfitCallError("it is a plain text completion, and no chat")
    if call.parameters.get("previous_response_id") is not None:
        raise UnfitCallError(
            "it goes on from a response whose messages only the server has (previous_response_id)"
        )
    if call.response is None:
        raise UnfitCallError("its span holds no answer")
    notes: list[str] = []
    made_up: set[str] = set()
    given = [*call.messages, call.response.message]
    messages = [_message(message, place, made_up, notes) for place, message in enumerate(given)]
    if messages[-1]["role"] != "assistant":
        raise UnfitCallError(f"its answer has the role {messages[-1]['role']!r}")
    _link(messages, made_up, notes)
    if keep_reasoning:
        _keep_reasoning(given, messages)
    elif any(_reasoning(message) for message in given):
        notes.append("what the model thought is left out")
    example = ChatExample(messages=messages)
    tools = [tool for tool in call.tools if isinstance(tool.get("function"), dict)]
    if tools:
        example["tools"] = [{"type": "function", **tool} for tool in tools]
    if len(tools) < len(call.tools):
        notes.append(f"{len(call.tools) - len(tools)} tools that are no functions are left out")
    if len(call.choices) > 1:
        notes.append(f"it has {len(call.choices)} choices, and the example holds the first")
    return example, notes


def _message(message: Message, place: int, made_up: set[str], notes: list[str]) -> Message:
    role = message.get("role")
    role = _SAME_ROLES.get(role, role) if isinstance(role, str) else None
    if role is None:
        raise UnfitCallError(f"message {place} has no role")
    if role not in _ROLES:
        raise UnfitCallError(f"message {place} has the role {role!r}, which chat completions do not know")
    made: Message = {"role": role, "content": _content(message.get("content"), place)}
    if isinstance(message.get("name"), str):
        made["name"] = message["name"]
    if role == "assistant":
        calls = [
            _tool_call(as_dict(call), place, number, made_up, notes)
            for number, call in enumerate(as_list(message.get("tool_calls")))
        ]
        if calls:
            made["tool_calls"] = calls
        if isinstance(message.get("refusal"), str):
            made["refusal"] = message["refusal"]
        elif made["content"] is None and not calls:
            raise UnfitCallError(f"message {place}, of the assistant, is empty")
    elif role == "tool":
        made["content"] = made["content"] or ""
        if isinstance(message.get("tool_call_id"), str):
            made["tool_call_id"] = message["tool_call_id"]
    elif made["content"] is None:
        raise UnfitCallError(
            f"message {place}, of the {role}, is empty; is the tracer allowed to record contents?"
        )
    return made


def _content(content: Any, place: int) -> Any:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UnfitCallError(f"the content of message {place} is neither text nor a list of parts")
    parts: list[dict[str, Any]] = []
    for item in as_list(content):
        part = as_dict(item)
        held = _PARTS.get(str(part.get("type")))
        if held is None or part.get(held) is None:
            raise UnfitCallError(
                f"message {place} has a part of type {part.get('type')!r}, which chat completions do not know"
            )
        parts.append({"type": part["type"], held: part[held]})
    return parts or None


def _tool_call(
    call: dict[str, Any], place: int, number: int, made_up: set[str], notes: list[str]
) -> dict[str, Any]:
    call_id = call.get("id")
    if not isinstance(call_id, str) or not call_id:
        call_id = f"call_{place}_{number}"
        made_up.add(call_id)
    if isinstance(call.get("custom"), dict):
        return {"id": call_id, "type": "custom", "custom": call["custom"]}
    function = as_dict(call.get("function"))
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise UnfitCallError(f"tool call {number} of message {place} has no name")
    if arguments is None:
        notes.append(
            f"the arguments of tool call {number} of message {place} were not recorded, and are empty here"
        )
        arguments = "{}"
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _link(messages: list[Message], made_up: set[str], notes: list[str]) -> None:
    """Check that each tool call before the answer is answered, and fill in the ids that say by which message."""
    waiting: dict[str, dict[str, Any]] = {}
    asked = 0
    for place, message in enumerate(messages):
        if message["role"] == "tool":
            _answer(message, place, waiting, made_up, notes)
            continue
        if waiting:
            unanswered = next(iter(waiting))
            raise UnfitCallError(
                f"tool call {unanswered!r} of message {asked} is not answered before message {place}"
            )
        asked = place
        waiting = {call["id"]: call for call in message.get("tool_calls", ())}
    if made_up:
        notes.append(f"ids of tool calls that were not recorded are made up: {', '.join(sorted(made_up))}")


def _answer(
    message: Message, place: int, waiting: dict[str, dict[str, Any]], made_up: set[str], notes: list[str]
) -> None:
    answers = message.get("tool_call_id")
    if answers in waiting:
        del waiting[answers]
        return
    if answers is None:
        if not waiting:
            raise UnfitCallError(f"message {place}, of a tool, answers no tool call")
        answers = message["tool_call_id"] = next(iter(waiting))
        del waiting[answers]
        notes.append(
            f"message {place} does not say which tool call it answers; {answers!r} is the next in order"
        )
        return
    unnamed = next((call_id for call_id in waiting if call_id in made_up), None)
    if unnamed is None:
        raise UnfitCallError(
            f"message {place} answers the tool call {answers!r}, which was not made before it"
        )
    made_up.remove(unnamed)
    waiting.pop(unnamed)["id"] = answers


def _reasoning(message: Message) -> Any:
    return message.get("reasoning_content") or message.get("reasoning")


def _keep_reasoning(given: list[Message], messages: list[Message]) -> None:
    for message, made in zip(given, messages, strict=True):
        reasoning = _reasoning(message)
        if isinstance(reasoning, str):
            made["reasoning_content"] = reasoning
