"""Real clients work through the proxy as they do without."""

from __future__ import annotations

import asyncio

import openai
import pytest

from lightning_core.types import LLMCall

from .upstream import Request, always
from .wire import (
    anthropic_events,
    responses_events,
    sse,
    vllm_chat,
    vllm_chat_chunks,
    vllm_tool_chunks,
)

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


async def speak(request: Request):
    """An upstream for every API."""
    body = request.json
    if request.path == "/v1/responses":
        events = responses_events()
        if body.get("stream"):
            return await request.stream(sse(*events, done=False))
        return await always(events[-1][1]["response"])(request)
    if request.path == "/v1/messages":
        return await request.stream(sse(*anthropic_events(), done=False))
    if request.path == "/v1/embeddings":
        answer = {
            "object": "list",
            "model": "m",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        }
        return await always({**answer, "usage": {"prompt_tokens": 1, "total_tokens": 1}})(request)
    chunks = vllm_tool_chunks() if body.get("tools") else vllm_chat_chunks()
    if body.get("stream"):
        return await request.stream(sse(*chunks))
    answer = vllm_chat()
    if body.get("tools"):
        function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
        call = {"id": "call-a", "type": "function", "function": function}
        answer["choices"][0]["message"] |= {"content": None, "tool_calls": [call]}
        answer["choices"][0]["finish_reason"] = "tool_calls"
    return await always(answer)(request)


@pytest.fixture
async def base_url(attempt, serve, gateway) -> str:
    proxy = await gateway(await serve(speak))
    return proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)


@pytest.fixture
async def api(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        yield api


async def ids(attempt) -> list[list[int] | None]:
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    return [call.response.token_ids.ids for call in calls if call.response is not None]


async def test_openai_sync(attempt, base_url):
    # The upstream answers from this thread.
    await asyncio.to_thread(use_sync, base_url)
    assert await ids(attempt) == [[13048, 0, 151645]] * 2


def use_sync(base_url: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        answer = api.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].message.content == "Hi!"
        assert answer.choices[0].logprobs is None
        with api.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
            texts = [chunk.choices[0].delta.content for chunk in stream]
        assert texts == ["", "Hi", "!", ""]
        assert [model.id for model in api.models.list()] == ["m"]


async def test_openai_async(attempt, api):
    answer = await api.chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == "Hi!"
    stream = await api.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 3
    embedded = await api.embeddings.create(model="m", input="Hello", encoding_format="float")
    assert embedded.data[0].embedding == [0.5]
    assert await ids(attempt) == [[13048, 0, 151645]] * 2


async def test_openai_tools(attempt, api):
    answer = await api.chat.completions.create(model="m", messages=HELLO, tools=[TOOL])
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    # Older clients read the streams of strict tools only.
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    async with api.chat.completions.stream(model="m", messages=HELLO, tools=[strict]) as stream:
        final = await stream.get_final_completion()
    assert [each.function.name for each in final.choices[0].message.tool_calls] == ["weather", "time"]
    assert (await ids(attempt))[1] == [10, 11, 12, 13, 14, 15, 16]


async def test_openai_responses(attempt, api):
    answer = await api.responses.create(model="m", input="Hello")
    assert answer.output_text == "Hello there"
    async with api.responses.stream(model="m", input="Hello") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello there"
    assert final.output[1].name == "f"
    assert len(await attempt.spans()) == 2


async def test_errors_are_the_same(attempt, api):
    with pytest.raises(openai.NotFoundError, match="no upstream serves a model 'other'"):
        await api.chat.completions.create(model="other", messages=HELLO)


async def test_langchain(attempt, base_url):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(model="m", base_url=base_url, api_key="none", max_retries=0)
    assert (await chat.ainvoke("Hello")).content == "Hi!"
    assert "".join([chunk.content async for chunk in chat.astream("Hello")]) == "Hi!"
    message = await chat.bind_tools([TOOL]).ainvoke("Hello")
    assert message.tool_calls[0]["args"] == {"city": "Oslo"}
    assert await ids(attempt) == [[13048, 0, 151645]] * 3


@pytest.mark.parametrize("versioned", [False, True])
async def test_anthropic(attempt, base_url, versioned):
    anthropic = pytest.importorskip("anthropic")
    url = base_url if versioned else base_url.removesuffix("/v1")
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as api,
        api.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream,
    ):
        final = await stream.get_final_message()
    assert final.content[0].text == "Let me look."
    assert final.content[1].input == {"city": "Oslo"}
    span = await attempt.span()
    assert span.attributes["gen_ai.provider.name"] in ("anthropic", "vllm")
    assert span.attributes["gen_ai.usage.output_tokens"] == 9
