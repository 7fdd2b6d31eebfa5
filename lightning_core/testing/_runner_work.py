"""Runner tests: many rollouts at once, leases and their loss, and what is known of the workers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from lightning_core.emitter import emit_reward
from lightning_core.execution.event import StopEvent
from lightning_core.store.base import LightningStore
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import RolloutConfig, Worker

from ._runner_setup import PATIENCE, RESOURCES, AsyncAgent, MakeRunner, Session, SyncAgent, rewards

__all__ = ["WorkTests"]

MANY = 20


class WorkTests:
    """Rollouts do not disturb each other, leases are kept, and workers can be told apart."""

    concurrent: bool = True

    async def test_traces_of_rollouts_at_the_same_time_do_not_mix(self, session: Session) -> None:
        """Trap 11: in tasks, and in threads."""
        if not self.concurrent:
            pytest.skip("the runner runs one rollout at a time")
        together = asyncio.Barrier(MANY)
        threads_together = threading.Barrier(MANY, timeout=PATIENCE)

        async def emit_async(task: int, resources: Any) -> None:
            await together.wait()
            for number in range(3):
                emit_reward(task + number / 10)
                await asyncio.sleep(0)

        def emit(task: int, resources: Any) -> None:
            threads_together.wait()
            for number in range(3):
                emit_reward(task + number / 10)

        for agent in (AsyncAgent(emit_async), SyncAgent(emit)):
            rollouts = [await session.store.enqueue_rollout(number) for number in range(MANY)]
            runner = session.runner(max_rollouts=MANY, concurrency=MANY)
            with runner.run_context(agent=agent, store=session.store):
                await asyncio.wait_for(runner.iter(), PATIENCE)
            for number, one in enumerate(rollouts):
                stored = await rewards(session.store, one.rollout_id)
                assert stored == [number, number + 0.1, number + 0.2]

    async def test_a_slot_that_is_free_is_filled_while_others_are_busy(self, session: Session) -> None:
        """Not only when a whole batch has ended."""
        if not self.concurrent:
            pytest.skip("the runner runs one rollout at a time")
        all_others_done = asyncio.Event()
        done = 0

        async def wait(task: int, resources: Any) -> None:
            nonlocal done
            if task == 0:
                await all_others_done.wait()
                return
            done += 1
            if done == MANY:
                all_others_done.set()

        rollout, _ = await session.run(AsyncAgent(wait), *range(MANY + 1), concurrency=2)
        assert rollout.status == "succeeded"

    async def test_rollouts_do_not_inherit_each_others_context_variables(self, session: Session) -> None:
        """Each has a context of its own."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
        seen: list[str] = []

        async def look(task: Any, resources: Any) -> None:
            seen.append(variable.get())
            variable.set("dirty")

        await session.run(AsyncAgent(look), 1, 2, 3)
        assert seen == ["clean"] * 3

    # Leases

    @pytest.mark.parametrize("blocking", ["thread", "loop"])
    async def test_heartbeats_go_on_while_an_agent_blocks(
        self, make_runner: MakeRunner, blocking: str
    ) -> None:
        """Trap 8: a sync agent, or an async one that blocks its event loop, keeps its lease."""
        renewed = threading.Semaphore(0)

        class Counting(InMemoryLightningStore):
            async def renew_leases(self, worker_id: str, attempts: Any) -> list[str]:
                lost = await super().renew_leases(worker_id, attempts)
                renewed.release()
                return lost

        def block(task: Any, resources: Any) -> float:
            # Longer than the lease would last without them.
            for _ in range(4):
                assert renewed.acquire(timeout=PATIENCE)
            return 1.0

        async def block_loop(task: Any, resources: Any) -> float:
            return block(task, resources)

        session = Session(Counting(), make_runner)
        await session.store.add_resources(RESOURCES)
        done, attempt = await session.run(
            SyncAgent(block) if blocking == "thread" else AsyncAgent(block_loop),
            config=RolloutConfig(unresponsive_seconds=0.8),
        )
        assert (done.status, attempt.status, attempt.sequence_id) == ("succeeded", "succeeded", 1)

    @pytest.mark.parametrize("how", ["cancelled", "given to another"])
    async def test_work_whose_lease_is_lost_is_dropped(self, session: Session, how: str) -> None:
        """Nobody waits for it any more, and what it would report does not count."""
        begun, dropped = asyncio.Event(), asyncio.Event()

        async def wait(task: Any, resources: Any) -> float:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                dropped.set()
                raise
            return 1.0

        enqueued = await session.store.enqueue_rollout("task")
        runner = session.runner(max_rollouts=1, heartbeat_interval=0.02)
        with runner.run_context(agent=AsyncAgent(wait), store=session.store):
            running = asyncio.create_task(runner.iter())
            await asyncio.wait_for(begun.wait(), PATIENCE)
            if how == "cancelled":
                await session.store.update_rollout(enqueued.rollout_id, status="cancelled")
            else:
                await session.store.start_attempt(enqueued.rollout_id, "another")
            await asyncio.wait_for(dropped.wait(), PATIENCE)
            await asyncio.wait_for(running, PATIENCE)
        done, attempt = await session.read(enqueued.rollout_id)
        wanted = ("cancelled", "cancelled") if how == "cancelled" else ("preparing", "preparing")
        assert (done.status, attempt.status) == wanted

    # Workers

    async def test_workers_are_known_and_told_apart(self, session: Session) -> None:
        """Idle before there is work, busy with it, idle after it, and with CPU and memory in between."""
        begun, go = asyncio.Semaphore(0), asyncio.Event()

        async def wait(task: Any, resources: Any) -> None:
            begun.release()
            await go.wait()

        store, event = session.store, StopEvent()
        runners = [session.runner(heartbeat_interval=0.05) for _ in range(3)]
        agent = AsyncAgent(wait)
        for number, runner in enumerate(runners):
            runner.init(agent)
            runner.init_worker(number, store)
        running = [asyncio.create_task(runner.iter(event=event)) for runner in runners]
        idle = await _workers_until(store, 3)
        assert {worker.status for worker in idle} == {"idle"}

        rollouts = [await store.enqueue_rollout(number) for number in range(2)]
        for _ in rollouts:
            await asyncio.wait_for(begun.acquire(), PATIENCE)
        workers = await store.query_workers()
        assert sorted(worker.status for worker in workers) == ["busy", "busy", "idle"]
        taken = {worker.current_rollout_id for worker in workers if worker.status == "busy"}
        assert taken == {one.rollout_id for one in rollouts}
        for one in rollouts:
            _, attempt = await session.read(one.rollout_id)
            assert attempt.worker_id in {worker.worker_id for worker in workers if worker.status == "busy"}

        go.set()
        await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in rollouts], timeout=PATIENCE)
        event.set()
        await asyncio.wait_for(asyncio.gather(*running), PATIENCE)
        for number, runner in enumerate(runners):
            runner.teardown_worker(number)
            runner.teardown()
        workers = await store.query_workers()
        assert [worker.status for worker in workers] == ["idle"] * 3
        for worker in workers:
            stats = worker.heartbeat_stats
            assert stats["memory_bytes"] > 1_000_000
            assert stats["cpu_seconds"] > 0
            assert stats["cpu_percent"] >= 0
            assert stats["pid"] > 0
            assert stats["host"]


async def _workers_until(store: LightningStore, number: int) -> list[Worker]:
    async with asyncio.timeout(PATIENCE):
        while len(workers := await store.query_workers()) < number:  # noqa: ASYNC110 - no store announces its workers
            await asyncio.sleep(0.01)
    return workers
