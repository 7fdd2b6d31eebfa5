"""An upstream that answers every API in the shape that real clients expect, and calls tools before it answers."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from aiohttp import web

from .upstream import Request, always
from .wire import (
    anthropic_events,
    anthropic_message,
    responses_events,
    sse,
    vllm_chat,
    vllm_chat_chunks,
    vllm_text,
    vllm_tool_chunks,
)

__all__ = ["ANSWER_IDS", "STREAMED_TOOL_IDS", "speak"]

ANSWER_IDS = [13048, 0, 151645]
"""Ids of the tokens of an answer, and of that which calls a tool."""
STREAMED_TOOL_IDS = [10, 11, 12, 13, 14, 15, 16]
"""Those of a stream that calls tools."""


async def speak(request: Request) -> web.StreamResponse:
    """Answer a request; its ``user`` may ask for an error (``429``), or for a stream without an end (``endless``)."""
    asked = str(request.json.get("user"))
    if asked.isdigit():
        error = {"message": "as you wish", "type": "wished", "param": None, "code": int(asked)}
        return await always({"error": error}, int(asked), **{"x-request-id": "r7"})(request)
    if asked == "endless":
        response = await request.begin()
        await response.write(sse(*vllm_chat_chunks()[:2], done=False))
        await asyncio.Event().wait()
    return await _APIS[request.path](request)


async def _chat(request: Request) -> web.StreamResponse:
    body = request.json
    calls_tools = bool(body.get("tools")) and body["messages"][-1]["role"] != "tool"
    if body.get("stream"):
        return await request.stream(sse(*(vllm_tool_chunks() if calls_tools else vllm_chat_chunks())))
    answer = vllm_chat()
    if calls_tools:
        function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
        call = {"id": "call-a", "type": "function", "function": function}
        answer["choices"][0]["message"] |= {"content": None, "tool_calls": [call]}
        answer["choices"][0]["finish_reason"] = "tool_calls"
    return await always(answer, **{"x-request-id": "r7"})(request)


async def _text(request: Request) -> web.StreamResponse:
    if request.json.get("stream"):
        return await request.stream(sse(*vllm_text(streamed=True)))
    return await always(vllm_text())(request)


async def _responses(request: Request) -> web.StreamResponse:
    given: Any = request.json["input"]
    answered = isinstance(given, list) and given[-1].get("type") == "function_call_output"
    events = responses_events(calls=not answered)
    if request.json.get("stream"):
        return await request.stream(sse(*events, done=False))
    return await always(events[-1][1]["response"])(request)


async def _messages(request: Request) -> web.StreamResponse:
    if request.json.get("stream"):
        return await request.stream(sse(*anthropic_events(), done=False))
    return await always(anthropic_message())(request)


async def _embeddings(request: Request) -> web.StreamResponse:
    # Clients ask for base64 unless they are told not to.
    vector: Any = [0.5]
    if request.json.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<f", *vector)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return await always({"object": "list", "model": "m", "data": data, "usage": usage})(request)


_APIS = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _text,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/embeddings": _embeddings,
}
