"""Spans that OpenInference's instrumentation of the openai package really writes, against a small HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from lightning_adapter_triplet import TraceTripletAdapter
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightning_core.types import Span

LOGPROBS = [{"id": 4, "token": "Hel", "logprob": -0.5}, {"id": 5, "token": "lo", "logprob": -0.25}]
TOOL_CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


class Engine(BaseHTTPRequestHandler):
    """Answers as vLLM (``return_token_ids``) or llama.cpp (ids beside the log-probabilities) would."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"] == "broken":
            self._send(400, "application/json", json.dumps({"error": {"message": "no such model"}}))
        elif body.get("stream"):
            self._send(200, "text/event-stream", "".join(f"data: {line}\n\n" for line in self._stream(body)))
        else:
            self._send(200, "application/json", json.dumps(self._answer(body)))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "Hello"}
        if body.get("tools"):
            message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}  # type: ignore[dict-item] - JSON
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = self._head("chat.completion")
        if body.get("return_token_ids"):
            answer["prompt_token_ids"], choice["token_ids"] = [1, 2, 3], [4, 5]
        if body.get("logprobs"):
            choice["logprobs"] = {
                "content": [{**entry, "bytes": [], "top_logprobs": []} for entry in LOGPROBS]
            }
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {**answer, "choices": [choice], "usage": usage}

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        for number, text in enumerate(["Hel", "lo"]):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
            chunk = self._head("chat.completion.chunk")
            if body.get("return_token_ids"):
                choice["token_ids"] = [4 + number]
                if number == 0:
                    chunk["prompt_token_ids"] = [1, 2, 3]
            yield json.dumps({**chunk, "choices": [choice]})
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield json.dumps({**self._head("chat.completion.chunk"), "choices": [last]})
        yield "[DONE]"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.client_address[1]}", "object": kind, "created": 1, "model": "answered"}

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="x", max_retries=0
    ) as client:
        yield client
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


def both_forms(spans: tuple[ReadableSpan, ...]) -> list[list[Any]]:
    stored = [Span.from_opentelemetry(span, "r", "a", number) for number, span in enumerate(spans, 1)]
    return [list(spans), list(stored)]


def test_a_chat_with_token_ids(client: openai.OpenAI, exporter: InMemorySpanExporter) -> None:
    messages: Any = [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}]
    client.chat.completions.create(
        model="asked", messages=messages, temperature=0.5, extra_body={"return_token_ids": True}
    )
    for spans in both_forms(exporter.get_finished_spans()):
        (triplet,) = TraceTripletAdapter().adapt(spans)
        assert triplet.prompt["messages"] == messages
        assert triplet.prompt["token_ids"] == [1, 2, 3]
        assert triplet.response["message"] == {"role": "assistant", "content": "Hello"}
        assert triplet.response["token_ids"] == [4, 5]
        assert triplet.response["finish_reason"] == "stop"
        assert triplet.metadata["model"] == "answered"
        assert triplet.metadata["response_id"].startswith("chatcmpl-")
        assert triplet.metadata["parameters"]["temperature"] == 0.5


def test_token_ids_beside_log_probabilities(client: openai.OpenAI, exporter: InMemorySpanExporter) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], logprobs=True)
    (triplet,) = TraceTripletAdapter().adapt(exporter.get_finished_spans())
    assert triplet.prompt["token_ids"] is None
    assert (triplet.response["token_ids"], triplet.response["logprobs"]) == ([4, 5], [-0.5, -0.25])


def test_a_conversation_with_tools(client: openai.OpenAI, exporter: InMemorySpanExporter) -> None:
    earlier = {**TOOL_CALL, "id": "t0"}
    messages: Any = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "tool_call_id": "t0", "content": "42"},
    ]
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    client.chat.completions.create(model="m", messages=messages, tools=tools)
    (triplet,) = TraceTripletAdapter().adapt(exporter.get_finished_spans())
    assert triplet.prompt["messages"] == messages
    assert triplet.prompt["tools"] == tools
    assert triplet.response["message"] == {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}


def test_a_stream_that_was_read_to_its_end(client: openai.OpenAI, exporter: InMemorySpanExporter) -> None:
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"return_token_ids": True},
    )
    assert len(list(stream)) == 3
    (triplet,) = TraceTripletAdapter().adapt(exporter.get_finished_spans())
    assert triplet.response["message"]["content"] == "Hello"
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([1, 2, 3], [4, 5])


def test_a_call_that_fails(client: openai.OpenAI, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="broken", messages=[{"role": "user", "content": "hi"}])
    spans = exporter.get_finished_spans()
    assert TraceTripletAdapter().adapt(spans) == []
    assert "no such model" in str(TraceTripletAdapter().explain(spans).empty_because)
