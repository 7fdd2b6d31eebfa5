"""The callback handler for LangChain: one span for each run, with all that it was given and gave."""

from __future__ import annotations

import asyncio
import functools
import json

import openai
import pytest
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from lightning_core.emitter import emit_reward
from lightning_core.types import LLMCall, is_llm_call

PROMPT = ChatPromptTemplate([("system", "You are terse."), ("human", "{question}")])


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    emit_reward(0.5)
    return f"sunny in {city}"


@tool
def broken(city: str) -> str:
    """Fail."""
    raise ZeroDivisionError(city)


def fake(*answers) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter(answers))


def by_name(trace) -> dict:
    spans = {span.name: span for span in trace.spans}
    assert len(spans) == len(trace.spans)
    return spans


def calls(trace) -> list:
    return [span for span in trace.spans if is_llm_call(span.attributes)]


def parent_of(span, spans):
    return next(each for each in spans if each.context.span_id == span.parent.span_id)


def path(span, trace) -> list[str]:
    names = [span.name]
    while span.parent is not None:
        span = parent_of(span, trace.spans)
        names.append(span.name)
    return names


# Against a model that is none


def test_a_chain_is_recorded_with_the_whole_prompt_and_the_answer(make_tracer):
    tracer = make_tracer()
    handler = tracer.get_langchain_callback_handler(tags=["mine"])
    chain = PROMPT | fake("No.") | StrOutputParser()
    with tracer.trace_context("rollout") as trace:
        answer = chain.invoke({"question": "Is it?"}, config={"callbacks": [handler], "tags": ["theirs"]})
    assert answer == "No."
    spans = by_name(trace)
    model = spans["GenericFakeChatModel"]
    assert path(model, trace) == ["GenericFakeChatModel", "RunnableSequence", "rollout"]
    call = LLMCall.from_span(model)
    assert call.convention == "gen_ai-indexed"
    assert call.messages == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Is it?"},
    ]
    assert call.response.message == {"role": "assistant", "content": "No."}
    assert calls(trace) == [model]
    assert set(model.attributes["agentops.tags"]) >= {"mine", "theirs"}
    assert json.loads(spans["RunnableSequence"].attributes["chain.input"]) == {"question": "Is it?"}
    assert spans["RunnableSequence"].attributes["chain.output"] == "No."


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_same_asynchronously(make_tracer, streamed):
    tracer = make_tracer()
    config = {"callbacks": [tracer.get_langchain_callback_handler()]}
    chain = PROMPT | fake("It is so.") | StrOutputParser()
    async with tracer.trace_context("rollout") as trace:
        if streamed:
            parts = [part async for part in chain.astream({"question": "Is it?"}, config=config)]
            assert "".join(parts) == "It is so."
        else:
            assert await chain.ainvoke({"question": "Is it?"}, config=config) == "It is so."
    [model] = calls(trace)
    assert path(model, trace) == ["GenericFakeChatModel", "RunnableSequence", "rollout"]
    call = LLMCall.from_span(model)
    assert [message["content"] for message in call.messages] == ["You are terse.", "Is it?"]
    assert call.response.message["content"] == "It is so."


def test_calls_of_tools_and_their_results_are_recorded(make_tracer):
    """Also arguments that are no JSON, and those of earlier turns."""
    tracer = make_tracer()
    config = {"callbacks": [tracer.get_langchain_callback_handler()]}
    asked = AIMessage(
        "",
        tool_calls=[{"id": "a", "name": "weather", "args": {"city": "Rome"}}],
        invalid_tool_calls=[{"id": "b", "name": "weather", "args": '{"city', "error": None}],
    )
    with tracer.trace_context("rollout") as trace:
        first = fake(asked).invoke([SystemMessage("s"), HumanMessage("weather?")], config=config)
        result = weather.invoke(first.tool_calls[0], config=config)
        fake("Sunny.").invoke([HumanMessage("weather?"), first, result], config=config)
    before, reward, used, after, _ = trace.spans
    wanted = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city'}},
    ]
    assert LLMCall.from_span(before).response.message["tool_calls"] == wanted
    assert LLMCall.from_span(after).messages == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": wanted},
        {"role": "tool", "content": "sunny in Rome", "tool_call_id": "a", "name": "weather"},
    ]
    assert used.attributes["agentops.span.kind"] == "tool"
    assert used.attributes["gen_ai.tool.name"] == "weather"
    assert used.attributes["gen_ai.tool.call.id"] == "a"
    assert json.loads(used.attributes["gen_ai.tool.call.arguments"]) == {"city": "Rome"}
    assert used.attributes["gen_ai.tool.call.result"] == "sunny in Rome"
    assert path(reward, trace) == ["lightning.reward", "weather", "rollout"]


