"""Agents that call their model in every way at once, and the spans that each must leave.

A module of its own, since the processes of the client-server strategy import it too.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from lightning_core import LLM, rollout
from lightning_core.emitter import operation
from lightning_core.types import LLMCall, Span, is_llm_call

CALLS = 11
"""Calls of the model in each rollout."""


@functools.cache
def shared_pool() -> ThreadPoolExecutor:
    """A pool whose threads serve all rollouts of the process in turn."""
    return ThreadPoolExecutor(8)


# 200 clients that connect at once on a busy machine need more than the 5 seconds that they would have.
SETTINGS: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 200.0}


def plain_client(llm: LLM) -> openai.OpenAI:
    # Without certificates, which take longer to read than the whole rollout.
    http = openai.DefaultHttpxClient(verify=False)
    return openai.OpenAI(base_url=llm.endpoint, http_client=http, **SETTINGS)


def async_client(llm: LLM) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(verify=False)
    return openai.AsyncOpenAI(base_url=llm.endpoint, http_client=http, **SETTINGS)


def request(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


def ask(client: openai.OpenAI, text: str, **body: Any) -> None:
    answer = client.chat.completions.create(**request(text), extra_body=body)
    assert answer.choices[0].message.content == text


def ask_streamed(client: openai.OpenAI, text: str) -> None:
    with client.chat.completions.create(**request(text), stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def answers(client: openai.OpenAI, texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        ask(client, text)
        yield text


async def ask_async(client: openai.AsyncOpenAI, text: str, **body: Any) -> None:
    answer = await client.chat.completions.create(**request(text), extra_body=body)
    assert answer.choices[0].message.content == text


async def ask_async_streamed(client: openai.AsyncOpenAI, text: str) -> None:
    async with await client.chat.completions.create(**request(text), stream=True) as stream:
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


async def async_answers(client: openai.AsyncOpenAI, texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        await ask_async(client, text)
        yield text


@rollout
async def async_agent(task: dict[str, Any], llm: LLM) -> float:
    """Calls in tasks, generators, streams, nested spans, and threads of three kinds."""
    number = task["number"]
    async with async_client(llm) as client:
        await ask_async(client, f"{number} first", together=task["together"])
        with operation("outer"):
            await ask_async(client, f"{number} nested")
            with operation("inner"):
                await ask_async_streamed(client, f"{number} streamed")
        async for _ in async_answers(client, [f"{number} generated 1", f"{number} generated 2"]):
            await asyncio.sleep(0)
        await asyncio.gather(*(ask_async(client, f"{number} parallel {part}") for part in range(3)))
    with plain_client(llm) as client:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(shared_pool(), ask, client, f"{number} shared pool")
        await asyncio.to_thread(ask, client, f"{number} thread")
        await asyncio.to_thread(ask_streamed, client, f"{number} last")
    return float(number)


@rollout
def sync_agent(task: dict[str, Any], llm: LLM) -> float:
    """The same without ``await``, and with an event loop inside."""
    number = task["number"]

    async def last() -> None:
        async with async_client(llm) as client:
            await ask_async_streamed(client, f"{number} last")

    with plain_client(llm) as client, ThreadPoolExecutor(3) as own_pool:
        ask(client, f"{number} first", together=task["together"])
        with operation("outer"):
            ask(client, f"{number} nested")
            with operation("inner"):
                ask_streamed(client, f"{number} streamed")
        for _ in answers(client, [f"{number} generated 1", f"{number} generated 2"]):
            pass
        list(own_pool.map(lambda part: ask(client, f"{number} parallel {part}"), range(3)))
        shared_pool().submit(ask, client, f"{number} shared pool").result()
        thread = threading.Thread(target=ask, args=(client, f"{number} thread"))
        thread.start()
        thread.join()
    asyncio.run(last())
    return float(number)


def expected(number: int) -> list[tuple[str, str, str | None]]:
    """Name of each span, what it says, and the name of its parent, in order."""
    call = "ChatCompletion"
    return [
        (call, f"{number} first", "rollout"),
        (call, f"{number} nested", "outer"),
        (call, f"{number} streamed", "inner"),
        ("inner", "", "outer"),
        ("outer", "", "rollout"),
        (call, f"{number} generated 1", "rollout"),
        (call, f"{number} generated 2", "rollout"),
        (call, f"{number} parallel 0", "rollout"),
        (call, f"{number} parallel 1", "rollout"),
        (call, f"{number} parallel 2", "rollout"),
        (call, f"{number} shared pool", "rollout"),
        (call, f"{number} thread", "rollout"),
        (call, f"{number} last", "rollout"),
        ("rollout", "", None),
        ("lightning.reward", str(float(number)), "rollout"),
    ]


def recorded(spans: Sequence[Span]) -> list[tuple[str, str, str | None]]:
    """The same of what was stored. Only what was asked in parallel may have ended in any order."""
    names = {span.span_id: _name(span) for span in spans}
    rows = [(_name(span), _said(span), names.get(span.parent_id or "")) for span in spans]
    return [*rows[:7], *sorted(rows[7:10]), *rows[10:]]


def _name(span: Span) -> str:
    return "rollout" if span.name.startswith("rollout ") else span.name


def _said(span: Span) -> str:
    if not is_llm_call(span.attributes):
        return str(span.attributes.get("reward", ""))
    call = LLMCall.from_span(span)
    assert call.response is not None
    answer = call.response.message["content"]
    assert [message["content"] for message in call.messages] == [answer]
    return answer


def response_ids(spans: Sequence[Span]) -> list[str | None]:
    """The server's ids of the answers that were recorded."""
    return [LLMCall.from_span(span).response_id for span in spans if is_llm_call(span.attributes)]
