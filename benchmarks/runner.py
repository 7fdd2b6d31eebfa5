"""The runner: CPU milliseconds of a rollout whose agent does nothing."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks.measure import table
from lightning_core import LLM, AgentRunnerV2, InMemoryLightningStore, rollout
from lightning_core.plugin import resolve
from lightning_core.store.base import EnqueueRequest

NUMBER = 500


@rollout
async def async_agent(task: Any, llm: LLM) -> float:
    """Do nothing."""
    return 1.0


@rollout
def sync_agent(task: Any, llm: LLM) -> float:
    """Do nothing, in a thread."""
    return 1.0


def bare_tasks() -> float:
    """CPU seconds of an asyncio task that does nothing."""

    async def nothing() -> float:
        return 1.0

    async def loop() -> None:
        for _ in range(NUMBER):
            await asyncio.create_task(nothing())

    begin = time.process_time()
    asyncio.run(loop())
    return (time.process_time() - begin) / NUMBER


def rollouts(tracer: Any, agent: Any) -> float:
    """CPU seconds per rollout, from the queue to its final state."""

    async def loop() -> float:
        store = InMemoryLightningStore()
        await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")})
        await store.enqueue_rollouts([EnqueueRequest(input=index) for index in range(NUMBER)])
        runner: AgentRunnerV2[Any] = AgentRunnerV2(tracer, max_rollouts=NUMBER)
        with runner.run_context(agent=agent, store=store):
            begin = time.process_time()
            await runner.iter()
            seconds = (time.process_time() - begin) / NUMBER
        assert (await store.statistics()).rollouts == {"succeeded": NUMBER}
        return seconds

    return asyncio.run(loop())


def main() -> None:
    """Run the benchmark."""
    rows = []
    for name in ("dummy", "otel"):
        try:
            tracer = resolve("tracer", name)
        except LookupError as error:
            print(f"{name}: {error}")
            continue
        for label, agent in (("async", async_agent), ("sync", sync_agent)):
            raw, ours = [], []
            for number in range(8):
                one, other = bare_tasks(), rollouts(tracer, agent)
                if number:
                    raw.append(one)
                    ours.append(other)
            rows.append([name, label, statistics.median(ours) * 1e3, statistics.median(raw) * 1e3])
    table(["tracer", "agent", "ms per rollout", "ms per bare asyncio task"], rows)
