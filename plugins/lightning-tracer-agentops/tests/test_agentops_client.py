"""With a key: every trace is sent to AgentOps too, its client works, and nothing of it stays."""

from __future__ import annotations

import builtins
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from opentelemetry import trace as trace_api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import SecretStr

from lightning_core import resolve
from lightning_core.emitter import emit_reward

KEY = "key-1234"


class Service(BaseHTTPRequestHandler):
    """What AgentOps offers: a token for the right key, and a place for spans."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        if self.path == "/v3/auth/token":
            known = json.loads(body)["api_key"] == KEY
            self.answer(200 if known else 401, {"token": "token-1", "project_id": "project"} if known else {})
        elif self.headers["Authorization"] != "Bearer token-1" or self.server.refuses:
            self.answer(401, {})
        else:
            self.server.headers.append(dict(self.headers))
            self.server.bodies.append(ExportTraceServiceRequest.FromString(body))
            self.answer(200, {})

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Service)
        self.paths, self.bodies, self.headers, self.refuses = [], [], [], False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> list:
        scopes = [scope for body in self.bodies for each in body.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@pytest.fixture
def agentops_server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def settings(server, key=KEY):
    return {"api_key": key, "endpoint": server.url, "exporter_endpoint": f"{server.url}/v1/traces"}


def attributes_of(span) -> dict:
    return {each.key: each.value.string_value for each in span.attributes}


def test_every_trace_is_sent_with_the_token_for_the_key(make_tracer, agentops_server, server, monkeypatch):
    """Also in a second set-up: trap 33. What the environment has for other endpoints is not sent along."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-secret=theirs")
    tracer = make_tracer(**settings(agentops_server))
    for number in range(2):
        tracer.init_worker(0)
        with tracer.trace_context("rollout") as trace:
            with openai.OpenAI(base_url=server.url, api_key="none") as client:
                client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
            emit_reward(number)
        tracer.teardown_worker(0)
        sent = {span.name: span for span in agentops_server.sent()}
        assert set(sent) == {"openai.chat.completion", "lightning.reward", "rollout"}
        assert [span.name for span in trace.spans] == [
            "openai.chat.completion",
            "lightning.reward",
            "rollout",
        ]
        assert attributes_of(sent["openai.chat.completion"])["gen_ai.prompt.0.content"] == "hi"
        assert attributes_of(sent["rollout"])["agentops.span.kind"] == "session"
        assert sent["openai.chat.completion"].parent_span_id == sent["rollout"].span_id
        agentops_server.bodies.clear()
    assert agentops_server.paths == ["/v3/auth/token", "/v1/traces"] * 2
    assert not any("x-secret" in headers for headers in agentops_server.headers)


def test_the_decorators_of_agentops_work_while_it_is_set_up(make_tracer, agentops_server):
    import agentops
    from agentops.sdk import core
    from agentops.sdk.decorators import operation

    @operation
    def think(text: str) -> str:
        emit_reward(1)
        return text.upper()

    tracer = make_tracer(**settings(agentops_server))
    for _ in range(2):
        tracer.init_worker(0)
        assert core.tracer.initialized
        with tracer.trace_context("rollout") as trace:
            assert think("hi") == "HI"
        tracer.teardown_worker(0)
        names = [span.name for span in trace.spans]
        assert names == ["lightning.reward", "think.task", "rollout"]
        assert {span.name for span in agentops_server.sent()} == set(names)
        assert not core.tracer.initialized
        assert core.tracer.provider is None
        assert not agentops.get_client().initialized


def test_nothing_of_the_process_changes(make_tracer, agentops_server, monkeypatch, tmp_path):
    """``agentops.init`` would replace all of it."""
    monkeypatch.chdir(tmp_path)
    before = (
        builtins.print,
        builtins.__import__,
        trace_api.get_tracer_provider(),
        list(logging.getLogger("opentelemetry").handlers),
    )
    threads = set(threading.enumerate())
    tracer = make_tracer(**settings(agentops_server))
    tracer.init_worker(0)
    with tracer.trace_context("rollout"):
        emit_reward(1)
        now = (
            builtins.print,
            builtins.__import__,
            trace_api.get_tracer_provider(),
            list(logging.getLogger("opentelemetry").handlers),
        )
        assert now == before
    tracer.teardown_worker(0)
    mine = {thread for thread in threading.enumerate() if "process_request" not in thread.name}
    assert mine <= threads
    assert not list(tmp_path.iterdir())


def test_a_wrong_key_is_a_warning_and_the_trace_is_kept(make_tracer, agentops_server, caplog):
    tracer = make_tracer(**settings(agentops_server, SecretStr("key-wrong")))
    tracer.init_worker(0)
    with tracer.trace_context("rollout") as trace:
        emit_reward(1)
    tracer.teardown_worker(0)
    assert len(trace.spans) == 2
    assert not agentops_server.bodies
    assert f"no token for the api_key of the tracer ({agentops_server.url}/v3/auth/token: 401)" in caplog.text
    assert "key-wrong" not in caplog.text


def test_spans_that_do_not_arrive_are_a_warning(make_tracer, agentops_server, caplog):
    agentops_server.refuses = True
    tracer = make_tracer(**settings(agentops_server))
    tracer.init_worker(0)
    with tracer.trace_context("rollout"):
        emit_reward(1)
    tracer.teardown_worker(0)
    assert f"2 spans did not reach AgentOps at {agentops_server.url}/v1/traces: 401" in caplog.text


def test_a_token_that_expires_is_replaced(make_tracer, agentops_server):
    tracer = make_tracer(**settings(agentops_server))
    tracer.init_worker(0)
    tracer._client._forward.target.span_exporter._token = "token-0"
    with tracer.trace_context("rollout"):
        pass
    tracer.teardown_worker(0)
    assert [span.name for span in agentops_server.sent()] == ["rollout"]


def test_the_key_is_a_secret_setting(agentops_server):
    tracer = resolve("tracer", {"type": "agentops", **settings(agentops_server)})
    assert KEY not in repr(vars(tracer)) + repr(vars(tracer._client))
    tracer.init_worker(0)
    with tracer.trace_context("rollout"):
        pass
    tracer.teardown_worker(0)
    assert [span.name for span in agentops_server.sent()] == ["rollout"]


# A program that calls agentops.init() itself


def test_spans_of_the_programs_own_agentops_are_recorded(make_tracer, monkeypatch):
    """With a provider of its own, as ``agentops.init`` makes it."""
    from agentops.sdk import core
    from opentelemetry.sdk.trace import TracerProvider

    theirs = TracerProvider(shutdown_on_exit=False)
    before = theirs._active_span_processor._span_processors
    tracer = make_tracer(agentops_managed=False)
    tracer.init_worker(0)
    monkeypatch.setattr(core.tracer, "provider", theirs)
    monkeypatch.setattr(core.tracer, "_initialized", True)
    with tracer.trace_context("rollout") as trace:
        theirs.get_tracer("agentops").start_span("think.operation").end()
    assert [span.name for span in trace.spans] == ["think.operation", "rollout"]
    tracer.teardown_worker(0)
    assert theirs._active_span_processor._span_processors == before
    theirs.shutdown()
