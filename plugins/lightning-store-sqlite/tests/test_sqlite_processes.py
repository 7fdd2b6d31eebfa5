"""Several processes share one file, and any of them may be killed at any moment."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from lightning_store_sqlite import SqliteLightningStore

from lightning_core.store.base import EnqueueRequest
from lightning_core.types import RolloutConfig

# Several tasks write at once, so that a kill meets groups of operations, and print what was acknowledged.
WRITER = """
import asyncio, sys
from lightning_core.types import Span
from lightning_store_sqlite import SqliteLightningStore

async def work(store, number):
    while True:
        rollout = await store.enqueue_rollout({"n": number})
        print("enqueued", rollout.rollout_id, flush=True)
        taken = await store.dequeue_rollout(f"w{number}")
        spans = [
            Span.from_attributes(
                rollout_id=taken.rollout_id, attempt_id=taken.attempt.attempt_id, attributes={"x": "y" * 300}
            )
            for _ in range(5)
        ]
        await store.add_spans(spans)
        for span in spans:
            print("span", taken.rollout_id, span.span_id, flush=True)
        await store.update_attempt(taken.rollout_id, "latest", status="succeeded")
        print("succeeded", taken.rollout_id, flush=True)

async def main():
    store = SqliteLightningStore(sys.argv[1])
    await asyncio.gather(*(work(store, number) for number in range(6)))

asyncio.run(main())
"""

WORKER = """
import asyncio, sys
from lightning_store_sqlite import SqliteLightningStore

async def work(store, name):
    while True:
        for rollout in await store.dequeue_rollouts(1, name, wait=30):
            print(rollout.input, flush=True)
            await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")

async def main():
    store = SqliteLightningStore(sys.argv[1], synchronous="normal")
    print("ready", flush=True)
    await asyncio.gather(*(work(store, f"{sys.argv[2]}-{number}") for number in range(3)))

asyncio.run(main())
"""


@contextmanager
def running(script, *arguments):
    """Run a script in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.repeated) for seed in (2, 3))])
async def test_a_kill_at_any_moment_loses_nothing_acknowledged(tmp_path, seed):
    """Trap 3: what a killed process reported is there, and what it was working on expires."""
    path = tmp_path / "runs.db"
    chance = random.Random(seed)
    with running(WRITER, path) as process:
        lines = [process.stdout.readline() for _ in range(chance.randint(1, 400))]
        process.send_signal(signal.SIGKILL)
        # What was printed before the kill was acknowledged as well. The last line may be cut short.
        lines += [line for line in process.stdout.readlines() if line.endswith("\n")]
    acknowledged = [line.split() for line in lines]
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()
    store = SqliteLightningStore(path)
    status = {rollout.rollout_id: rollout.status for rollout in await store.query_rollouts()}
    assert {line[1] for line in acknowledged if line[0] == "enqueued"} <= status.keys()
    assert {status[line[1]] for line in acknowledged if line[0] == "succeeded"} <= {"succeeded"}
    spans = {
        (rollout_id, span.span_id) for rollout_id in status for span in await store.query_spans(rollout_id)
    }
    assert {(line[1], line[2]) for line in acknowledged if line[0] == "span"} <= spans
    statistics = await store.statistics()
    assert sum(statistics.rollouts.values()) == len(status)
    assert statistics.spans == len(spans)
    await store.close()


async def test_processes_that_share_a_file_never_dequeue_one_rollout_twice(tmp_path):
    """Trap 7: exactly once, and the parent learns of the ends."""
    store = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    with running(WORKER, tmp_path / "runs.db", "a") as one, running(WORKER, tmp_path / "runs.db", "b") as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        first = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(60)])
        second = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(60, 120)])
        ids = [rollout.rollout_id for rollout in [*first, *second]]
        async with asyncio.timeout(60):
            done = await store.wait_for_rollouts(rollout_ids=ids)
    assert [rollout.input for rollout in done] == list(range(120))
    workers = set()
    for rollout_id in ids:
        [attempt] = await store.query_attempts(rollout_id)
        assert attempt.worker_id is not None
        workers.add(attempt.worker_id)
    assert {worker[0] for worker in workers} <= {"a", "b"}
    await store.close()


async def test_stores_on_one_file_wake_each_other(tmp_path):
    """Two objects have no memory in common, as two processes have not; work, ends and leases are all noticed."""
    one = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    two = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(two.dequeue_rollouts(wait=60))
        await asyncio.sleep(0.05)
        rollout = await one.enqueue_rollout(
            1,
            config=RolloutConfig(max_attempts=2, unresponsive_seconds=0.2, retry_condition=["unresponsive"]),
        )
        ends = [
            asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
            for store in (one, two)
        ]
        [taken] = await waiting
        assert taken.rollout_id == rollout.rollout_id
        # Its worker is silent, and the other store's is given it.
        [again] = await one.dequeue_rollouts(wait=60)
        assert again.attempt.sequence_id == 2
        await two.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert [[rollout.status for rollout in found] for found in await asyncio.gather(*ends)] == [
            ["failed"],
            ["failed"],
        ]
    await one.close()
    await two.close()


async def test_an_end_that_nobody_announced_does_not_keep_others_waiting(tmp_path, monkeypatch):
    """One rollout ends just before the wait for it is registered, and the other one later."""
    one = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    two = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    early, late = await one.enqueue_rollouts([EnqueueRequest(input=number) for number in range(2)])
    enter = one._engine.enter
    ended = threading.Event()

    def enter_too_late(waiter):
        thread = threading.Thread(
            target=lambda: asyncio.run(two.update_rollout(early.rollout_id, status="cancelled"))
        )
        thread.start()
        thread.join()
        ended.set()
        enter(waiter)

    monkeypatch.setattr(one._engine, "enter", enter_too_late)
    waiting = asyncio.create_task(one.wait_for_rollouts(rollout_ids=[early.rollout_id, late.rollout_id]))
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(ended.wait, 20)
        # Long enough for the watcher to have looked.
        await asyncio.sleep(0.1)
        await two.update_rollout(late.rollout_id, status="cancelled")
        assert len(await waiting) == 2
    await one.close()
    await two.close()
