"""Programs that are agents of runners in other processes: they trace with OpenTelemetry, and end with their runner."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer
from lightning_store_http.otlp import Forwarder, forwarding

from lightning_core import LLM, CommandAgent, InMemoryLightningStore, Trainer
from lightning_core.bridge import run_sync
from lightning_core.emitter import find_final_reward

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

PATIENCE = 60.0
RESOURCES = {"llm": LLM(endpoint="http://localhost/v1", model="none")}
# A program with OpenTelemetry's own exporter, which it configures by the environment alone.
TRACING = """
import json, sys
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
import os

task = json.load(sys.stdin)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
parent = TraceContextTextMapPropagator().extract({"traceparent": os.environ["TRACEPARENT"]})
with provider.get_tracer("program").start_as_current_span("work", parent, attributes={"task": task}):
    pass
provider.shutdown()
print(task / 10)
"""


def fit(agent: CommandAgent, tasks: list[Any], store: Any, **settings: Any) -> None:
    trainer = Trainer(
        tracer="dummy", store=store, algorithm="baseline", initial_resources=RESOURCES, **settings
    )
    trainer.fit(agent, tasks)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_program_of_a_runner_in_another_process_reports_its_spans(start_method: str) -> None:
    store = InMemoryLightningStore()
    agent = CommandAgent([sys.executable, "-c", TRACING], timeout_seconds=PATIENCE)
    strategy = {"type": "client-server", "n_runners": 2, "start_method": start_method}
    fit(agent, [1, 2, 3], store, strategy=strategy)
    rollouts = run_sync(store.query_rollouts())
    assert [rollout.status for rollout in rollouts] == ["succeeded"] * 3
    for rollout in rollouts:
        spans = run_sync(store.query_spans(rollout.rollout_id))
        named = {span.name: span for span in spans}
        assert sorted(named) == ["lightning.command", "lightning.reward", "work"]
        work, command = named["work"], named["lightning.command"]
        assert work.attributes == {"task": rollout.input}
        assert (work.trace_id, work.parent_id) == (command.trace_id, command.span_id)
        assert work.attempt_id == command.attempt_id
        assert find_final_reward(spans) == rollout.input / 10


def test_store_over_http_is_reported_to_from_threads() -> None:
    store = InMemoryLightningStore()
    with LightningStoreServer(store) as server:
        client = LightningStoreClient(server.url, token=server.token)
        agent = CommandAgent([sys.executable, "-c", TRACING], timeout_seconds=PATIENCE)
        fit(agent, [1, 2], client, n_runners=2)
        run_sync(client.close())
    for rollout in run_sync(store.query_rollouts()):
        names = [span.name for span in run_sync(store.query_spans(rollout.rollout_id))]
        assert sorted(names) == ["lightning.command", "lightning.reward", "work"]


def test_client_knows_the_endpoint_of_its_server_and_does_not_show_the_token() -> None:
    client = LightningStoreClient("http://127.0.0.1:4747", token="the-token")
    assert client.otlp_endpoint.url == "http://127.0.0.1:4747"
    assert client.otlp_endpoint.headers == {"authorization": "Bearer the-token"}
    assert "the-token" not in repr(client.otlp_endpoint)
    assert LightningStoreClient("http://127.0.0.1:4747").otlp_endpoint.headers == {}


def test_endpoint_is_known_through_a_store_that_forwards() -> None:
    forwarder = Forwarder("http://127.0.0.1:4318")
    with LightningStoreServer(InMemoryLightningStore()) as server:
        client = LightningStoreClient(server.url, token=server.token)
        assert forwarding(client, forwarder).otlp_endpoint == client.otlp_endpoint
        run_sync(client.close())
    assert forwarding(InMemoryLightningStore(), forwarder).otlp_endpoint is None


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(reached: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (found := reached()):
        assert time.monotonic() < give_up
        pause.wait(0.02)
    return found


@pytest.mark.timeout(180)
def test_runner_process_that_is_killed_takes_its_program_with_it(tmp_path: Path) -> None:
    store = InMemoryLightningStore()
    # The first attempt waits, along with a child; the second one, in the runner that replaces the first, does not.
    file = tmp_path / "pids"
    code = f'test -e {file} && echo 1 && exit; sleep 1000 & echo "$PPID $$ $!" > {file}.new; mv {file}.new {file}; wait'
    failures: list[BaseException] = []

    def kill() -> None:
        try:
            until(file.exists)
            runner, *programs = map(int, file.read_text().split())
            os.kill(runner, signal.SIGKILL)
            until(lambda: not any(alive(pid) for pid in programs))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=kill)
    thread.start()
    agent = CommandAgent(["/bin/sh", "-c", code], terminate_seconds=1.0)
    fit(agent, ["first", "second"], store, strategy={"type": "client-server"})
    thread.join()
    assert not failures
    attempts = [
        run_sync(store.query_attempts(rollout.rollout_id))[0] for rollout in run_sync(store.query_rollouts())
    ]
    assert [attempt.reason for attempt in attempts] == ["infrastructure", None]
    assert [attempt.status for attempt in attempts] == ["failed", "succeeded"]
