"""Programs of examples/command-agents behind the proxy: each call is recorded in the rollout of its program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from aiohttp import web

from lightning_core import AgentRunnerV2, CommandAgent
from lightning_core.emitter import find_final_reward
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLMCall

from .node import beside_openai, node
from .upstream import Request, always, streaming
from .wire import sse, vllm_chat, vllm_chat_chunks

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")

EXAMPLES = Path(__file__).parents[3] / "examples" / "command-agents"


@pytest.fixture(params=["python", "node", "node with openai"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """One of the programs."""
    if request.param == "python":
        return [sys.executable, str(EXAMPLES / "agent.py")]
    if request.param == "node":
        return [node(), str(EXAMPLES / "agent.mjs")]
    return beside_openai(EXAMPLES / "agent-openai.mjs")


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
