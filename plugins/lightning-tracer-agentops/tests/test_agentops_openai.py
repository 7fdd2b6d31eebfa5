"""The openai package: its calls become spans of the right rollout, and it is the same to the agent."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai.resources.chat.completions import AsyncCompletions, Completions
from openai.resources.completions import Completions as TextCompletions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import AsyncResponses, Responses
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from pydantic import BaseModel

from lightning_core.emitter import emit_reward, get_reward_value
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import LLMCall, is_llm_call

METHODS = [
    (owner, name)
    for owner in (Completions, AsyncCompletions, Responses, AsyncResponses)
    for name in ("create", "parse")
    if hasattr(owner, name)
]
METHODS += [(TextCompletions, "create"), (Embeddings, "create")]
PLAIN = [getattr(owner, name) for owner, name in METHODS]
PLAIN += [threading.Thread.start, ThreadPoolExecutor.submit]
USER = {"role": "user", "content": "weather?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ARGUMENTS = '{"city":  "Rome"}'


def is_plain() -> bool:
    now = [getattr(owner, name) for owner, name in METHODS]
    now += [threading.Thread.start, ThreadPoolExecutor.submit]
    # By identity: a wrapper equals what it wraps.
    return all(before is after for before, after in zip(PLAIN, now, strict=True))


@pytest.fixture
def tracer(make_tracer):
    tracer = make_tracer()
    tracer.init_worker(0)
    assert not is_plain()
    yield tracer
    tracer.teardown_worker(0)
    assert is_plain()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="sk-secret", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server):
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def only_call(trace) -> LLMCall:
    [span] = [span for span in trace.spans if is_llm_call(span.attributes)]
    assert span.parent.span_id == trace.spans[-1].context.span_id
    return LLMCall.from_span(span)


# One call


def test_a_call_is_recorded_whole(tracer, client, server):
    earlier = client.chat.completions.create(model="echo", messages=[USER], tools=[TOOL]).choices[0].message
    answer = {"role": "tool", "tool_call_id": earlier.tool_calls[0].id, "content": "sunny"}
    with tracer.trace_context("rollout") as trace:
        # The earlier answer as agents pass it on: as the object that the package gave.
        done = client.chat.completions.create(
            model="echo", messages=[USER, earlier, answer], tools=[TOOL], temperature=0.5, max_tokens=9
        )
    assert done.choices[0].message.content == "sunny"
    call = only_call(trace)
    assert call.convention == "gen_ai-indexed"
    assert call.messages == server.requests[-1][1]["messages"]
    assert call.tools == [TOOL]
    assert call.response.message == {"role": "assistant", "content": "sunny"}
    assert call.response.finish_reason == "stop"
    assert (call.model, call.response_id, call.input_tokens, call.output_tokens) == ("echo-1", "chat-1", 3, 2)
    assert call.parameters["temperature"] == 0.5
    assert call.parameters["max_tokens"] == 9
    span = trace.spans[0]
    assert span.name == "openai.chat.completion"
    assert span.attributes["agentops.span.kind"] == "llm"
    assert span.attributes["gen_ai.request.model"] == "echo"
    assert span.attributes["gen_ai.usage.total_tokens"] == 5


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_calls_of_tools_are_part_of_the_answer(tracer, client, async_client, asynchronous, streamed):
    """With the very text of their arguments, and two of them."""
    request = {"model": "echo", "messages": [USER], "tools": [TOOL, TOOL], "stream": streamed}
    async with tracer.trace_context("rollout") as trace:
        if asynchronous:
            answer = await async_client.chat.completions.create(**request)
            parts = [part async for part in answer] if streamed else answer
        else:
            answer = client.chat.completions.create(**request)
            parts = list(answer) if streamed else answer
    call = only_call(trace)
    function = {"name": "weather", "arguments": ARGUMENTS}
    assert call.response.message["tool_calls"] == [
        {"id": f"call-{index}", "type": "function", "function": function} for index in range(2)
    ]
    assert call.response.finish_reason == "tool_calls"
    assert call.messages == [USER]
    assert len(trace.spans) == 2
    if streamed:
        assert isinstance(answer, openai.AsyncStream if asynchronous else openai.Stream)
        assert len(parts) == 5


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_is_recorded_as_it_is_read(tracer, client, async_client, server, asynchronous):
    async with tracer.trace_context("rollout") as trace:
        request = {"model": "echo", "messages": [USER], "stream": True}
        if asynchronous:
            async with await async_client.chat.completions.create(**request) as stream:
                assert not trace.spans
                text = "".join([part.choices[0].delta.content or "" async for part in stream])
                assert stream.response.status_code == 200
        else:
            with client.chat.completions.create(**request) as stream:
                assert not trace.spans
                text = "".join(part.choices[0].delta.content or "" for part in stream)
                assert stream.response.status_code == 200
        assert len(trace.spans) == 1
    assert text == "weather?"
    call = only_call(trace)
    assert call.response.message == {"role": "assistant", "content": "weather?"}
    assert call.response.finish_reason == "stop"
    # Usage was not asked for, and asking would have changed what the agent sees.
    assert "stream_options" not in server.requests[-1][1]
    assert call.output_tokens is None


def test_the_usage_of_a_stream_is_recorded_where_it_is_asked_for(tracer, client):
    with tracer.trace_context("rollout") as trace:
        options = {"include_usage": True}
        list(
            client.chat.completions.create(model="echo", messages=[USER], stream=True, stream_options=options)
        )
    assert only_call(trace).output_tokens == 2


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_that_is_not_read_to_its_end_is_recorded_as_far_as_it_came(tracer, client, how):
    with tracer.trace_context("rollout") as trace:
        stream = client.chat.completions.create(model="echo", messages=[USER], stream=True)
        assert next(stream).choices[0].delta.content == "w"
        if how == "closed":
            stream.close()
        else:
            stream.response.close()
            del stream
            gc.collect()
    call = only_call(trace)
    assert call.response.message["content"] == "w"
    assert call.response.finish_reason is None


def test_the_helpers_of_the_package_work(tracer, client):
    class Answer(BaseModel):
        city: str

    text = '{"city": "Rome"}'
    with tracer.trace_context("rollout") as trace:
        request = {"model": "echo", "messages": [{"role": "user", "content": text}]}
        # In the package's first years both were below `beta`.
        chats = client.chat.completions if hasattr(Completions, "parse") else client.beta.chat.completions
        parsed = chats.parse(**request, response_format=Answer)
        assert parsed.choices[0].message.parsed == Answer(city="Rome")
        with chats.stream(**request) as stream:
            stream.until_done()
            assert stream.get_final_completion().choices[0].message.content == text
        raw = client.chat.completions.with_raw_response.create(**request)
        assert raw.http_response.status_code == 200
        assert raw.parse().choices[0].message.content == text
        raw_stream = client.chat.completions.with_raw_response.create(**request, stream=True)
        assert len(list(raw_stream.parse())) == len(text) + 1
        with client.chat.completions.with_streaming_response.create(**request) as response:
            assert json.loads(response.read())["choices"][0]["message"]["content"] == text
    *whole, unseen = [LLMCall.from_span(span) for span in trace.spans[:-1]]
    assert [call.response.message["content"] for call in whole] == [text] * 4
    assert unseen.messages == request["messages"]
    assert unseen.response is None


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_responses_api(tracer, client, async_client, asynchronous):
    async with tracer.trace_context("rollout") as trace:
        request = {"model": "echo", "input": "weather?", "instructions": "Be terse."}
        if asynchronous:
            answer = await async_client.responses.create(**request)
        else:
            answer = client.responses.create(**request)
    assert answer.output_text == "weather?"
    call = only_call(trace)
    assert [message["content"] for message in call.messages] == ["Be terse.", "weather?"]
    assert call.response.message["content"] == "weather?"
    assert (call.model, call.response_id, call.input_tokens, call.output_tokens) == ("echo-1", "resp-1", 3, 2)


def test_an_error_of_the_server_is_recorded_and_passes(tracer, client):
    with tracer.trace_context("rollout") as trace, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "fail"}])
    call = only_call(trace)
    assert call.messages == [{"role": "user", "content": "fail"}]
    assert call.response is None
    assert trace.spans[0].status.description.startswith("BadRequestError: ")
    assert trace.spans[0].events[0].name == "exception"


def test_messages_that_can_be_read_once_only_reach_the_server(tracer, client, server):
    with tracer.trace_context("rollout") as trace:
        client.chat.completions.create(model="echo", messages=(each for each in [USER]))
    assert server.requests[-1][1]["messages"] == [USER] == only_call(trace).messages


def test_keys_are_not_recorded(tracer, client):
    with tracer.trace_context("rollout") as trace:
        headers = {"Authorization": "Bearer sk-secret"}
        client.chat.completions.create(model="echo", messages=[USER], extra_headers=headers)
    assert "sk-secret" not in str(dict(trace.spans[0].attributes))


def test_token_ids_and_log_probabilities_are_kept(tracer, client, server, monkeypatch):
    """As vLLM gives them."""
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    extras = {"token_ids": [7], "logprobs": logprobs}
    monkeypatch.setattr(server, "extras", extras)
    with tracer.trace_context("rollout") as trace:
        client.chat.completions.create(model="echo", messages=[USER], extra_body={"return_token_ids": True})
    call = only_call(trace)
    assert call.response.token_ids.ids == [7]
    assert call.response.logprobs == [-0.5]
    assert call.messages == [USER]
    assert call.parameters["return_token_ids"] is True


# Many calls, tracers and set-ups


async def test_calls_of_concurrent_rollouts_land_in_their_own(tracer, async_client):
    """Trap 11."""
    store, count = InMemoryLightningStore(), 20
    rollouts = [await store.start_rollout(n) for n in range(count)]
    together = asyncio.Barrier(count)

    async def run(n, rollout):
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(f"rollout {n}", store=store, **ids):
            await together.wait()
            for turn in range(2):
                asked = [{"role": "user", "content": f"{n}.{turn}"}]
                stream = await async_client.chat.completions.create(model="echo", messages=asked, stream=True)
                async for _ in stream:
                    await asyncio.sleep(0)

    await asyncio.gather(*(run(n, rollout) for n, rollout in enumerate(rollouts)))
    for n, rollout in enumerate(rollouts):
        *calls, root = await store.query_spans(rollout.rollout_id)
        texts = [LLMCall.from_span(call).response.message["content"] for call in calls]
        assert texts == [f"{n}.0", f"{n}.1"]
        assert {call.parent_id for call in calls} == {root.span_id}
    await store.close()


def test_calls_in_threads_of_an_agent_belong_to_its_trace(tracer, client):
    """Trap 11."""

    def ask(text):
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}])

    with tracer.trace_context("rollout") as trace, ThreadPoolExecutor(2) as pool:
        pool.submit(ask, "pool").result()
        thread = threading.Thread(target=ask, args=("thread",))
        thread.start()
        thread.join()
    texts = [LLMCall.from_span(span).messages[0]["content"] for span in trace.spans[:-1]]
    assert texts == ["pool", "thread"]


def test_two_tracers_and_many_set_ups_record_each_call_once(make_tracer, client):
    """Trap 33; AgentOps' own instrumentation leaves its wrappers behind, and doubles them."""
    first, second = make_tracer(), make_tracer()
    for _ in range(3):
        first.init_worker(0)
        first.init_worker(1)
        second.init_worker(0)
        first.teardown_worker(0)
        first.teardown_worker(1)
        assert not is_plain()
        with second.trace_context("rollout") as trace:
            client.chat.completions.create(model="echo", messages=[USER])
            emit_reward(1)
        second.teardown_worker(0)
        assert is_plain()
        call, reward, _ = trace.spans
        assert LLMCall.from_span(call).response.message["content"] == "weather?"
        assert get_reward_value(reward) == 1