def test_usage_reason_and_model_are_recorded(make_tracer):
    tracer = make_tracer()
    answer = AIMessage(
        "Yes",
        usage_metadata={"input_tokens": 7, "output_tokens": 1, "total_tokens": 8},
        response_metadata={"model_name": "m-1", "finish_reason": "length", "id": "r-1"},
    )
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        fake(answer).invoke("Is it?", config={"callbacks": [handler]}, stop=["."], temperature=0.5)
    [span] = calls(trace)
    call = LLMCall.from_span(span)
    assert (call.input_tokens, call.output_tokens) == (7, 1)
    assert call.response.finish_reason == "length"
    assert (call.model, call.response_id) == ("m-1", "r-1")
    assert call.parameters["temperature"] == 0.5
    assert call.parameters["stop_sequences"] == ["."]


def test_a_completion_of_text_is_recorded(make_tracer):
    tracer = make_tracer()
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        FakeListLLM(responses=["upon a time"]).invoke("Once", config={"callbacks": [handler]})
    call = LLMCall.from_span(calls(trace)[0])
    assert call.text == "Once"
    assert call.response.message["content"] == "upon a time"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_errors_are_recorded_where_they_happened(make_tracer, asynchronous):
    tracer = make_tracer()
    config = {"callbacks": [tracer.get_langchain_callback_handler()]}
    chain = RunnableLambda(lambda text: {"city": text}) | broken
    async with tracer.trace_context("rollout") as trace:
        run = chain.ainvoke if asynchronous else functools.partial(asyncio.to_thread, chain.invoke)
        with pytest.raises(ZeroDivisionError):
            await run("Rome", config=config)
    spans = by_name(trace)
    for name in ("broken", "RunnableSequence"):
        assert spans[name].status.description == "ZeroDivisionError: Rome"
        assert spans[name].events[0].name == "exception"
    assert path(spans["broken"], trace) == ["broken", "RunnableSequence", "rollout"]
    assert spans["RunnableLambda"].status.is_unset
    assert spans["rollout"].status.is_unset


def test_a_failing_model_keeps_its_prompt(make_tracer):
    tracer = make_tracer()

    def give_up():
        raise TimeoutError("no answer")
        yield

    model = GenericFakeChatModel(messages=give_up())
    with tracer.trace_context("rollout") as trace, pytest.raises(TimeoutError):
        model.invoke("Is it?", config={"callbacks": [tracer.get_langchain_callback_handler()]})
    [span] = calls(trace)
    assert span.status.description == "TimeoutError: no answer"
    call = LLMCall.from_span(span)
    assert call.messages == [{"role": "user", "content": "Is it?"}]
    assert call.response is None


def test_the_parts_of_a_message_are_kept(make_tracer):
    tracer = make_tracer()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    parts = [{"type": "text", "text": "What is it?"}, picture]
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        fake("A cat.").invoke([HumanMessage(parts)], config={"callbacks": [handler]})
    [message] = LLMCall.from_span(calls(trace)[0]).messages
    assert json.loads(message["content"]) == parts


