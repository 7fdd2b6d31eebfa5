"""Calls through each SDK and framework that is instrumented by name: recorded once, and again after a tear-down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.types import LLMCall, is_llm_call

USER = [{"role": "user", "content": "hello there"}]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}]


def calls(spans: Sequence[ReadableSpan]) -> list[LLMCall]:
    return [LLMCall.from_span(span) for span in spans if is_llm_call(span.attributes or {})]


def said(call: LLMCall) -> Any:
    assert call.response is not None
    return call.response.message["content"]


def triplets(spans: Sequence[ReadableSpan]) -> list[Any]:
    adapter = pytest.importorskip("lightning_adapter_triplet")
    return adapter.TraceTripletAdapter().adapt(spans)


# Anthropic


@pytest.fixture
def anthropic(endpoint):
    sdk = pytest.importorskip("anthropic")
    with sdk.Anthropic(base_url=endpoint.removesuffix("/v1"), api_key="none", max_retries=0) as client:
        yield client


def test_calls_of_anthropic(make_tracer, anthropic):
    """Plain, and streamed in both ways."""
    plain = type(anthropic.messages).create
    tracer = make_tracer(instrument=["anthropic"])
    request: Any = {"model": "echo", "max_tokens": 9, "system": "brief", "messages": USER}
    for _ in range(2):
        tracer.init_worker(0)
        with tracer.trace_context() as trace:
            anthropic.messages.create(**request)
            with anthropic.messages.create(**request, stream=True) as events:
                list(events)
            with anthropic.messages.stream(**request) as stream:
                assert "".join(stream.text_stream) == "hello there"
        recorded = calls(trace.spans)
        assert [said(call) for call in recorded] == ["hello there"] * 3
        for call in recorded:
            assert [message["role"] for message in call.messages] == ["system", "user"]
            assert (call.model, call.input_tokens, call.output_tokens) == ("echo", 3, 3)
        tracer.teardown_worker(0)
        assert type(anthropic.messages).create is plain


# LangChain, with the client that it calls


@pytest.fixture
async def chat(endpoint):
    """A chat model of LangChain with connections of its own: those that it shares outlive the test's event loop."""
    langchain_openai = pytest.importorskip("langchain_openai")
    with openai.DefaultHttpxClient() as plain:
        async with openai.DefaultAsyncHttpxClient() as asynchronous:
            yield langchain_openai.ChatOpenAI(
                model="echo",
                base_url=endpoint,
                api_key="none",
                max_retries=0,
                http_client=plain,
                http_async_client=asynchronous,
            )


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch", "tools"])
async def test_a_call_of_langchain_that_openai_records_too_is_one(make_tracer, chat, how):
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("system", "brief"), ("user", "{text}")])
    texts = ["one", "two", "two"]
    inputs = [{"text": text} for text in texts]
    tracer = make_tracer(instrument=["langchain", "openai"])
    tracer.init_worker(0)
    async with tracer.trace_context("rollout") as trace:
        chain = prompt | (chat.bind_tools(TOOLS) if how == "tools" else chat)
        if how == "batch":
            chain.batch(inputs)
        elif how == "abatch":
            await chain.abatch(inputs)
        for each in inputs if "batch" not in how else ():
            if how in ("invoke", "tools"):
                chain.invoke(each)
            elif how == "ainvoke":
                await chain.ainvoke(each)
            elif how == "stream":
                list(chain.stream(each))
            else:
                _ = [chunk async for chunk in chain.astream(each)]
    names = [span.name for span in trace.spans if is_llm_call(span.attributes or {})]
    assert sorted(names) == ["ChatCompletion"] * 3 + ["ChatOpenAI"] * 3
    found = triplets(trace.spans)
    assert len({triplet.metadata["response_id"] for triplet in found}) == len(found) == 3
    asked = [[message["content"] for message in triplet.prompt["messages"]] for triplet in found]
    assert sorted(asked) == [["brief", text] for text in texts]
    for triplet in found:
        message = triplet.response["message"]
        if how == "tools":
            assert message["tool_calls"][0]["function"]["name"] == "look"
        else:
            assert message["content"] == triplet.prompt["messages"][-1]["content"]


# The OpenAI Agents SDK


class Listening:
    """A processor that the program has set."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.heard.append(name)


async def test_a_run_of_openai_agents_that_openai_records_too(make_tracer, endpoint):
    agents = pytest.importorskip("agents")
    # Not its own, which would send the test's traces to OpenAI if there were a key.
    programs = Listening()
    agents.set_trace_processors([programs])

    def processors() -> Any:
        return agents.tracing.get_trace_provider()._multi_processor._processors

    @agents.function_tool
    def look() -> str:
        """Look."""
        return "a house"

    before = processors()
    tracer = make_tracer(instrument=["openai-agents", "openai"])
    async with openai.AsyncOpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        model = agents.OpenAIChatCompletionsModel("echo", client)
        agent = agents.Agent(name="guide", instructions="brief", model=model, tools=[look])
        # A second time, nothing is doubled.
        for run in range(2):
            tracer.init_worker(0)
            async with tracer.trace_context("rollout") as trace:
                result = await agents.Runner.run(agent, "what is there?")
            tracer.teardown_worker(0)
            assert processors() == before
            assert programs.heard.count("on_trace_end") == run + 1
            assert result.final_output == "a house"
            first, second = triplets(trace.spans)
            assert first.response["message"]["tool_calls"][0]["function"]["name"] == "look"
            assert [message["role"] for message in first.prompt["messages"]] == ["system", "user"]
            assert second.prompt["messages"][-1]["content"] == "a house"
            assert second.response["message"]["content"] == "a house"
            assert [triplet.metadata["agent_name"] for triplet in (first, second)] == ["guide", "guide"]
            assert len({triplet.metadata["response_id"] for triplet in (first, second)}) == 2


# LiteLLM, whose own requirements keep it out of most environments


@pytest.mark.filterwarnings("ignore")
async def test_calls_of_litellm_that_openai_records_too(make_tracer, endpoint, monkeypatch):
    # It would ask the network for prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    request: Any = {"model": "openai/echo", "api_base": endpoint, "api_key": "none"}
    tracer = make_tracer(instrument=["litellm", "openai"])
    for _ in range(2):
        tracer.init_worker(0)
        async with tracer.trace_context() as trace:
            await asyncio.to_thread(litellm.completion, **request, messages=USER)
            await litellm.acompletion(**request, messages=[{"role": "user", "content": "again"}])
            stream = await litellm.acompletion(
                **request, messages=[{"role": "user", "content": "streamed"}], stream=True
            )
            async for _ in stream:
                pass
        tracer.teardown_worker(0)
        found = triplets(trace.spans)
        assert [each.response["message"]["content"] for each in found] == ["hello there", "again", "streamed"]
        assert len(calls(trace.spans)) == 6
