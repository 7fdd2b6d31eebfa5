"""Agents of frameworks work through the proxy without a change: LangChain, LangGraph, and OpenAI's Agents SDK."""

from __future__ import annotations

import openai
import pytest

from lightning_core.types import LLMCall

from .speaking import ANSWER_IDS, STREAMED_TOOL_IDS, speak


@pytest.fixture
async def base_url(attempt, serve, gateway) -> str:
    proxy = await gateway(await serve(speak))
    return proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)


async def calls(attempt) -> list[LLMCall]:
    return [LLMCall.from_span(span) for span in await attempt.spans()]


def ids(calls: list[LLMCall]) -> list[list[int] | None]:
    return [call.response.token_ids.ids for call in calls]


def roles(call: LLMCall) -> list[str]:
    return [message["role"] for message in call.messages]


# LangChain and LangGraph


@pytest.fixture
async def chat(base_url):
    """A chat model of LangChain with connections of its own: those that it shares are never closed."""
    langchain = pytest.importorskip("langchain_openai")
    async with openai.DefaultAsyncHttpxClient() as connections:
        yield langchain.ChatOpenAI(
            model="m", base_url=base_url, api_key="none", max_retries=0, http_async_client=connections
        )


@pytest.fixture
def tools():
    """The tools that the upstream calls; the second one in streams only."""
    tool = pytest.importorskip("langchain_core.tools").tool

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    @tool
    def time() -> str:
        """The time."""
        return "noon"

    return [weather, time]


async def test_langchain(attempt, chat, tools):
    assert (await chat.ainvoke("Hello")).content == "Hi!"
    assert "".join([chunk.content async for chunk in chat.astream("Hello")]) == "Hi!"
    message = await chat.bind_tools(tools).ainvoke("Hello")
    assert message.tool_calls[0]["args"] == {"city": "Oslo"}
    assert ids(await calls(attempt)) == [ANSWER_IDS] * 3


@pytest.fixture
def graph(chat, tools):
    """A model and its tools, which take turns until the model calls none."""
    langgraph = pytest.importorskip("langgraph.graph")
    prebuilt = pytest.importorskip("langgraph.prebuilt")

    async def model(state):
        return {"messages": [await chat.bind_tools(tools).ainvoke(state["messages"])]}

    graph = langgraph.StateGraph(langgraph.MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", prebuilt.ToolNode(tools))
    graph.add_edge(langgraph.START, "model")
    graph.add_conditional_edges("model", prebuilt.tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


async def test_langgraph(attempt, graph):
    result = await graph.ainvoke({"messages": [("user", "Hello")]})
    assert [message.content for message in result["messages"]] == ["Hello", "", "rain in Oslo", "Hi!"]
    first, second = await calls(attempt)
    assert ids([first, second]) == [ANSWER_IDS] * 2
    assert first.response.message["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo"}'
    assert roles(second) == ["user", "assistant", "tool"]
    assert second.messages[-1]["content"] == "rain in Oslo"


async def test_langgraph_streaming(attempt, graph):
    parts = [
        part.content
        async for part, _ in graph.astream({"messages": [("user", "Hello")]}, stream_mode="messages")
    ]
    assert "".join(parts[-4:]).endswith("Hi!")
    first, second = await calls(attempt)
    assert ids([first, second]) == [STREAMED_TOOL_IDS, ANSWER_IDS]
    assert roles(second) == ["user", "assistant", "tool", "tool"]


# OpenAI's Agents SDK


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
async def test_openai_agents(attempt, base_url, kind, streamed):
    agents = pytest.importorskip("agents")
    called = []

    @agents.function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(("weather", city))
        return "rain"

    @agents.function_tool
    def time() -> str:
        """The time."""
        called.append(("time", None))
        return "noon"

    @agents.function_tool
    def f(a: int) -> str:
        """What the answers of the Responses API call."""
        called.append(("f", a))
        return "done"

    # Without a key it would warn, and with one send what the agent does to OpenAI.
    config = agents.RunConfig(tracing_disabled=True)
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        model = getattr(agents, kind)(model="m", openai_client=api)
        agent = agents.Agent(name="guide", instructions="Be brief.", model=model, tools=[weather, time, f])
        if streamed:
            run = agents.Runner.run_streamed(agent, "Hello", run_config=config)
            async for _ in run.stream_events():
                pass
        else:
            run = await agents.Runner.run(agent, "Hello", run_config=config)
    first, second = await calls(attempt)
    if kind == "OpenAIResponsesModel":
        assert run.final_output == "Hello there"
        assert called == [("f", 1)]
        assert [first.output_tokens, second.output_tokens] == [6, 6]
        assert first.response.message["tool_calls"][0]["function"]["name"] == "f"
    else:
        assert run.final_output == "Hi!"
        assert dict(called)["weather"] == "Oslo"
        assert ids([first, second]) == [STREAMED_TOOL_IDS if streamed else ANSWER_IDS, ANSWER_IDS]
        assert second.messages[-1]["role"] == "tool"
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
