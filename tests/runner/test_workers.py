"""What the store knows of the workers: ids that nobody else has, CPU and memory, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import psutil
import pytest

from lightning_core import AgentRunnerV2, InMemoryLightningStore, rollout
from lightning_core.errors import StoreUnavailableError
from lightning_core.execution.event import StopEvent
from lightning_core.runner import heartbeat
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.identity import ProcessVitals, claim_worker_id, release_worker_id
from lightning_core.runner.outage import Outage
from lightning_core.testing.store import FakeClock
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM, RolloutConfig

PATIENCE = 20.0


@rollout
async def agent(task: Any, llm: LLM) -> float:
    return 1.0


class Watched(InMemoryLightningStore):
    """Counts the calls of workers, and tells when there was one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stats: list[dict[str, Any]] = []
        self.renewals = 0
        self.called = threading.Semaphore(0)
        self.fails = False

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Any:
        self.called.release()
        if self.fails:
            raise StoreUnavailableError("away")
        self.stats.append(heartbeat_stats or {})
        return await super().update_worker(worker_id, heartbeat_stats=heartbeat_stats)

    async def renew_leases(self, worker_id: str, attempts: Any) -> list[str]:
        self.renewals += 1
        lost = await super().renew_leases(worker_id, attempts)
        self.called.release()
        return lost

    async def until_called(self, times: int = 1) -> None:
        for _ in range(times):
            assert await asyncio.to_thread(self.called.acquire, timeout=PATIENCE)


def outage() -> Outage:
    return Outage("w", 1.0, over=lambda: False)


# Ids


def test_no_two_workers_have_the_same_id():
    first, second = claim_worker_id(0), claim_worker_id(0)
    code = "from lightning_core.runner.identity import claim_worker_id; print(claim_worker_id(0))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert len({first, second, other}) == 3
    assert str(os.getpid()) in first
    release_worker_id(first)
    assert claim_worker_id(0) == first
    release_worker_id(first)
    release_worker_id(second)


def test_a_forked_process_has_ids_of_its_own():
    mine = claim_worker_id(7)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, claim_worker_id(7).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()
    release_worker_id(mine)
    assert theirs
    assert theirs != mine
    assert str(pid) in theirs


def test_the_id_can_be_chosen():
    store = InMemoryLightningStore()
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), worker_name="gpu-7")
    runner.init(agent)
    runner.init_worker(3, store)
    assert runner.get_store_worker_id() == "gpu-7-3"
    runner.teardown_worker(3)
    with pytest.raises(ValueError, match="init_worker"):
        runner.get_store_worker_id()
    runner.teardown()


# Vitals


def test_cpu_and_memory_are_those_of_this_process():
    vitals = ProcessVitals()
    first = vitals.read()
    assert (first["pid"], first["cpu_percent"] >= 0) == (os.getpid(), True)
    # Within a factor of two of what the system says a moment later.
    assert (
        psutil.Process().memory_info().rss / 2
        < first["memory_bytes"]
        < psutil.Process().memory_info().rss * 2
    )
    used = first["cpu_seconds"]
    while (second := vitals.read())["cpu_seconds"] < used + 0.1:
        pass
    assert second["cpu_percent"] > 0


def test_importing_the_runner_needs_no_psutil():
    """OpenTelemetry's SDK imports it where it is installed; here it cannot."""
    code = "import sys; sys.modules['psutil'] = None; import lightning_core.runner.agent"
    subprocess.run([sys.executable, "-c", code], check=True)


# Heartbeats


async def test_a_worker_is_known_before_there_is_work_and_says_when_it_ends():
    store, event = Watched(), StopEvent()
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), poll_interval=3600, concurrency=5)
    with runner.run_context(agent=agent, store=store):
        running = asyncio.create_task(runner.iter(event=event))
        await store.until_called()
        event.set()
        await asyncio.wait_for(running, PATIENCE)
    (worker,) = await store.query_workers()
    assert worker.status == "idle"
    assert [stats["ended"] for stats in store.stats] == [False, True]
    assert worker.heartbeat_stats["ended"] is True
    assert (worker.heartbeat_stats["concurrency"], worker.heartbeat_stats["active"]) == (5, 0)


