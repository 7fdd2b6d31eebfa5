"""An upstream that really speaks HTTP, and answers as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Answer = Callable[["Request"], Awaitable[web.StreamResponse]]


@dataclass
class Request:
    """A request as the upstream got it."""

    path: str
    headers: dict[str, str]
    json: dict[str, Any]
    raw: web.BaseRequest = field(repr=False)

    async def stream(self, *parts: bytes, status: int = 200) -> web.StreamResponse:
        """Answer with a stream of events, in these parts."""
        response = await self.begin(status)
        for part in parts:
            await response.write(part)
        await response.write_eof()
        return response

    async def begin(self, status: int = 200) -> web.StreamResponse:
        """Begin to answer with a stream of events."""
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(self.raw)
        return response


class FakeUpstream:
    """Serves ``answer`` for each POST; notes what was asked, and whose client went away before the end."""

    def __init__(self, answer: Answer, owner: str = "vllm") -> None:
        self.answer = answer
        self.owner = owner
        self.requests: list[Request] = []
        self.active = 0
        self.most_active = 0
        self.cancelled = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        handlers = web.Server(self._handle, handler_cancellation=True)
        self._runner = web.ServerRunner(handlers, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, raw: web.BaseRequest) -> web.StreamResponse:
        if raw.method == "GET" and raw.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "owned_by": self.owner}]})
        request = Request(raw.path, dict(raw.headers), json.loads(await raw.content.read()), raw)
        self.requests.append(request)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        finally:
            self.active -= 1


def always(body: Any, status: int = 200, **headers: str) -> Answer:
    """An answer that is always the same."""

    async def answer(request: Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return answer


def streaming(*parts: bytes) -> Answer:
    """A stream that is always the same."""

    async def answer(request: Request) -> web.StreamResponse:
        return await request.stream(*parts)

    return answer
