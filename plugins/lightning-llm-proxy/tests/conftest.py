"""A store with an attempt, and proxies and upstreams that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from lightning_llm_proxy import LLMProxy

from lightning_core.store import InMemoryLightningStore
from lightning_core.types import LLMCall, Span

from .upstream import Answer, FakeUpstream


@dataclass
class Attempt:
    """An attempt whose calls are recorded."""

    store: InMemoryLightningStore
    rollout_id: str
    attempt_id: str

    @property
    def prefix(self) -> str:
        return f"/rollout/{self.rollout_id}/attempt/{self.attempt_id}"

    async def spans(self) -> list[Span]:
        return await self.store.query_spans(self.rollout_id, self.attempt_id)

    async def span(self) -> Span:
        spans = await self.spans()
        assert len(spans) == 1
        return spans[0]

    async def call(self) -> LLMCall:
        return LLMCall.from_span(await self.span())


@pytest.fixture
async def attempt() -> Attempt:
    store = InMemoryLightningStore()
    rollout = await store.start_rollout({"task": 1})
    return Attempt(store, rollout.rollout_id, rollout.attempt.attempt_id)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def serve(stack: AsyncExitStack) -> Callable[..., Awaitable[FakeUpstream]]:
    """Starts an upstream that answers as is said."""

    async def start(answer: Answer, owner: str = "vllm") -> FakeUpstream:
        return await stack.enter_async_context(FakeUpstream(answer, owner))

    return start


@pytest.fixture
def gateway(attempt: Attempt, stack: AsyncExitStack) -> Callable[..., Awaitable[LLMProxy]]:
    """Starts a proxy in front of upstreams, which are called ``m`` unless they are given with settings."""

    async def start(*upstreams: FakeUpstream | dict[str, Any], **settings: Any) -> LLMProxy:
        models = [
            {"name": "m", "base_url": each.url} if isinstance(each, FakeUpstream) else each
            for each in upstreams
        ]
        proxy = LLMProxy(models, **{"store": attempt.store, **settings})
        return await stack.enter_async_context(proxy)

    return start


@pytest.fixture
async def client(stack: AsyncExitStack) -> aiohttp.ClientSession:
    return await stack.enter_async_context(aiohttp.ClientSession())


@pytest.fixture
def post(client: aiohttp.ClientSession, attempt: Attempt) -> Callable[..., Awaitable[tuple[int, bytes]]]:
    """Sends a request of the attempt, and gives the status and the body of the answer."""

    async def send(
        proxy: LLMProxy, path: str = "chat/completions", *, prefix: str | None = None, **body: Any
    ) -> tuple[int, bytes]:
        prefix = attempt.prefix if prefix is None else prefix
        url = proxy.url.removesuffix("/v1") + f"{prefix}/v1/{path}"
        async with client.post(url, json={"model": "m", **body}) as response:
            return response.status, await response.read()

    return send