def test_one_handler_serves_concurrent_rollouts(make_tracer):
    """Trap 11."""
    tracer, count = make_tracer(), 20
    handler = tracer.get_langchain_callback_handler()

    async def run(number: int, together: asyncio.Barrier):
        async def wait(text):
            await together.wait()
            return text

        both = RunnableParallel(a=RunnableLambda(wait), b=RunnableLambda(lambda text: text.upper()))
        chain = both | RunnableLambda(lambda both: both["a"] + both["b"]) | fake(f"answer {number}")
        async with tracer.trace_context(f"rollout {number}") as trace:
            await together.wait()
            await chain.ainvoke(f"question {number}", config={"callbacks": [handler]})
        return trace

    async def run_all():
        together = asyncio.Barrier(count)
        return await asyncio.gather(*(run(number, together) for number in range(count)))

    for number, trace in enumerate(asyncio.run(run_all())):
        assert len({span.context.trace_id for span in trace.spans}) == 1
        [span] = calls(trace)
        call = LLMCall.from_span(span)
        assert call.messages[0]["content"] == f"question {number}QUESTION {number}"
        assert call.response.message["content"] == f"answer {number}"
        assert len(trace.spans) == 7
    assert not handler._runs


def test_outside_a_trace_nothing_is_kept(make_tracer):
    tracer = make_tracer()
    handler = tracer.get_langchain_callback_handler()
    with tracer.trace_context("rollout") as trace:
        pass
    assert fake("No.").invoke("Is it?", config={"callbacks": [handler]}).content == "No."
    assert [span.name for span in trace.spans] == ["rollout"]
    assert not handler._runs


# Against a server, with the instrumentation of the openai package at work


@pytest.fixture
async def chat(server):
    """Makes clients whose connections end with the test."""
    clients = (openai.DefaultHttpxClient(), openai.DefaultAsyncHttpxClient())

    def make(**settings) -> ChatOpenAI:
        settings.update(http_client=clients[0], http_async_client=clients[1])
        return ChatOpenAI(base_url=server.url, api_key="none", model="echo", max_retries=0, **settings)

    yield make
    clients[0].close()
    await clients[1].aclose()


