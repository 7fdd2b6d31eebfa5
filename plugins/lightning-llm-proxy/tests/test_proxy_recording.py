"""What is recorded of a call, and what the client gets of the answer."""

from __future__ import annotations

import asyncio
import json

import pytest

from lightning_core.store import InMemoryLightningStore
from lightning_core.types import LLMCall

from .upstream import Request, always, streaming
from .wire import (
    anthropic_events,
    responses_events,
    sglang_chat,
    sse,
    vllm_chat,
    vllm_chat_chunks,
    vllm_text,
    vllm_tokens_as_ids,
    vllm_tool_chunks,
)

HELLO = [{"role": "user", "content": "Hello"}]
PROMPT_IDS = [151644, 872, 198, 6023]
IDS = [13048, 0, 151645]


def events(body: bytes) -> list[dict]:
    """The JSON events of a stream."""
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_a_call_is_recorded_with_the_ids_that_the_client_did_not_ask_for(attempt, serve, gateway, post):
    upstream = await serve(always(vllm_chat()))
    proxy = await gateway(upstream)
    status, body = await post(proxy, messages=HELLO, temperature=0.5)
    assert status == 200
    asked = upstream.requests[0].json
    assert asked == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.5,
        "return_token_ids": True,
        "logprobs": True,
    }
    answer = json.loads(body)
    expected = vllm_chat()
    del expected["prompt_token_ids"], expected["choices"][0]["token_ids"]
    expected["choices"][0]["logprobs"] = None
    assert answer == expected
    span = await attempt.span()
    assert json.loads(span.attributes["input.value"]) == {"model": "m", "messages": HELLO, "temperature": 0.5}
    assert json.loads(span.attributes["output.value"]) == vllm_chat()
    call = LLMCall.from_span(span)
    assert call.prompt_token_ids.ids == PROMPT_IDS
    assert call.response.token_ids.ids == IDS
    assert call.response.logprobs == [-0.25, -0.5, -0.125]
    assert (call.input_tokens, call.output_tokens, call.response.finish_reason) == (4, 3, "stop")
    assert call.messages == HELLO
    assert call.parameters == {"temperature": 0.5}


async def test_the_attributes_of_a_span(attempt, serve, gateway, post):
    upstream = await serve(always(vllm_chat()))
    await post(await gateway(upstream), messages=HELLO)
    span = await attempt.span()
    own = {
        name.removeprefix("lightning.llm_proxy."): value
        for name, value in span.attributes.items()
        if name.startswith("lightning.llm_proxy.")
    }
    seconds = {name: own.pop(name) for name in list(own) if name.endswith("_seconds")}
    assert own == {
        "api": "chat/completions",
        "streamed": False,
        "retries": 0,
        "client_disconnected": False,
        "upstream": upstream.url,
        "engine": "vllm",
        "status": 200,
    }
    assert seconds.keys() == {"queue_seconds", "first_byte_seconds", "total_seconds"}
    assert 0 < seconds["first_byte_seconds"] <= seconds["total_seconds"] < 60
    assert span.name == "chat m"
    assert span.status.status_code == "OK"
    assert span.end_time - span.start_time == pytest.approx(seconds["total_seconds"], abs=1e-3)
    gen_ai = {name: value for name, value in span.attributes.items() if name.startswith("gen_ai.")}
    assert gen_ai == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "Qwen/Qwen2.5-0.5B-Instruct",
        "gen_ai.response.id": "chatcmpl-5f1c",
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
    }


async def test_what_the_client_asks_for_itself_it_gets(attempt, serve, gateway, post):
    upstream = await serve(always(vllm_chat()))
    _, body = await post(await gateway(upstream), messages=HELLO, return_token_ids=True, logprobs=True)
    assert json.loads(body) == vllm_chat()
    assert (await attempt.call()).response.token_ids.ids == IDS


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_stream_is_recorded_as_the_whole_answer(attempt, serve, gateway, post, size):
    data = sse(*vllm_chat_chunks())
    upstream = await serve(streaming(*(data[at : at + size] for at in range(0, len(data), size))))
    _, body = await post(await gateway(upstream), messages=HELLO, stream=True)
    assert upstream.requests[0].json["stream_options"] == {"include_usage": True}
    passed = events(body)
    assert body.endswith(b"data: [DONE]\n\n")
    assert [chunk["choices"][0]["delta"].get("content") for chunk in passed] == ["", "Hi", "!", ""]
    for chunk in passed:
        assert "usage" not in chunk
        assert "prompt_token_ids" not in chunk
        assert "token_ids" not in chunk["choices"][0]
        assert chunk["choices"][0]["logprobs"] is None
    span = await attempt.span()
    assert span.attributes["lightning.llm_proxy.streamed"] is True
    answer = json.loads(span.attributes["output.value"])
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi!"}
    call = LLMCall.from_span(span)
    assert call.prompt_token_ids.ids == PROMPT_IDS
    assert call.response.token_ids.ids == IDS
    assert call.response.logprobs == [-0.25, -0.5, -0.125]
    assert (call.input_tokens, call.output_tokens, call.response.finish_reason) == (4, 3, "stop")


