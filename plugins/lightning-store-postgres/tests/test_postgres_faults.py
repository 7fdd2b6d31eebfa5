"""The server dies, connections break, notifications are lost: nothing acknowledged is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import psycopg
import pytest
from lightning_store_postgres import PostgresLightningStore, writer
from lightning_store_postgres.settings import ConnectionLostError
from lightning_store_postgres.testing import PostgresServer, find_fast_directory, find_server_binaries
from lightning_store_postgres.wire import Statement, Wire

from lightning_core.errors import StoreUnavailableError
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import RolloutConfig, Span

PATIENCE = 60

WORKER = """
import asyncio, sys
from lightning_store_postgres import PostgresLightningStore

async def work(store, name):
    while True:
        for rollout in await store.dequeue_rollouts(1, name, wait=30):
            print(rollout.input, flush=True)
            await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")

async def main():
    store = PostgresLightningStore(sys.argv[1], schema=sys.argv[2])
    print("ready", flush=True)
    await asyncio.gather(*(work(store, f"{sys.argv[3]}-{number}") for number in range(3)))

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


@pytest.fixture
def server():
    """A server that may be killed."""
    if find_server_binaries() is None:
        pytest.skip("no PostgreSQL server is installed")
    with PostgresServer(directory=find_fast_directory()) as server:
        yield server


def spans(rollout, count=5):
    return [
        Span.from_attributes(
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            span_id=f"{number:016x}",
            attributes={"x": "y" * 300},
        )
        for number in range(count)
    ]


async def whole_rollouts(store, name, number, acknowledge=lambda: None):
    """Run rollouts one after the other; returns their ids. ``acknowledge`` is called four times for each."""
    done = []
    for index in range(number):
        rollout = await store.start_rollout(
            f"{name}-{index}", worker_id=name, config=RolloutConfig(max_attempts=2)
        )
        acknowledge()
        assert await store.get_next_span_sequence_id(rollout.rollout_id, rollout.attempt.attempt_id) == 1
        acknowledge()
        batch = spans(rollout)
        assert await store.add_spans(batch[:2]) == 2
        acknowledge()
        assert await store.add_spans(batch[2:]) == 3
        acknowledge()
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        done.append(rollout.rollout_id)
    return done


async def check(store, ids):
    """Everything is there once, in order, and nothing else."""
    rollouts = await store.query_rollouts()
    assert sorted(rollout.rollout_id for rollout in rollouts) == sorted(ids)
    assert {rollout.status for rollout in rollouts} == {"succeeded"}
    for rollout_id in ids:
        found = await store.query_spans(rollout_id)
        assert [(span.span_id, span.sequence_id) for span in found] == [
            (f"{n:016x}", n + 2) for n in range(5)
        ]
    statistics = await store.statistics()
    assert (statistics.rollouts, statistics.attempts, statistics.spans) == (
        {"succeeded": len(ids)},
        len(ids),
        5 * len(ids),
    )


async def test_a_server_that_is_killed_and_comes_back_loses_nothing_and_repeats_nothing(server):
    """Every number that is drawn, every attempt and span is there exactly once, whatever was under way."""
    store = PostgresLightningStore(server.url, retry_seconds=PATIENCE)
    async with asyncio.timeout(PATIENCE):
        work = asyncio.gather(*(whole_rollouts(store, f"w{number}", 40) for number in range(8)))
        for _ in range(3):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        ids = [rollout_id for part in await work for rollout_id in part]
    await check(store, ids)
    await store.close()


async def test_connections_that_are_terminated_all_the_time_lose_nothing_and_repeat_nothing(
    postgres_url, schema
):
    store = PostgresLightningStore(f"{postgres_url}?application_name={schema}", schema=schema)
    acknowledged, ended = asyncio.Semaphore(0), 0

    async def terminate():
        # After so many operations, however long they take: by the clock, none might come to its end.
        nonlocal ended
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
            for _ in range(8 * 10 * 4 // 10 - 1):
                for _ in range(10):
                    await acknowledged.acquire()
                cursor = await connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s",
                    [schema],
                )
                ended += (await cursor.fetchone())[0]

    async with asyncio.timeout(PATIENCE):
        work = [whole_rollouts(store, f"w{number}", 10, acknowledged.release) for number in range(8)]
        *parts, _ = await asyncio.gather(*work, terminate())
    ids = [rollout_id for part in parts for rollout_id in part]
    assert ended > 5
    await check(store, ids)
    await store.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_what_became_of_a_commit_without_an_answer_is_looked_up(
    postgres_url, schema, monkeypatch, committed
):
    """Committed or not: what is not safe to repeat, such as a sequence id, is done once."""
    store = PostgresLightningStore(postgres_url, schema=schema)
    rollout = await store.start_rollout(1)
    key = rollout.rollout_id, rollout.attempt.attempt_id
    save, lost = writer.save, 0

    async def save_without_answer(*arguments):
        nonlocal lost
        if lost < 2:
            lost += 1
            if committed:
                await save(*arguments)
            raise ConnectionLostError("gone")
        await save(*arguments)

    monkeypatch.setattr(writer, "save", save_without_answer)
    async with asyncio.timeout(PATIENCE):
        assert await store.get_next_span_sequence_id(*key) == 1
        assert await store.get_next_span_sequence_id(*key) == 2
        assert await store.get_next_span_sequence_id(*key) == 3
        await store.enqueue_rollout(2)
    assert lost == 2
    assert (await store.statistics()).rollouts == {"preparing": 1, "queuing": 1}
    await store.close()


