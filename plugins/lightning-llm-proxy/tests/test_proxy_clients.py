"""Real clients work through the proxy as they do without: openai, anthropic, and Node's openai."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import openai
import pytest

from lightning_core.types import LLMCall

from .node import beside_openai
from .speaking import ANSWER_IDS, STREAMED_TOOL_IDS, speak

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
ERRORS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
}


@pytest.fixture
async def upstream(serve):
    return await serve(speak)


@pytest.fixture
async def base_url(attempt, upstream, gateway) -> str:
    proxy = await gateway(upstream)
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
    assert await ids(attempt) == [ANSWER_IDS] * 2


def use_sync(base_url: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        answer = api.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].message.content == "Hi!"
        assert answer.choices[0].logprobs is None
        with api.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
            texts = [chunk.choices[0].delta.content for chunk in stream]
        assert texts == ["", "Hi", "!", ""]


async def test_openai_async(attempt, api):
    answer = await api.chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == "Hi!"
    stream = await api.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 3
    assert await ids(attempt) == [ANSWER_IDS] * 2


async def test_openai_raw_responses(attempt, api):
    raw = await api.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    assert raw.headers["x-request-id"] == "r7"
    assert json.loads(raw.content)["choices"][0]["message"]["content"] == "Hi!"
    assert b"token_ids" not in raw.content
    assert raw.parse().choices[0].message.content == "Hi!"
    async with api.chat.completions.with_streaming_response.create(
        model="m", messages=HELLO, stream=True
    ) as raw:
        lines = [line async for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert await ids(attempt) == [ANSWER_IDS] * 2


async def test_openai_tools(attempt, api):
    answer = await api.chat.completions.create(model="m", messages=HELLO, tools=[TOOL])
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    # Older clients read the streams of strict tools only.
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    async with api.chat.completions.stream(model="m", messages=HELLO, tools=[strict]) as stream:
        final = await stream.get_final_completion()
    assert [each.function.name for each in final.choices[0].message.tool_calls] == ["weather", "time"]
    assert await ids(attempt) == [ANSWER_IDS, STREAMED_TOOL_IDS]


async def test_openai_responses(attempt, api):
    answer = await api.responses.create(model="m", input="Hello")
    assert answer.output_text == "Hello there"
    stream = await api.responses.create(model="m", input="Hello", stream=True)
    events = [event async for event in stream]
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert texts == ["Hello", " there"]
    assert events[-1].type == "response.completed"
    async with api.responses.stream(model="m", input="Hello") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello there"
    assert final.output[1].name == "f"
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    assert [call.response.message["content"] for call in calls] == ["Hello there"] * 3
    assert [call.output_tokens for call in calls] == [6] * 3


async def test_openai_text_completions(attempt, api):
    answer = await api.completions.create(model="m", prompt="The sun")
    assert answer.choices[0].text == " is up"
    stream = await api.completions.create(model="m", prompt="The sun", stream=True)
    assert [chunk.choices[0].text async for chunk in stream] == [" is", " up"]
    assert await ids(attempt) == [[374, 705]] * 2


@pytest.mark.parametrize("settings", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
async def test_openai_embeddings(attempt, api, settings):
    embedded = await api.embeddings.create(model="m", input="Hello", **settings)
    assert embedded.data[0].embedding == [0.5]
    span = await attempt.span()
    assert span.attributes["gen_ai.usage.input_tokens"] == 1


@pytest.mark.parametrize("name", ["m", "Qwen/Qwen2.5-0.5B"])
async def test_openai_models(attempt, upstream, gateway, name):
    proxy = await gateway({"name": name, "base_url": upstream.url})
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
        assert [model.id async for model in api.models.list()] == [name]
        assert (await api.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError, match="no upstream serves a model 'other'"):
            await api.models.retrieve("other")
    assert await attempt.spans() == []


@pytest.mark.parametrize("status", ERRORS)
async def test_errors_of_the_upstream_are_the_same(attempt, api, status):
    with pytest.raises(getattr(openai, ERRORS[status])) as caught:
        await api.chat.completions.create(model="m", messages=HELLO, user=str(status))
    assert caught.value.status_code == status
    assert caught.value.body["message"] == "as you wish"
    assert caught.value.request_id == "r7"
    assert (await attempt.span()).attributes["error.type"] == str(status)


async def test_errors_of_the_proxy_are_such_as_clients_know(attempt, upstream, gateway):
    gone = {"name": "gone", "base_url": "http://127.0.0.1:9", "engine": "none"}
    proxy = await gateway(upstream, gone)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
        with pytest.raises(openai.NotFoundError, match="no upstream serves a model 'other'"):
            await api.chat.completions.create(model="other", messages=HELLO)
        with pytest.raises(openai.InternalServerError, match="cannot be reached") as caught:
            await api.chat.completions.create(model="gone", messages=HELLO)
    assert caught.value.status_code == 502


async def test_a_client_that_leaves_a_stream_stops_the_upstream(attempt, api, upstream):
    stream = await api.chat.completions.create(model="m", messages=HELLO, stream=True, user="endless")
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await left_in_the_middle(attempt, upstream)


async def left_in_the_middle(attempt, upstream) -> None:
    """The upstream has stopped its work, and what had come is recorded."""
    async with asyncio.timeout(30):
        await upstream.cancelled.wait()
        while not (spans := await attempt.spans()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert spans[-1].attributes["lightning.llm_proxy.client_disconnected"] is True
    assert LLMCall.from_span(spans[-1]).response.message["content"] == "Hi"


# Anthropic's


@pytest.mark.parametrize("versioned", [False, True])
async def test_anthropic(attempt, base_url, versioned):
    anthropic = pytest.importorskip("anthropic")
    url = base_url if versioned else base_url.removesuffix("/v1")
    request = {"model": "m", "max_tokens": 9, "messages": HELLO}
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as api:
        whole = await api.messages.create(**request)
        async with api.messages.stream(**request) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        events = [event.type async for event in await api.messages.create(**request, stream=True)]
    assert texts == ["Let me ", "look."]
    assert (events[0], events[-1]) == ("message_start", "message_stop")
    for message in (whole, final):
        assert message.content[0].text == "Let me look."
        assert message.content[1].input == {"city": "Oslo"}
        assert message.stop_reason == "tool_use"
    spans = await attempt.spans()
    assert len(spans) == 3
    assert {span.attributes["gen_ai.provider.name"] for span in spans} <= {"anthropic", "vllm"}
    assert [span.attributes["gen_ai.usage.output_tokens"] for span in spans] == [9] * 3
    calls = [LLMCall.from_span(span) for span in spans]
    assert [call.response.message["tool_calls"][0]["function"]["name"] for call in calls] == ["weather"] * 3


async def test_anthropic_sync(attempt, base_url):
    anthropic = pytest.importorskip("anthropic")

    def use() -> None:
        with anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0) as api:
            with api.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
                assert "".join(stream.text_stream) == "Let me look."
            with pytest.raises(anthropic.NotFoundError, match="no upstream serves a model 'other'"):
                api.messages.create(model="other", max_tokens=9, messages=HELLO)

    await asyncio.to_thread(use)
    assert len(await attempt.spans()) == 2


# Node's openai


@pytest.mark.timeout(240)
async def test_node_openai(attempt, base_url, upstream):
    command = beside_openai(Path(__file__).with_name("clients.mjs"))
    environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    # Its last call leaves a stream without an end.
    await left_in_the_middle(attempt, upstream)
    seen = json.loads(done.stdout)
    assert seen["errors"] == {str(status): [name, status, "r7"] for status, name in ERRORS.items()}
    del seen["errors"]
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert seen == {
        "models": ["m"],
        "chat": ["Hi!", None],
        "raw": ["r7", "Hi!"],
        "stream": ["", "Hi", "!", ""],
        "tools": [call],
        "streamed tools": [call, {"name": "time", "arguments": "{}"}],
        "responses": ["Hello there", "f"],
        "streamed responses": ["Hello", " there"],
        "text": [" is up"],
        "embeddings": [0.5],
        "refused": ["NotFoundError", "404 no upstream serves a model 'other'; served are: m"],
    }
    found = [LLMCall.from_span(span) for span in await attempt.spans()]
    answered = [call.response.token_ids.ids for call in found if call.response is not None]
    whole = [ANSWER_IDS] * 4
    assert answered[:5] == [*whole, STREAMED_TOOL_IDS]