def test_outside_a_trace_a_call_leaves_nothing(tracer, client):
    with tracer.trace_context("rollout") as trace:
        pass
    client.chat.completions.create(model="echo", messages=[USER])
    assert [span.name for span in trace.spans] == ["rollout"]


def test_the_users_own_provider_sees_none_of_it(tracer, client, monkeypatch):
    """Trap 16. AgentOps' own instrumentation reports calls of tools there."""
    monkeypatch.setattr(trace_api, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace_api, "_TRACER_PROVIDER_SET_ONCE", Once())
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_api.set_tracer_provider(provider)
    before = provider._active_span_processor._span_processors
    with (
        tracer.trace_context("rollout") as trace,
        trace_api.get_tracer("mine").start_as_current_span("theirs"),
    ):
        client.chat.completions.create(model="echo", messages=[USER], tools=[TOOL])
    assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]
    assert provider._active_span_processor._span_processors == before
    assert [span.name for span in trace.spans] == ["openai.chat.completion", "rollout"]
    provider.shutdown()


def test_what_the_program_has_instrumented_itself_stays_as_it_is(make_tracer, client):
    from agentops.instrumentation.providers.openai.instrumentor import OpenaiInstrumentor

    theirs = OpenaiInstrumentor()
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # Not with its wrappers of chats, which could not be taken away again.
    theirs._custom_wrap = lambda **kwargs: None
    theirs.instrument(tracer_provider=provider)
    try:
        tracer = make_tracer()
        tracer.init_worker(0)
        assert Completions.create is PLAIN[0]
        tracer.teardown_worker(0)
        assert theirs.is_instrumented_by_opentelemetry
    finally:
        theirs.uninstrument()
        provider.shutdown()
    assert is_plain()