async def test_a_commit_whose_process_still_hangs_is_ended_and_done_again(postgres_url, schema, monkeypatch):
    """The network is cut in the middle of a transaction: the server holds its locks until it is told to let go."""
    store = PostgresLightningStore(postgres_url, schema=schema, writers=1)
    rollout = await store.start_rollout(1)
    save, kept = writer.save, []

    async def cut(wire, *arguments):
        if not kept:
            # The connection stays open, as the server sees it.
            kept.append(wire.connection)
            wire.connection = _Nothing()
            raise ConnectionLostError("cut")
        await save(wire, *arguments)

    monkeypatch.setattr(writer, "save", cut)
    async with asyncio.timeout(PATIENCE):
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    assert (await store.get_rollout_by_id(rollout.rollout_id)).status == "succeeded"
    await store.close()
    await kept[0].close()


class _Nothing:
    async def close(self):
        """The network is cut: nobody hears of it."""


async def test_a_server_that_stays_away_is_an_error_in_time_and_harms_nothing_later(server):
    store = PostgresLightningStore(server.url, retry_seconds=0.5)
    waiting = asyncio.create_task(store.dequeue_rollouts(1, "w", wait=PATIENCE))
    await store.query_rollouts()
    server.halt()
    loop = asyncio.get_running_loop()
    for call in (store.enqueue_rollout(1), store.query_rollouts(), store.update_worker("w")):
        began = loop.time()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await call
        assert 0.3 < loop.time() - began < PATIENCE / 2
    await asyncio.to_thread(server.start)
    rollout = await store.enqueue_rollout(2)
    async with asyncio.timeout(PATIENCE):
        try:
            [taken] = await waiting
        except StoreUnavailableError:
            # It looked just when the server was away.
            [taken] = await store.dequeue_rollouts(1, "w")
    assert taken.rollout_id == rollout.rollout_id
    await store.close()


async def test_closing_while_the_server_is_away_takes_no_longer_than_trying(server):
    store = PostgresLightningStore(server.url, retry_seconds=0.3)
    await store.enqueue_rollout(1)
    waiting = asyncio.create_task(store.dequeue_rollouts(1, wait=PATIENCE, run_id="none"))
    await asyncio.sleep(0.05)
    server.halt()
    writing = asyncio.create_task(store.enqueue_rollout(1))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE / 2):
        await store.close()
        done = await asyncio.gather(waiting, writing, return_exceptions=True)
    assert all(isinstance(error, Exception) for error in done)


async def test_two_processes_never_dequeue_one_rollout_twice(postgres_url, schema):
    """Trap 7: exactly once, and the parent learns of the ends."""
    store = PostgresLightningStore(postgres_url, schema=schema)
    with running(WORKER, postgres_url, schema, "a") as one, running(WORKER, postgres_url, schema, "b") as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        first = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(60)])
        second = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(60, 120)])
        ids = [rollout.rollout_id for rollout in [*first, *second]]
        async with asyncio.timeout(PATIENCE):
            done = await store.wait_for_rollouts(rollout_ids=ids)
    assert [rollout.input for rollout in done] == list(range(120))
    workers = set()
    for rollout_id in ids:
        [attempt] = await store.query_attempts(rollout_id)
        workers.add(attempt.worker_id)
    assert {worker[0] for worker in workers} <= {"a", "b"}
    await store.close()


