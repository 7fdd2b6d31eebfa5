"""A store behind the OTLP route, called in-process or over a socket, and an endpoint that records what it gets."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import uvicorn
from lightning_store_http.otlp import routes
from lightning_store_http.otlp.values import write_attributes
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_core.store.memory import InMemoryLightningStore

PROTOBUF = {"content-type": "application/x-protobuf"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Post = Callable[..., Awaitable[Answer]]


async def call(app: Any, body: bytes, headers: dict[str, str], path: str = "/v1/traces") -> Answer:
    """Send one POST to an ASGI application, the body in two parts."""
    half = len(body) // 2
    parts = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:], "more_body": False},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }
    await app(scope, receive, send)
    answered = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, b"".join(part.get("body", b"") for part in sent[1:]))


@contextmanager
def serve_app(app: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread, and give its URL."""
    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    assert ready.wait(20)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


class Sink:
    """An OTLP endpoint that records what it takes, after it has given the answers in ``script``."""

    def __init__(self) -> None:
        self.url = ""
        self.app = Starlette(routes=[Route("/v1/traces", self._take, methods=["POST"])])
        self._changed = threading.Condition()
        self.reset()

    def reset(self) -> None:
        self.script: list[Response] = []
        self.most_spans = 10_000
        self.requests: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []
        self.refused = 0

    async def _take(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            try:
                if self.script:
                    self.refused += 1
                    return self.script.pop(0)
                if sum(1 for _ in spans_of(message)) > self.most_spans:
                    self.refused += 1
                    return Response(status_code=413)
                self.requests.append((dict(request.headers), message))
            finally:
                self._changed.notify_all()
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type="application/x-protobuf")

    @property
    def spans(self) -> list[OtlpSpan]:
        return [span for _, message in self.requests for span in spans_of(message)]

    def wait_for(self, spans: int = 0, refused: int = 0) -> None:
        """Wait until so many spans were taken, and so many requests refused."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.spans) >= spans and self.refused >= refused, timeout=20
            ), f"{len(self.spans)} spans, {self.refused} refused"


def spans_of(message: ExportTraceServiceRequest) -> list[OtlpSpan]:
    return [
        span
        for resource_spans in message.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


@pytest.fixture(scope="module")
def sink_server() -> Iterator[Sink]:
    sink = Sink()
    with serve_app(sink.app) as url:
        sink.url = url
        yield sink


@pytest.fixture
def sink(sink_server: Sink) -> Sink:
    sink_server.reset()
    return sink_server


@pytest.fixture
def store() -> InMemoryLightningStore:
    return InMemoryLightningStore()


@pytest.fixture
def post(store: InMemoryLightningStore) -> Post:
    app = Starlette(routes=routes(store, max_body_bytes=200_000))

    async def post(body: bytes | ExportTraceServiceRequest, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else body.SerializeToString()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await call(app, raw, PROTOBUF | named)

    return post


@pytest.fixture
async def rollout(store: InMemoryLightningStore) -> tuple[str, str]:
    """The ids of a running rollout and its attempt."""
    started = await store.start_rollout({"task": 1})
    return started.rollout_id, started.attempt.attempt_id


@pytest.fixture
def make_request() -> Callable[..., ExportTraceServiceRequest]:
    """Make a request of one resource and one scope."""

    def make(*spans: OtlpSpan, resource: dict[str, str] | None = None) -> ExportTraceServiceRequest:
        request = ExportTraceServiceRequest()
        resource_spans = request.resource_spans.add()
        resource_spans.resource.attributes.extend(write_attributes(resource or {}))
        resource_spans.scope_spans.add().spans.extend(spans)
        return request

    return make


@pytest.fixture
def make_span() -> Callable[..., OtlpSpan]:
    """Make the span of a number, which ends that many nanoseconds after the others began."""

    def make(number: int = 1, **fields: Any) -> OtlpSpan:
        attributes: dict[str, Any] = fields.pop("attributes", {})
        begin = 1_700_000_000_000_000_000
        values: dict[str, Any] = {
            "trace_id": b"\x01" * 16,
            "span_id": number.to_bytes(8, "big"),
            "name": f"span {number}",
            "start_time_unix_nano": begin,
            "end_time_unix_nano": begin + number,
            "attributes": write_attributes(attributes),
        }
        return OtlpSpan(**(values | fields))

    return make


@pytest.fixture
def serve() -> Callable[[Any], Any]:
    """Serve an ASGI application, as a context manager that gives its URL."""
    return serve_app
