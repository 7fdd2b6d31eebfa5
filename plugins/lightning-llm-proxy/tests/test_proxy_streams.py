"""Streams pass as they come, and end early without losing what has come."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import pytest

from lightning_core.types import LLMCall

from .upstream import Request, always
from .wire import sse, vllm_chat, vllm_chat_chunks

BODY = {"model": "m", "messages": [], "stream": True}


@pytest.fixture
def url(attempt):
    def of(proxy, path: str = "chat/completions") -> str:
        return f"{proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)}/{path}"

    return of


async def test_each_event_is_passed_on_before_the_next_one_comes(serve, gateway, client, url):
    chunks = vllm_chat_chunks()
    asked = [asyncio.Event() for _ in chunks]

    async def answer(request: Request):
        response = await request.begin()
        for chunk, next_one in zip(chunks, asked, strict=True):
            await next_one.wait()
            await response.write(sse(chunk, done=False))
        await response.write(b"data: [DONE]\n\n")
        return response

    proxy = await gateway(await serve(answer))
    async with asyncio.timeout(20), client.post(url(proxy), json=BODY) as response:
        # Even the headers come before there is any event.
        assert response.content_type == "text/event-stream"
        for text, next_one in zip(["", "Hi", "!", ""], asked, strict=False):
            next_one.set()
            event = json.loads((await response.content.readuntil(b"\n\n")).removeprefix(b"data: "))
            assert event["choices"][0]["delta"]["content"] == text
        asked[-1].set()
        assert await response.content.read() == b"data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_the_upstreams_work(attempt, serve, gateway, client, url, stream):
    asked, never = asyncio.Event(), asyncio.Event()

    async def answer(request: Request):
        if stream:
            response = await request.begin()
            await response.write(sse(*vllm_chat_chunks()[:2], done=False))
        asked.set()
        await never.wait()
        raise AssertionError("nobody waits for it")

    upstream = await serve(answer)
    proxy = await gateway(upstream)
    if stream:
        response = await client.post(url(proxy), json=BODY)
        assert b"Hi" in await response.content.readuntil(b"Hi")
        response.close()
    else:
        calling = asyncio.create_task(client.post(url(proxy), json=BODY | {"stream": False}))
        await asked.wait()
        calling.cancel()
    async with asyncio.timeout(20):
        await upstream.cancelled.wait()
        while proxy.written == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    span = await attempt.span()
    assert span.attributes["lightning.llm_proxy.client_disconnected"] is True
    if stream:
        # What came is sampled data like any other.
        call = LLMCall.from_span(span)
        assert call.response.message["content"] == "Hi"
        assert call.response.token_ids.ids == [13048]
        assert span.status.status_code == "OK"
    else:
        assert span.attributes["error.type"] == "client_disconnected"
        assert "output.value" not in span.attributes


async def test_a_client_that_leaves_at_the_end_is_recorded_once(attempt, serve, gateway, client, url):
    data = sse(*vllm_chat_chunks())
    upstream = await serve(lambda request: request.stream(data))
    proxy = await gateway(upstream)
    for _ in range(10):
        response = await client.post(url(proxy), json=BODY)
        await response.content.readuntil(b'"stop"')
        response.close()
    async with asyncio.timeout(20):
        while proxy.written < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await proxy.flush()
    assert len(await attempt.spans()) == proxy.written == 10


async def test_a_stream_that_the_upstream_breaks_off_is_no_whole_answer(attempt, serve, gateway, client, url):
    async def answer(request: Request):
        response = await request.begin()
        await response.write(sse(*vllm_chat_chunks()[:2], done=False))
        request.raw.transport.abort()
        return response

    proxy = await gateway(await serve(answer))
    with pytest.raises(aiohttp.ClientError):
        async with client.post(url(proxy), json=BODY) as response:
            await response.read()
    span = await attempt.span()
    assert span.attributes["error.type"] == "upstream_disconnected"
    assert LLMCall.from_span(span).response.message["content"] == "Hi"


async def test_an_upstream_that_falls_silent_is_given_up(attempt, serve, gateway, client, url):
    never = asyncio.Event()

    async def answer(request: Request):
        if not request.json.get("stream"):
            await never.wait()
        response = await request.begin()
        await response.write(sse(*vllm_chat_chunks()[:2], done=False))
        await never.wait()
        return response

    upstream = await serve(answer)
    proxy = await gateway({"name": "m", "base_url": upstream.url, "engine": "vllm", "timeout": 0.2})
    with pytest.raises(aiohttp.ClientError):
        async with client.post(url(proxy), json=BODY) as response:
            await response.read()
    async with client.post(url(proxy), json=BODY | {"stream": False}) as response:
        assert response.status == 504
        assert "does not answer in time" in (await response.json())["error"]["message"]
    first, second = await attempt.spans()
    assert first.attributes["error.type"] == "timeout"
    assert second.attributes["error.type"] == "upstream_timeout"


async def test_a_stream_without_an_end_mark_is_recorded(attempt, serve, gateway, client, url):
    data = sse(*vllm_chat_chunks(), done=False)
    proxy = await gateway(await serve(lambda request: request.stream(data.removesuffix(b"\n\n"))))
    async with client.post(url(proxy), json=BODY) as response:
        await response.read()
    assert (await attempt.call()).response.token_ids.ids == [13048, 0, 151645]


async def test_large_requests_and_answers_pass(attempt, serve, gateway, client, url):
    text = "x" * 3_000_000
    answer = vllm_chat()
    answer["choices"][0]["message"]["content"] = text
    upstream = await serve(always(answer))
    proxy = await gateway(upstream, max_body_mb=4)
    for times, status in ((1, 200), (2, 413)):
        body = {"model": "m", "messages": [{"role": "user", "content": text * times}]}
        data = io.BytesIO(json.dumps(body).encode())
        async with client.post(url(proxy), data=data) as response:
            assert response.status == status
            told = await response.json()
    assert "max_body_mb" in told["error"]["message"]
    [request] = upstream.requests
    assert request.json["messages"][0]["content"] == text
    assert (await attempt.call()).response.message["content"] == text