async def test_stores_that_share_nothing_but_the_database_wake_each_other(postgres_url, schema):
    """By notification: nobody looks for a change within the time of this test. Work and ends are all noticed."""
    one, two = (PostgresLightningStore(postgres_url, schema=schema, poll_interval=1_000) for _ in range(2))
    async with asyncio.timeout(PATIENCE):
        for _ in range(20):
            waiting = asyncio.create_task(two.dequeue_rollouts(wait=PATIENCE))
            await asyncio.sleep(0.01)
            rollout = await one.enqueue_rollout(1)
            [taken] = await waiting
            assert taken.rollout_id == rollout.rollout_id
            end = asyncio.create_task(one.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
            await asyncio.sleep(0.01)
            await two.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            assert [found.status for found in await end] == ["succeeded"]
    await one.close()
    await two.close()


async def test_a_notification_that_came_along_with_results_is_not_waited_for(postgres_url, schema):
    """It has been read from the socket already; those who wait would learn of it when the next one comes."""
    store = PostgresLightningStore(postgres_url, schema=schema)
    wire = await Wire.open(store._settings)
    await wire.run([Statement(f"LISTEN {schema}")])
    await wire.run([Statement(f"SELECT pg_notify('{schema}', 'something')")])
    async with asyncio.timeout(PATIENCE):
        assert await wire.notifications(10 * PATIENCE, asyncio.Event()) == [(schema, "something")]
    await wire.close()
    await store.close()


async def test_a_listener_that_lost_its_connection_comes_back(postgres_url, schema):
    one = PostgresLightningStore(postgres_url, schema=schema, poll_interval=1_000)
    two = PostgresLightningStore(
        f"{postgres_url}?application_name={schema}", schema=schema, poll_interval=1_000
    )
    async with asyncio.timeout(PATIENCE):
        for _ in range(5):
            waiting = asyncio.create_task(two.dequeue_rollouts(wait=PATIENCE))
            await asyncio.sleep(0.05)
            async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                    [schema],
                )
            rollout = await one.enqueue_rollout(1)
            [taken] = await waiting
            assert taken.rollout_id == rollout.rollout_id
    await one.close()
    await two.close()


async def test_a_lost_notification_costs_no_more_than_the_poll_interval(postgres_url, schema, monkeypatch):
    """The process that wrote died before it could tell."""
    one = PostgresLightningStore(postgres_url, schema=schema)
    two = PostgresLightningStore(postgres_url, schema=schema, poll_interval=0.1)
    monkeypatch.setattr(one._engine._notifier, "tell", lambda work: None)
    async with asyncio.timeout(PATIENCE):
        waiting = asyncio.create_task(two.dequeue_rollouts(wait=PATIENCE))
        await asyncio.sleep(0.05)
        rollout = await one.enqueue_rollout(1)
        assert [taken.rollout_id for taken in await waiting] == [rollout.rollout_id]
        waiting = asyncio.create_task(two.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await asyncio.sleep(0.05)
        await one.update_rollout(rollout.rollout_id, status="cancelled")
        assert [found.status for found in await waiting] == ["cancelled"]
        other = await one.start_rollout(1)
        waiting = asyncio.create_task(two.wait_for_rollouts(rollout_ids=[other.rollout_id]))
        await asyncio.sleep(0.05)
        await one.update_rollout(other.rollout_id, status="failed")
        await one.vacuum(before=9e9)
        assert len(await waiting) <= 1
    await one.close()
    await two.close()


async def test_writers_of_the_same_rollouts_do_not_lock_each_other_out(postgres_url, schema):
    """In whatever order they name them, in several processes at once."""
    stores = [PostgresLightningStore(postgres_url, schema=schema, writers=2) for _ in range(2)]
    rollouts = [await stores[0].start_rollout(number) for number in range(20)]
    keys = [(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in rollouts]

    async def write(number):
        store = stores[number % 2]
        for turn in range(5):
            order = keys[number + turn :] + keys[: number + turn]
            assert await store.renew_leases(f"w{(number + turn) % 3}", order[:: 1 if turn % 2 else -1]) == []
            await store.enqueue_rollouts(
                [EnqueueRequest(input=1, idempotency_key=f"k{(number * n) % 7}") for n in range(7)]
            )
            await store.update_rollout(order[0][0], metadata={f"{number}": turn})

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(write(number) for number in range(10)))
    statistics = await stores[0].statistics()
    assert statistics.rollouts == {"running": 20, "queuing": 7}
    for store in stores:
        await store.close()


def test_a_server_comes_back_on_its_port_though_something_is_in_the_way(server):
    """What is left of a killed server may hold on for a moment; clients would look for it elsewhere in vain."""
    port = server.port
    server.kill()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        starting = threading.Thread(target=server.start)
        starting.start()
        while "could not bind" not in server.log:
            assert starting.is_alive()
            threading.Event().wait(0.05)
    starting.join(PATIENCE)
    assert server.port == port
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
