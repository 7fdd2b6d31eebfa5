"""A small server that speaks OpenAI's and Anthropic's protocols; `python model_server.py` prints its port.

It answers with the text of the last message, a little later or earlier each time, so that answers overtake each other.
Where tools are offered, it has the first one called before it answers. ``"return_token_ids"`` gives token ids as vLLM
does, and ``"logprobs"`` log-probabilities. ``"together": 200`` in a request holds the answer
back until 200 such requests have come, from wherever. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
LOGPROB = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


def text_of(content: Any) -> str:
    """The text of a message, also of one that is made of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def pieces(text: str) -> list[str]:
    """A text in three parts."""
    third = len(text) // 3 + 1
    return [text[start : start + third] for start in range(0, len(text), third)]


class Model:
    """Answers, and counts the answers by their path."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.served: Counter[str] = Counter()
        self.barriers: dict[int, asyncio.Barrier] = {}

    async def receive(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        if (number := body.get("together")) is not None:
            await self.barriers.setdefault(number, asyncio.Barrier(number)).wait()
        await asyncio.sleep(random.random() * 0.004)
        self.served[request.path] += 1
        return body

    async def show_served(self, request: web.Request) -> web.Response:
        return web.json_response(self.served)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.receive(request)
        last = body["messages"][-1]
        head = {"id": f"chatcmpl-{next(self.numbers)}", "created": 1, "model": "echo"}
        if body.get("tools") and last["role"] != "tool":
            function = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
            call = {"id": f"call-{next(self.numbers)}", "type": "function", "function": function}
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        else:
            message = {"role": "assistant", "content": text_of(last["content"])}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        if not body.get("stream"):
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "message": message}
            if body.get("return_token_ids"):
                choice["token_ids"] = [4, 5, 6]
                head["prompt_token_ids"] = [1, 2, 3]
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [LOGPROB] * 3}
            return web.json_response(
                {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE}
            )
        head["object"] = "chat.completion.chunk"
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": piece} for piece in pieces(message["content"] or "")
        ]
        if "tool_calls" in message:
            calls = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
            deltas = [{"role": "assistant", "tool_calls": calls}]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        if body.get("return_token_ids"):
            for number, choice in enumerate(choices):
                choice["token_ids"] = [4 + number]
        if body.get("logprobs"):
            for choice in choices:
                choice["logprobs"] = {"content": [LOGPROB]}
        choices.append({"index": 0, "delta": {}, "finish_reason": reason})
        first = {"prompt_token_ids": [1, 2, 3]} if body.get("return_token_ids") else {}
        chunks = [json.dumps({**head, **first, "choices": [choices[0]]})]
        chunks += [json.dumps({**head, "choices": [choice]}) for choice in choices[1:]]
        if body.get("stream_options", {}).get("include_usage"):
            chunks.append(json.dumps({**head, "choices": [], "usage": USAGE}))
        return await stream(request, [*chunks, "[DONE]"])

    async def responses(self, request: web.Request) -> web.StreamResponse:
        body = await self.receive(request)
        asked = body["input"]
        text = asked if isinstance(asked, str) else text_of(asked[-1]["content"])
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {
            "type": "message",
            "id": f"msg-{next(self.numbers)}",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        return web.json_response(
            {
                "id": f"resp-{next(self.numbers)}",
                "object": "response",
                "created_at": 1,
                "model": "echo",
                "status": "completed",
                "output": [message],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "usage": {
                    "input_tokens": 3,
                    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                    "output_tokens": 3,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 6,
                },
            }
        )

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await self.receive(request)
        text = text_of(body["messages"][-1]["content"])
        answer: dict[str, Any] = {
            "id": f"msg_{next(self.numbers)}",
            "type": "message",
            "role": "assistant",
            "model": "echo",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 3},
        }
        if not body.get("stream"):
            return web.json_response(answer)
        begun = {
            **answer,
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 3, "output_tokens": 0},
        }
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
                for piece in pieces(text)
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 3},
            },
            {"type": "message_stop"},
        ]
        return await stream(request, map(json.dumps, events), [event["type"] for event in events])


async def stream(
    request: web.Request, data: Iterable[str], names: Iterable[str] | None = None
) -> web.StreamResponse:
    """Send server-sent events, one write for each."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for name, each in zip(names or itertools.repeat(None), data, strict=False):
        event = f"event: {name}\n" if name else ""
        await response.write(f"{event}data: {each}\n\n".encode())
        await asyncio.sleep(0)
    await response.write_eof()
    return response


async def serve() -> None:
    """Serve until the standard input ends."""
    model = Model()
    app = web.Application()
    app.router.add_get("/served", model.show_served)
    app.router.add_post("/v1/chat/completions", model.chat)
    app.router.add_post("/v1/responses", model.responses)
    app.router.add_post("/v1/messages", model.messages)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