async def test_a_stream_whose_client_asks_for_everything_is_passed_on_unchanged(serve, gateway, post):
    data = sse(*vllm_chat_chunks(), end="\r\n\r\n")
    upstream = await serve(streaming(data))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, body = await post(
        await gateway(upstream), messages=HELLO, return_token_ids=True, logprobs=True, **options
    )
    assert body == data


async def test_ids_that_got_lost_in_a_stream_count_as_missing(attempt, serve, gateway, post):
    """Trap 20: as many ids as tokens, or none."""
    chunks = vllm_chat_chunks()
    chunks[2]["choices"][0]["token_ids"] = None
    upstream = await serve(streaming(sse(*chunks)))
    await post(await gateway(upstream), messages=HELLO, stream=True)
    ids = (await attempt.call()).response.token_ids
    assert ids.ids is None
    assert "counted 3 response tokens" in ids.missing


async def test_calls_of_tools_are_put_together(attempt, serve, gateway, post):
    upstream = await serve(streaming(sse(*vllm_tool_chunks())))
    await post(await gateway(upstream), messages=HELLO, stream=True)
    call = await attempt.call()
    assert call.response.message["tool_calls"] == [
        {
            "id": "call-a",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
        },
        {"id": "call-b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert call.response.token_ids.ids == [10, 11, 12, 13, 14, 15, 16]
    assert call.response.finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
async def test_text_completions(attempt, serve, gateway, post, streamed):
    answer = streaming(sse(*vllm_text(streamed=True))) if streamed else always(vllm_text())
    upstream = await serve(answer)
    _, body = await post(await gateway(upstream), "completions", prompt="The sun", stream=streamed)
    assert upstream.requests[0].json["logprobs"] == 1
    call = await attempt.call()
    assert call.text == "The sun"
    assert call.response.message["content"] == " is up"
    assert call.prompt_token_ids.ids == [785, 3166]
    assert call.response.token_ids.ids == [374, 705]
    assert call.response.logprobs == [-0.25, -0.5]
    assert b"token_ids" not in body
    assert b"-0.25" not in body


async def test_sglang_gives_the_ids_in_its_meta_information(attempt, serve, gateway, post):
    upstream = await serve(always(sglang_chat()), "sglang")
    _, body = await post(await gateway(upstream), messages=HELLO)
    asked = upstream.requests[0].json
    assert asked["return_meta_info"] is asked["return_prompt_token_ids"] is asked["logprobs"] is True
    assert b"meta_info" not in body
    assert b"prompt_token_ids" not in body
    call = await attempt.call()
    assert call.prompt_token_ids.ids == [151644, 872]
    assert call.response.token_ids.ids == [13048, 0]
    assert call.response.logprobs == [-0.25, -0.5]


@pytest.mark.parametrize("ids", [True, False])
async def test_streams_of_sglang_have_the_ids_that_they_carry(attempt, serve, gateway, post, ids):
    """Whether a release puts its meta information into streams or not."""
    answer = sglang_chat()
    choice = answer["choices"][0]
    meta = {"meta_info": choice["meta_info"]} if ids else {}
    logprobs, chunk = choice["logprobs"], {**answer, "object": "chat.completion.chunk"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "Hi!"}, "logprobs": logprobs}
    end = {"index": 0, "delta": {}, "finish_reason": "length", **meta}
    chunks = [{**chunk, "choices": [delta]}, {**chunk, "choices": [end]}]
    upstream = await serve(streaming(sse(*chunks)), "sglang")
    _, body = await post(await gateway(upstream), messages=HELLO, stream=True)
    assert b"meta_info" not in body
    call = await attempt.call()
    assert call.response.token_ids.ids == ([13048, 0] if ids else None)
    assert call.response.logprobs == [-0.25, -0.5]


async def test_vllm_that_writes_tokens_as_ids(attempt, serve, gateway, post):
    """Older than ``return_token_ids``, which it takes without a word."""
    upstream = await serve(always(vllm_tokens_as_ids(vllm_chat())))
    _, body = await post(await gateway(upstream), messages=HELLO)
    assert b"token_id:" not in body
    call = await attempt.call()
    assert call.response.token_ids.ids == IDS
    assert call.response.token_ids.source.startswith("logprobs")
    assert call.response.logprobs == [-0.25, -0.5, -0.125]
    assert call.prompt_token_ids.ids is None


async def test_an_engine_too_old_to_give_ids_leaves_them_missing(attempt, serve, gateway, post):
    answer = vllm_chat()
    del answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    upstream = await serve(always(answer))
    await post(await gateway(upstream), messages=HELLO)
    call = await attempt.call()
    assert (call.response.token_ids.ids, call.prompt_token_ids.ids) == (None, None)
    assert call.response.token_ids.missing == "the engine gave no response token ids"


@pytest.mark.parametrize("cut", [None, 4, 8])
async def test_the_responses_api(attempt, serve, gateway, post, cut):
    """Whole, cut off within the text, and cut off within the arguments of a function."""
    sent = responses_events()[:cut]
    upstream = await serve(streaming(sse(*sent, done=False)))
    _, body = await post(await gateway(upstream), "responses", input="Hello", stream=True)
    assert body == sse(*sent, done=False)
    assert upstream.requests[0].json == {"model": "m", "input": "Hello", "stream": True}
    span = await attempt.span()
    output = json.loads(span.attributes["output.value"])["output"]
    assert output[0]["content"][0]["text"] == ("Hello" if cut == 4 else "Hello there")
    if cut != 4:
        assert output[1]["arguments"] == ('{"a"' if cut else '{"a": 1}')
    if cut is None:
        assert span.attributes["gen_ai.usage.output_tokens"] == 6
        assert span.attributes["gen_ai.response.finish_reasons"] == ["completed"]


@pytest.mark.parametrize("doubled", [False, True])
async def test_the_messages_api_is_passed_through(attempt, serve, gateway, post, doubled):
    """Also for clients that add /v1 to a base URL which has it already."""
    data = sse(*anthropic_events(), done=False)
    upstream = await serve(streaming(data))
    path = "v1/messages" if doubled else "messages"
    _, body = await post(await gateway(upstream), path, messages=HELLO, max_tokens=9, stream=True)
    assert body == data
    assert upstream.requests[0].path == "/v1/messages"
    span = await attempt.span()
    answer = json.loads(span.attributes["output.value"])
    assert answer["content"] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
    ]
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 9}
    assert answer["stop_reason"] == "tool_use"
    assert span.attributes["gen_ai.response.finish_reasons"] == ["tool_use"]


