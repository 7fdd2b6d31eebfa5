"""A small server that speaks OpenAI's protocol, and tracers that are taken back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from lightning_tracer_agentops import AgentOpsTracer

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def make_message(request: dict[str, Any]) -> dict[str, Any]:
    """The text of the last message; where tools are offered, first a call of each of them."""
    last = request["messages"][-1]
    if last["content"] == "fail":
        return {}
    if request.get("tools") and last["role"] != "tool":
        calls = [
            {
                "id": f"call-{index}",
                "type": "function",
                "function": {"name": tool["function"]["name"], "arguments": '{"city":  "Rome"}'},
            }
            for index, tool in enumerate(request["tools"])
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    content = last["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    return {"role": "assistant", "content": text}


def make_chunks(message: dict[str, Any], reason: str) -> Iterator[dict[str, Any]]:
    if message["content"] is not None:
        for letter in message["content"]:
            yield {"delta": {"role": "assistant", "content": letter}}
    for index, call in enumerate(message.get("tool_calls", ())):
        for arguments in (call["function"]["arguments"][:5], call["function"]["arguments"][5:]):
            part: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
            if arguments == call["function"]["arguments"][:5]:
                part = {**call, **part, "function": {**call["function"], "arguments": arguments}}
            yield {"delta": {"role": "assistant", "tool_calls": [part]}}
    yield {"delta": {}, "finish_reason": reason}


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        head = {"id": "chat-1", "created": 1, "model": "echo-1"}
        message = make_message(request) if "messages" in request else {}
        if self.path.endswith("/responses"):
            self.send_json(make_response(request))
            return
        if not message:
            self.send_json({"error": {"message": "no", "type": "invalid_request_error"}}, 400)
            return
        reason = "tool_calls" if "tool_calls" in message else "stop"
        if not request.get("stream"):
            choice = {"index": 0, "finish_reason": reason, "message": message, **self.server.extras}
            self.send_json({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        head["object"] = "chat.completion.chunk"
        for choice in make_chunks(message, reason):
            self.send_event({**head, "choices": [{"index": 0, "finish_reason": None, **choice}]})
        if request.get("stream_options", {}).get("include_usage"):
            self.send_event({**head, "choices": [], "usage": USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def send_json(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def make_response(request: dict[str, Any]) -> dict[str, Any]:
    part = {"type": "output_text", "text": request["input"], "annotations": []}
    message = {
        "type": "message",
        "id": "msg-1",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1,
        "model": "echo-1",
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Model)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.extras: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(running: Server) -> Server:
    """A model that echoes; ``requests`` are those of this test."""
    running.requests.clear()
    return running


@pytest.fixture
def make_tracer() -> Iterator[Callable[..., AgentOpsTracer]]:
    made: list[AgentOpsTracer] = []

    def make(**settings: Any) -> AgentOpsTracer:
        tracer = AgentOpsTracer(**settings)
        made.append(tracer)
        return tracer

    yield make
    for tracer in made:
        tracer.teardown()
