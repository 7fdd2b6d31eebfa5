"""The programs of examples/command-agents, really run as agents, against an endpoint that notes who calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_core import AgentRunnerV2, CommandAgent, InMemoryLightningStore, ProxyLLM
from lightning_core.emitter import find_final_reward
from lightning_core.tracer import DummyTracer

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

FOLDER = Path(__file__).parents[2] / "examples" / "command-agents"
TASKS = [{"question": "What is 2 + 2?", "answer": "4"}, {"question": "What is 2 + 3?", "answer": "5"}]


class Model(BaseHTTPRequestHandler):
    """A model that says 4, and notes the requests."""

    requests: list[tuple[str, str | None, Any]]

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "four", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, self.headers["Authorization"], request))
        self.answer({"choices": [{"index": 0, "message": {"role": "assistant", "content": " 4\n"}}]})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def model() -> Iterator[tuple[str, list[tuple[str, str | None, Any]]]]:
    """The URL of an endpoint, and the requests that it gets."""
    requests: list[tuple[str, str | None, Any]] = []
    handler = type("Handler", (Model,), {"requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def command(language: str) -> list[str]:
    if language == "python":
        return [sys.executable, str(FOLDER / "agent.py")]
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the agent in JavaScript cannot be run")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"node is {version.strip()}, and the agent in JavaScript needs 18 or newer")
    return [node, str(FOLDER / "agent.mjs")]


@pytest.mark.parametrize("language", ["python", "node"])
async def test_program_is_an_agent(
    language: str, model: tuple[str, list[tuple[str, str | None, Any]]]
) -> None:
    url, requests = model
    store = InMemoryLightningStore()
    await store.add_resources({"llm": ProxyLLM(endpoint=f"{url}/v1", model="four", api_key="the-key")})
    rollouts = [await store.enqueue_rollout(task) for task in TASKS]
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), max_rollouts=2, concurrency=2)
    with runner.run_context(agent=CommandAgent(command(language), timeout_seconds=60), store=store):
        await runner.iter()
    paths: set[str] = set()
    for rollout, reward in zip(rollouts, [1.0, 0.0], strict=True):
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert attempt.status == "succeeded", attempt.metadata
        assert find_final_reward(await store.query_spans(rollout.rollout_id)) == reward
        paths.add(f"/rollout/{rollout.rollout_id}/attempt/{attempt.attempt_id}/v1/chat/completions")
    assert {path for path, _, _ in requests} == paths
    assert {key for _, key, _ in requests} == {"Bearer the-key"}
    assert sorted(request["messages"][0]["content"] for _, _, request in requests) == [
        task["question"] for task in TASKS
    ]


@pytest.mark.parametrize("language", ["python", "node"])
def test_whole_example_runs(language: str, model: tuple[str, list[Any]]) -> None:
    url, requests = model
    arguments = [] if language == "python" else [" ".join(command(language))]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), *arguments],
        env=os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "four"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mean reward 0.50\n"
    assert len(requests) == 2