async def test_embeddings_are_recorded_without_their_vectors(attempt, serve, gateway, post):
    answer = {
        "object": "list",
        "model": "e",
        "data": [{"index": 0, "embedding": [0.1]}],
        "usage": {"prompt_tokens": 3},
    }
    upstream = await serve(always(answer))
    _, body = await post(await gateway(upstream), "embeddings", input="Hello")
    assert json.loads(body) == answer
    span = await attempt.span()
    assert span.attributes["openinference.span.kind"] == "EMBEDDING"
    assert span.attributes["gen_ai.usage.input_tokens"] == 3
    assert "0.1" not in span.attributes["output.value"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_nobody_is_passed_on_as_it_is_and_not_recorded(attempt, serve, gateway, post, stream):
    data = sse(*vllm_chat_chunks())
    upstream = await serve(streaming(data) if stream else always(vllm_chat()))
    proxy = await gateway(upstream)
    _, body = await post(proxy, prefix="", messages=HELLO, stream=stream)
    assert upstream.requests[0].json == {"model": "m", "messages": HELLO, "stream": stream}
    assert body == data if stream else json.loads(body) == vllm_chat()
    await proxy.flush()
    assert await attempt.spans() == []
    assert proxy.written == 0


async def test_half_a_prefix_is_nobodys_call_and_is_refused(serve, gateway, post):
    upstream = await serve(always(vllm_chat()))
    status, body = await post(await gateway(upstream), prefix="/rollout/ro-1", messages=HELLO)
    assert status == 404
    assert b"/rollout/ID/attempt/ID" in body
    assert upstream.requests == []


async def test_an_error_of_the_upstream_is_passed_on_and_recorded(attempt, serve, gateway, post):
    error = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    upstream = await serve(always(error, 400, **{"x-request-id": "r1"}))
    status, body = await post(await gateway(upstream), messages=HELLO)
    assert (status, json.loads(body)) == (400, error)
    # Once more without what was added, which may have been at fault.
    assert [request.json.get("return_token_ids") for request in upstream.requests] == [True, None]
    span = await attempt.span()
    assert span.status.status_code == "ERROR"
    assert "400: too long" in span.status.description
    assert span.attributes["error.type"] == "400"
    assert span.attributes["lightning.llm_proxy.status"] == 400
    assert json.loads(span.attributes["output.value"]) == error
    assert (await attempt.call()).choices == []


async def test_an_upstream_that_refuses_to_be_asked_still_answers(attempt, serve, gateway, post, caplog):
    async def answer(request: Request):
        strict = "return_token_ids" in request.json
        return await always(
            {"error": {"message": "unknown argument"}} if strict else {"id": "x"}, 400 * strict or 200
        )(request)

    upstream = await serve(answer)
    proxy = await gateway(upstream)
    for _ in range(2):
        status, body = await post(proxy, messages=HELLO)
        assert (status, json.loads(body)) == (200, {"id": "x"})
    assert len(upstream.requests) == 3
    assert [span.attributes["lightning.llm_proxy.capture_refused"] for span in await attempt.spans()] == [
        True
    ] * 2
    assert caplog.text.count("refuses to be asked for token ids") == 1


async def test_an_error_within_a_stream_is_an_error(attempt, serve, gateway, post):
    chunks = vllm_chat_chunks()[:2]
    upstream = await serve(streaming(sse(*chunks, {"error": {"message": "out of memory", "code": 500}})))
    await post(await gateway(upstream), messages=HELLO, stream=True)
    span = await attempt.span()
    assert span.status.status_code == "ERROR"
    assert "out of memory" in span.status.description
    assert LLMCall.from_span(span).response.message["content"] == "Hi"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": "other"}'])
async def test_a_refused_call_is_recorded(attempt, serve, gateway, client, body):
    upstream = await serve(always(vllm_chat()))
    proxy = await gateway(upstream)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    async with client.post(f"{url}/chat/completions", data=body) as response:
        assert response.status in (400, 404)
        error = (await response.json())["error"]
    span = await attempt.span()
    assert span.status.description == error["message"]
    assert span.attributes["input.value"] == body.decode()
    assert upstream.requests == []


async def test_the_span_is_in_the_store_before_the_answer_ends(attempt, serve, gateway, post):
    """So it is there before the attempt can end."""
    upstream = await serve(streaming(sse(*vllm_chat_chunks())))
    proxy = await gateway(upstream)
    for number in range(20):
        await post(proxy, messages=HELLO, stream=True)
        assert len(await attempt.spans()) == number + 1


async def test_the_mark_of_the_end_waits_for_the_span(attempt, serve, gateway, client):
    """Many clients read no further than that."""
    go_on = asyncio.Event()

    class Gated(InMemoryLightningStore):
        async def add_spans(self, spans):
            while not go_on.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return await attempt.store.add_spans(spans)

    upstream = await serve(streaming(sse(*vllm_chat_chunks())))
    proxy = await gateway(upstream, store=Gated(), confirm_seconds=60)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    body = {"model": "m", "messages": [], "stream": True}
    async with client.post(f"{url}/chat/completions", json=body) as response:
        await response.content.readuntil(b'"stop"')
        end = asyncio.create_task(response.content.readuntil(b"[DONE]"))
        await asyncio.wait([end], timeout=0.3)
        assert not end.done()
        go_on.set()
        await end
        assert len(await attempt.spans()) == 1


async def test_spans_are_in_the_order_in_which_calls_ended(attempt, serve, gateway, post):
    upstream = await serve(always(vllm_chat()))
    proxy = await gateway(upstream)
    for number in range(5):
        await post(proxy, messages=HELLO, n=number)
    spans = await attempt.spans()
    assert [json.loads(span.attributes["input.value"])["n"] for span in spans] == list(range(5))
    assert [span.sequence_id for span in spans] == sorted({span.sequence_id for span in spans})


async def test_a_call_belongs_to_the_trace_of_its_client(attempt, serve, gateway, client):
    upstream = await serve(always(vllm_chat()))
    proxy = await gateway(upstream)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    trace, parent = "ab" * 16, "cd" * 8
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    for _ in range(2):
        async with client.post(f"{url}/chat/completions", json={"model": "m"}, headers=headers):
            pass
        headers = {"traceparent": "00-nonsense"}
    first, second = await attempt.spans()
    assert (first.trace_id, first.parent_id) == (trace, parent)
    assert second.trace_id != trace
    assert second.parent_id is None
