"""Cuts a whole answer into the events of a stream, for a client that wants one."""

from __future__ import annotations

from typing import Any, cast

from .jsons import write_json

__all__ = ["as_stream"]


def as_stream(answer: dict[str, Any], *, usage: bool) -> bytes:
    """Return a chat or text completion as server-sent events.

    Args:
        answer: The whole answer.
        usage: Whether the client asks for the usage, which is an event of its own.
    """
    base = {key: value for key, value in answer.items() if key not in ("choices", "usage")}
    if base.get("object") == "chat.completion":
        base["object"] = "chat.completion.chunk"
    choices = answer.get("choices")
    events: list[dict[str, Any]] = []
    for choice in cast("list[dict[str, Any]]", choices) if isinstance(choices, list) else ():
        events += [{**base, "choices": [piece]} for piece in _pieces(choice)]
    if usage:
        events.append({**base, "choices": [], "usage": answer.get("usage")})
    return b"".join(b"data: " + write_json(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _pieces(choice: dict[str, Any]) -> list[dict[str, Any]]:
    if "message" not in choice:
        return [choice]
    message = dict(choice["message"])
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": n, **call} for n, call in enumerate(message["tool_calls"])]
    content = {key: value for key, value in choice.items() if key not in ("message", "finish_reason")}
    end: dict[str, Any] = {
        "index": choice.get("index", 0),
        "delta": {},
        "finish_reason": choice.get("finish_reason"),
    }
    return [{**content, "delta": message, "finish_reason": None}, end]
