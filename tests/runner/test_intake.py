"""How a runner asks for work: for all free slots at once, and for the resources of what it gets only once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_core import AgentRunnerV2, InMemoryLightningStore, rollout
from lightning_core.errors import NoResourcesError
from lightning_core.runner.intake import BatchResources
from lightning_core.runner.outage import Outage
from lightning_core.store.base import EnqueueRequest
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM

PATIENCE = 20.0


class Counting(InMemoryLightningStore):
    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []
        self.reads = 0
        self.writes = 0
        self.reading: asyncio.Event | None = None

    async def dequeue_rollouts(self, limit: int = 1, *args: Any, **keywords: Any) -> Any:
        self.limits.append(limit)
        return await super().dequeue_rollouts(limit, *args, **keywords)

    async def get_latest_resources(self) -> Any:
        self.reads += 1
        if self.reading is not None:
            await self.reading.wait()
        return await super().get_latest_resources()

    async def add_spans(self, spans: Any) -> int:
        self.writes += 1
        return await super().add_spans(spans)


@pytest.fixture
async def store() -> Counting:
    store = Counting()
    await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")})
    return store


async def test_a_hundred_slots_take_a_hundred_rollouts_in_one_request(store: Counting):
    together = asyncio.Barrier(100)

    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        await together.wait()
        return 1.0

    await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(100)])
    runner = AgentRunnerV2(DummyTracer(), 100, concurrency=100)
    with runner.run_context(agent=agent, store=store):
        await asyncio.wait_for(runner.iter(), PATIENCE)
    assert store.limits == [100]
    assert store.reads == 1
    # The reward that each returned goes along with its trace.
    assert store.writes == 100


async def test_slots_that_become_free_one_by_one_share_requests(store: Counting):
    """And none is left idle while there is work."""
    total, running, most = 600, 0, 0
    turn, full = asyncio.Semaphore(0), asyncio.Event()

    @rollout
    async def agent(task: int, llm: LLM) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 100:
            full.set()
        # One ends after the other, each in its own turn of the event loop.
        await turn.acquire()
        await asyncio.sleep(0)
        turn.release()
        running -= 1

    await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(total)])
    runner = AgentRunnerV2(DummyTracer(), total, concurrency=100)
    with runner.run_context(agent=agent, store=store):
        iterating = asyncio.create_task(runner.iter())
        await asyncio.wait_for(full.wait(), PATIENCE)
        turn.release()
        await asyncio.wait_for(iterating, PATIENCE)
    assert most == 100
    assert sum(store.limits) >= total
    assert len(store.limits) < total / 6
    assert max(store.limits) <= 100


def outage() -> Outage:
    return Outage("w", 1.0, over=lambda: False)


async def test_resources_are_read_once_for_a_batch_and_cancelling_one_harms_no_other(store: Counting):
    store.reading = asyncio.Event()
    rollouts = [await store.start_rollout(number) for number in range(3)]
    resources = BatchResources(store, outage(), shared=True)
    asking = [asyncio.create_task(resources.of(one)) for one in rollouts]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.wait({asking[0]})
    store.reading.set()
    first, second = await asyncio.gather(*asking[1:])
    assert store.reads == 1
    assert first == second
    assert first["llm"] is not second["llm"]


async def test_a_reading_that_nobody_waits_for_is_ended_and_begun_anew_by_the_next(store: Counting):
    store.reading = asyncio.Event()
    one, other = [await store.start_rollout(number) for number in range(2)]
    resources = BatchResources(store, outage(), shared=True)
    asking = asyncio.create_task(resources.of(one))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    store.reading.set()
    assert "llm" in await resources.of(other)
    assert store.reads == 2
    # Nothing of it is left behind.
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_each_rollout_of_a_batch_is_told_of_what_is_missing():
    store = InMemoryLightningStore()
    rollouts = [await store.start_rollout(number) for number in range(2)]
    resources = BatchResources(store, outage(), shared=True)
    for one in rollouts:
        with pytest.raises(NoResourcesError, match=one.rollout_id):
            await resources.of(one)