@pytest.mark.parametrize("instrumented", [False, True])
@pytest.mark.parametrize("how", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_call_is_one_span(make_tracer, server, chat, how, instrumented):
    """Whether or not the instrumentation sees it too."""
    tracer = make_tracer(instrument_managed=instrumented)
    tracer.init_worker(0)
    config = {"callbacks": [tracer.get_langchain_callback_handler()]}
    chain = PROMPT | chat(temperature=0.5, stream_usage=True) | StrOutputParser()
    question = {"question": "Is it?"}
    async with tracer.trace_context("rollout") as trace:
        if how == "invoke":
            answer = chain.invoke(question, config=config)
        elif how == "stream":
            answer = "".join(chain.stream(question, config=config))
        elif how == "ainvoke":
            answer = await chain.ainvoke(question, config=config)
        else:
            answer = "".join([part async for part in chain.astream(question, config=config)])
    assert answer == "Is it?"
    assert len(server.requests) == 1
    [span] = calls(trace)
    assert path(span, trace) == ["ChatOpenAI", "RunnableSequence", "rollout"]
    call = LLMCall.from_span(span)
    assert call.messages == server.requests[0][1]["messages"]
    assert call.response.message == {"role": "assistant", "content": "Is it?"}
    assert call.response.finish_reason == "stop"
    assert (call.input_tokens, call.output_tokens) == (3, 2)
    assert call.model == "echo-1"
    assert call.parameters["temperature"] == 0.5


@pytest.mark.parametrize("instrumented", [False, True])
async def test_the_tools_of_a_real_client(make_tracer, chat, instrumented):
    tracer = make_tracer(instrument_managed=instrumented)
    tracer.init_worker(0)
    config = {"callbacks": [tracer.get_langchain_callback_handler()]}
    model = chat().bind_tools([weather])
    async with tracer.trace_context("rollout") as trace:
        messages = [HumanMessage("weather?")]
        messages.append(await model.ainvoke(messages, config=config))
        messages.append(await weather.ainvoke(messages[-1].tool_calls[0], config=config))
        assert isinstance(messages[-1], ToolMessage)
        assert (await model.ainvoke(messages, config=config)).content == "sunny in Rome"
    first, second = (LLMCall.from_span(span) for span in calls(trace))
    [tool_call] = first.response.message["tool_calls"]
    assert tool_call["id"] == "call-0"
    assert tool_call["function"]["name"] == "weather"
    assert json.loads(tool_call["function"]["arguments"]) == {"city": "Rome"}
    if instrumented:
        # Over the wire they came with two spaces, which LangChain has lost.
        assert tool_call["function"]["arguments"] == '{"city":  "Rome"}'
    assert first.response.finish_reason == "tool_calls"
    assert [tool["function"]["name"] for tool in first.tools] == ["weather"]
    assert first.tools[0]["function"]["parameters"]["properties"]["city"]["type"] == "string"
    assert [message["role"] for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[1]["tool_calls"][0]["id"] == second.messages[2]["tool_call_id"] == "call-0"


def test_an_error_of_the_server_is_one_span(make_tracer, chat):
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace, pytest.raises(Exception, match="400"):
        chat().invoke("fail", config={"callbacks": [tracer.get_langchain_callback_handler()]})
    [span] = calls(trace)
    assert not span.status.is_ok
    assert "400" in span.status.description
    assert LLMCall.from_span(span).messages == [{"role": "user", "content": "fail"}]


def test_what_went_over_the_wire_is_what_the_model_saw(make_tracer, server):
    class Pirate(GenericFakeChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            asked = [{"role": "system", "content": "Arr."}, {"role": "user", "content": messages[0].content}]
            with openai.OpenAI(base_url=server.url, api_key="none") as client:
                client.chat.completions.create(model="echo", messages=asked)
            return super()._generate(messages, stop, run_manager, **kwargs)

    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        Pirate(messages=iter(["Aye."])).invoke("Is it?", config={"callbacks": [handler]})
    [span] = calls(trace)
    call = LLMCall.from_span(span)
    assert span.name == "Pirate"
    assert [message["content"] for message in call.messages] == ["Arr.", "Is it?"]
    assert call.response.message["content"] == "Is it?"


def test_a_model_that_asks_others_is_no_call_itself(make_tracer, server):
    """What they were asked and said is what there is to learn from."""

    class Twice(GenericFakeChatModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            with openai.OpenAI(base_url=server.url, api_key="none") as client:
                for text in ("one", "two"):
                    asked = [{"role": "user", "content": text}]
                    client.chat.completions.create(model="echo", messages=asked)
            return super()._generate(messages, stop, run_manager, **kwargs)

    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        Twice(messages=iter(["both"])).invoke("Is it?", config={"callbacks": [handler]})
    seen = [LLMCall.from_span(span) for span in calls(trace)]
    assert [call.response.message["content"] for call in seen] == ["one", "two"]
    assert {parent_of(span, trace.spans).name for span in calls(trace)} == {"Twice"}


def test_several_prompts_at_once_are_one_span_each(make_tracer, chat):
    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        chat().generate([[HumanMessage("one")], [HumanMessage("two")]], callbacks=[handler])
    seen = [LLMCall.from_span(span) for span in calls(trace)]
    assert [call.messages[0]["content"] for call in seen] == ["one", "two"]
    assert [call.response.message["content"] for call in seen] == ["one", "two"]


def test_a_call_made_while_a_stream_is_read_is_a_span_of_its_own(make_tracer, server):
    tracer = make_tracer()
    tracer.init_worker(0)
    with (
        openai.OpenAI(base_url=server.url, api_key="none") as client,
        tracer.trace_context("rollout") as trace,
    ):
        handler = tracer.get_langchain_callback_handler()
        for number, _ in enumerate(fake("one two").stream("count", config={"callbacks": [handler]})):
            if number == 0:
                asked = [{"role": "user", "content": "between"}]
                client.chat.completions.create(model="echo", messages=asked)
    seen = {LLMCall.from_span(span).response.message["content"] for span in calls(trace)}
    assert seen == {"between", "one two"}
    assert {path(span, trace)[-2] for span in calls(trace)} == {span.name for span in calls(trace)}


def test_a_call_in_a_tool_is_below_it(make_tracer, server):
    @tool
    def ask(text: str) -> str:
        """Ask."""
        with openai.OpenAI(base_url=server.url, api_key="none") as client:
            asked = [{"role": "user", "content": text}]
            return client.chat.completions.create(model="echo", messages=asked).choices[0].message.content

    tracer = make_tracer()
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        handler = tracer.get_langchain_callback_handler()
        assert ask.invoke({"text": "hello"}, config={"callbacks": [handler]}) == "hello"
    [span] = calls(trace)
    assert path(span, trace)[1:] == ["ask", "rollout"]
