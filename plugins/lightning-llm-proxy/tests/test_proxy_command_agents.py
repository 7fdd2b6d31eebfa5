"""Programs of examples/command-agents behind the proxy: each call is recorded in the rollout of its program."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from aiohttp import web

from lightning_core import AgentRunnerV2, CommandAgent
from lightning_core.emitter import find_final_reward
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLMCall

from .upstream import Request, always, streaming
from .wire import sse, vllm_chat, vllm_chat_chunks

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "command-agents"
OPENAI = "openai@6.49.0"
INSTALL_SECONDS = 90


def node() -> str:
    found = shutil.which("node")
    return found or pytest.skip("node is not installed, so agents in JavaScript cannot be run")


@pytest.fixture(scope="session")
def openai_script() -> list[str]:
    """The agent that uses npm's ``openai``, next to that package, which is installed once and kept."""
    program, npm = node(), shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so its package openai cannot be")
    folder = ROOT / ".nox" / "node-packages" / OPENAI
    if not folder.exists():
        install(npm, folder)
    # A module is looked up from where the script is.
    return [program, shutil.copy(EXAMPLES / "agent-openai.mjs", folder)]


def install(npm: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    quiet = (
        "--no-package-lock",
        "--no-save",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--fetch-retries=1",
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as work:
        try:
            done = subprocess.run(
                [npm, "install", *quiet, "--prefix", work, OPENAI],
                cwd=work,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not install {OPENAI} within {INSTALL_SECONDS} s")
        if done.returncode:
            pytest.skip(f"npm could not install {OPENAI}: {done.stderr[-300:].strip()}")
        # Nobody finds half of it; somebody else may have been faster.
        with contextlib.suppress(OSError):
            Path(work).rename(folder)


@pytest.fixture(params=["python", "node", "node with openai"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """One of the programs."""
    if request.param == "python":
        return [sys.executable, str(EXAMPLES / "agent.py")]
    if request.param == "node":
        return [node(), str(EXAMPLES / "agent.mjs")]
    return request.getfixturevalue("openai_script")


@pytest.mark.timeout(240)
async def test_calls_of_a_program_are_recorded_in_its_rollout(command, attempt, serve, gateway):
    async def answer(request: Request) -> web.StreamResponse:
        streamed = streaming(sse(*vllm_chat_chunks())) if request.json.get("stream") else always(vllm_chat())
        return await streamed(request)

    upstream = await serve(answer)
    proxy = await gateway(upstream)
    store = attempt.store
    await store.add_resources({"llm": proxy.as_resource()})
    tasks = [{"question": f"Number {number}?", "answer": "Hi!"} for number in range(3)]
    rollouts = [await store.enqueue_rollout(task) for task in tasks]
    runner = AgentRunnerV2(DummyTracer(), max_rollouts=3, concurrency=3)
    with runner.run_context(agent=CommandAgent(command, timeout_seconds=60), store=store):
        await runner.iter()
    await proxy.flush()
    assert len(upstream.requests) == 3
    for task, rollout in zip(tasks, rollouts, strict=True):
        spans = await store.query_spans(rollout.rollout_id, "latest")
        assert find_final_reward(spans) == 1.0
        [call] = [
            LLMCall.from_span(span)
            for span in spans
            if span.name not in ("lightning.command", "lightning.reward")
        ]
        assert call.messages == [{"role": "user", "content": task["question"]}]
        assert call.prompt_token_ids.ids == [151644, 872, 198, 6023]
        assert call.response.token_ids.ids == [13048, 0, 151645]