async def test_a_worker_that_is_cancelled_says_so_too():
    store = Watched()
    runner: AgentRunnerV2[Any] = AgentRunnerV2(DummyTracer(), poll_interval=3600)
    with runner.run_context(agent=agent, store=store):
        running = asyncio.create_task(runner.iter())
        await store.until_called()
        running.cancel()
        await asyncio.wait({running}, timeout=PATIENCE)
    assert (await store.query_workers())[0].heartbeat_stats["ended"] is True


async def test_a_worker_that_falls_silent_is_unknown():
    clock = FakeClock()
    store = Watched(clock=clock)
    beats = Heartbeat(store, "w", 60.0, outage())
    beats.start()
    await store.until_called()
    assert [worker.status for worker in await store.query_workers()] == ["idle"]
    clock.advance(61)
    assert [worker.status for worker in await store.query_workers()] == ["unknown"]
    await beats.stop()


async def test_a_worker_at_work_reports_its_vitals_more_rarely_than_it_renews_its_leases():
    """Renewing is a sign of life too, so that one request per beat is enough."""
    store = Watched()
    taken = await store.start_rollout("task", worker_id="w")
    released = asyncio.Event()
    task = asyncio.create_task(released.wait())
    beats = Heartbeat(store, "w", 0.01, outage())
    beats.start()
    beats.watch(taken, task)
    await store.until_called(11)
    assert store.renewals >= 9
    assert len(store.stats) == 1
    released.set()
    await task
    await beats.stop()
    assert len(store.stats) == 2


async def test_vitals_are_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heartbeat, "STATS_SECONDS", 0.02)
    store = Watched()
    beats = Heartbeat(store, "w", 0.01, outage())
    beats.start()
    await store.until_called(4)
    await beats.stop()
    assert not any(stats["ended"] for stats in store.stats[:-1])


async def test_a_heartbeat_goes_on_after_a_failure_and_says_it_once(caplog: pytest.LogCaptureFixture):
    store = Watched()
    store.fails = True
    beats = Heartbeat(store, "w", 0.01, outage())
    beats.start()
    await store.until_called(5)
    store.fails = False
    await store.until_called(1)
    while not store.stats:
        await store.until_called(1)
    await beats.stop()
    assert caplog.text.count("the store is away") == 1


async def test_a_lease_that_is_shorter_than_the_interval_is_renewed_in_time():
    store = Watched()
    taken = await store.start_rollout("task", worker_id="w", config=RolloutConfig(unresponsive_seconds=0.3))
    beats = Heartbeat(store, "w", 3600.0, outage())
    task = asyncio.create_task(asyncio.sleep(3600))
    beats.watch(taken, task)
    await store.until_called(5)
    attempt = await store.get_latest_attempt(taken.rollout_id)
    assert attempt is not None
    assert attempt.status == "running"
    task.cancel()
    await asyncio.wait({task})
    await beats.stop()


async def test_nothing_beats_after_the_end():
    store = Watched()
    beats = Heartbeat(store, "w", 0.01, outage())
    beats.start()
    await store.until_called()
    await beats.stop()
    # A call after the end would fail, and be logged.
    count = len(store.stats)
    await asyncio.sleep(0.05)
    assert len(store.stats) == count


async def test_leases_are_renewed_though_the_worker_cannot_be_described():
    """One request that fails must not keep the other back."""
    store = Watched()
    store.fails = True
    taken = await store.start_rollout("task", worker_id="w")
    beats = Heartbeat(store, "w", 0.01, outage())
    task = asyncio.create_task(asyncio.sleep(3600))
    beats.watch(taken, task)
    beats.start()
    await store.until_called(8)
    assert store.renewals >= 3
    task.cancel()
    await asyncio.wait({task})
    await beats.stop()


async def test_a_worker_that_is_cancelled_twice_is_reported_to_have_ended():
    begun, cancelled, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @rollout
    async def stubborn(task: Any, llm: LLM) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await go_on.wait()

    store = Watched()
    await store.add_resources({"llm": LLM(endpoint="http://localhost", model="none")})
    queued = await store.enqueue_rollout("task")
    runner = AgentRunnerV2[Any](DummyTracer())
    async with asyncio.timeout(PATIENCE):
        with runner.run_context(agent=stubborn, store=store):
            running = asyncio.create_task(runner.iter())
            await begun.wait()
            running.cancel()
            await cancelled.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert store.stats[-1]["ended"]
            go_on.set()
            [ended] = await store.wait_for_rollouts(rollout_ids=[queued.rollout_id])
    assert ended.status == "cancelled"
