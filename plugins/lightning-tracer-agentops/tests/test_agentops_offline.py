"""Without a key nothing leaves the machine, and nothing of the process changes for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

WATCH = """
import builtins, sys, threading
attempts, local = [], set()

def watch(event, arguments):
    if event == "socket.connect" and arguments[1] not in local:
        attempts.append((event, arguments[1]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in ("127.0.0.1", None):
        attempts.append((event, arguments[0]))

sys.addaudithook(watch)
before = (builtins.print, builtins.__import__, threading.active_count())
"""

ROLLOUTS = (
    WATCH
    + """
import asyncio, json, logging
from http.server import BaseHTTPRequestHandler, HTTPServer
from lightning_core.emitter import emit_reward
from lightning_core.store.memory import InMemoryLightningStore
from lightning_tracer_agentops import AgentOpsTracer

early = [name for name in ("agentops", "openai", "requests", "langchain_core") if name in sys.modules]

class Model(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "hi"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Model)
local.add(server.server_address)
threading.Thread(target=server.serve_forever, daemon=True).start()

async def main():
    store = InMemoryLightningStore()
    tracer = AgentOpsTracer()
    for n in range(2):
        tracer.init()
        tracer.init_worker(0)
        import openai

        handler = tracer.get_langchain_callback_handler()
        from langchain_core.language_models import FakeListChatModel

        rollout = await store.start_rollout(n)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context("rollout", store=store, **ids):
            with openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none") as client:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            FakeListChatModel(responses=["hi"]).invoke("hello", config={"callbacks": [handler]})
            emit_reward(n)
        spans = [span.name for span in await store.query_spans(rollout.rollout_id)]
        assert spans == ["openai.chat.completion", "FakeListChatModel", "lightning.reward", "rollout"], spans
        tracer.teardown_worker(0)
        tracer.teardown()
    await store.close()

asyncio.run(main())
server.shutdown()
from opentelemetry import metrics, trace

print(attempts, early)
print(builtins.print is before[0], builtins.__import__ is before[1])
print(type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__)
print(logging.getLogger().handlers, logging.getLogger("opentelemetry").handlers)
"""
)

IMPORT = (
    WATCH
    + """
import lightning_tracer_agentops.openai_calls
from opentelemetry import trace
print(attempts, threading.active_count() - before[2])
print(builtins.print is before[0], builtins.__import__ is before[1], type(trace.get_tracer_provider()).__name__)
"""
)


def run(program: str, folder, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout.splitlines()


@pytest.mark.parametrize("key", [False, True], ids=["no key", "a key in the environment"])
def test_no_connection_is_tried(tmp_path, key):
    """Not even with a key that the environment happens to have: to be sent, traces need a setting."""
    environment = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_SAMPLER": "always_off",
        "AGENTOPS_API_ENDPOINT": "http://127.0.0.1:9",
    }
    if key:
        environment["AGENTOPS_API_KEY"] = "secret"
    assert run(ROLLOUTS, tmp_path, **environment) == [
        "[] []",
        "True True",
        "ProxyTracerProvider _ProxyMeterProvider",
        "[] []",
    ]


def test_importing_what_is_used_of_agentops_changes_nothing(tmp_path):
    assert run(IMPORT, tmp_path) == ["[] 0", "True True ProxyTracerProvider"]
