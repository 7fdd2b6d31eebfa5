"""What goes wrong around the store: each fault is a clear error, loses nothing acknowledged, and passes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightning_store_sqlite import SqliteLightningStore, schema, vacuum

from lightning_core.errors import StoreUnavailableError, UnserializableValueError
from lightning_core.store.base import EnqueueRequest
from lightning_core.store.encoding import EncodedSpan, encode_span
from lightning_core.types import Span


def span(rollout, span_id="1", **attributes):
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        span_id=span_id.rjust(16, "0"),
        attributes=attributes,
    )


async def finished(store, number, spans=0):
    """Enqueue, run and end rollouts, each with so many spans."""
    await store.enqueue_rollouts([EnqueueRequest(input=index) for index in range(number)])
    rollouts = await store.dequeue_rollouts(number)
    for rollout in rollouts:
        await store.add_spans([span(rollout, str(index), text="x" * 1_000) for index in range(spans)])
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    return rollouts


# The disk


async def test_a_full_disk_is_an_error_and_the_store_goes_on_when_there_is_room(tmp_path, monkeypatch):
    connect = schema.connect
    opened = []

    def limited(path, **settings):
        connection = connect(path, **settings)
        connection.execute(f"PRAGMA max_page_count = {limit}")
        opened.append(connection)
        return connection

    limit = 100
    monkeypatch.setattr(schema, "connect", limited)
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollout = await store.start_rollout(1)
    stored = []

    async def fill() -> None:
        for number in range(1_000):
            batch = [span(rollout, f"{number}-{index}", text="x" * 1_000) for index in range(4)]
            await store.add_spans(batch)
            stored.extend(item.span_id for item in batch)

    with pytest.raises(StoreUnavailableError, match="disk is full"):
        await fill()
    assert stored
    # Reading goes on, and what was refused is not there in part.
    assert [item.span_id for item in await store.query_spans(rollout.rollout_id)] == stored
    limit = 1_000_000
    await store.add_spans([span(rollout, "more", text="x" * 1_000)])
    assert len(await store.query_spans(rollout.rollout_id)) == len(stored) + 1
    assert (await store.statistics()).spans == len(stored) + 1
    await store.close()


@contextmanager
def small_disk(path: Path, *options: str):
    """A file system of two megabytes."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=2m", *options]), "tmpfs", str(path)]
    if not sys.platform.startswith("linux") or shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk, and only on Linux")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_disk_that_is_really_full_loses_nothing_and_the_store_goes_on_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        (disk / "ballast").write_bytes(b"x" * 1_000_000)
        store = SqliteLightningStore(disk / "runs.db")
        enqueued = []

        async def fill() -> None:
            while len(enqueued) < 1_000:
                enqueued.append(await store.enqueue_rollout("x" * 3_000))

        with pytest.raises(StoreUnavailableError, match="full"):
            await fill()
        assert enqueued
        assert await store.query_rollouts() == enqueued
        with pytest.raises(StoreUnavailableError, match="full"):
            await store.enqueue_rollout("x" * 500_000)
        (disk / "ballast").unlink()
        enqueued.append(await store.enqueue_rollout("x" * 3_000))
        assert await store.query_rollouts() == enqueued
        await store.close()
        again = SqliteLightningStore(disk / "runs.db")
        assert await again.query_rollouts() == enqueued
        assert (await again.statistics()).rollouts == {"queuing": len(enqueued)}
        await again.close()


def test_a_disk_that_cannot_be_written_is_an_error_when_the_store_is_opened(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        asyncio.run(SqliteLightningStore(disk / "runs.db").close())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreUnavailableError, match=r"cannot be opened for writing.*permissions"):
            SqliteLightningStore(disk / "runs.db")


async def test_a_file_that_becomes_read_only_is_an_error_until_it_is_not(tmp_path, monkeypatch):
    connect = schema.connect

    def connect_read_only(path, **settings):
        connection = connect(path, **settings)
        connection.execute(f"PRAGMA query_only = {read_only}")
        return connection

    read_only = 0
    monkeypatch.setattr(schema, "connect", connect_read_only)
    store = SqliteLightningStore(tmp_path / "runs.db")
    read_only = 1
    with pytest.raises(StoreUnavailableError, match="permissions"):
        await store.enqueue_rollout(1)
    assert await store.query_rollouts() == []
    read_only = 0
    assert (await store.enqueue_rollout(2)).input == 2
    await store.close()


async def test_a_file_that_is_deleted_under_the_store_is_noticed_before_anything_is_acknowledged(tmp_path):
    path = tmp_path / "runs.db"
    store = SqliteLightningStore(path)
    rollout = await store.enqueue_rollout(1)
    waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
    await asyncio.sleep(0)
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
        await store.enqueue_rollout(2)
    with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
        await store.query_rollouts()
    async with asyncio.timeout(20):
        with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
            await waiting
    assert not path.exists()
    # Another file in its place is not taken for it.
    path.write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
        await store.enqueue_rollout(3)
    assert path.read_bytes() == b""
    (tmp_path / "elsewhere.db").rename(path)
    await store.enqueue_rollout(4)
    assert [item.input for item in await store.query_rollouts()] == [1, 4]
    await store.close()


async def test_a_temporary_directory_that_is_gone_does_not_break_close():
    store = SqliteLightningStore()
    await store.enqueue_rollout(1)
    shutil.rmtree(store._settings.path.parent)
    with pytest.raises(StoreUnavailableError, match="deleted"):
        await store.enqueue_rollout(2)
    await store.close()


# Other processes


async def test_a_write_waits_for_another_process_to_end_its_own(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.enqueue_rollout(1))
    done, _ = await asyncio.wait({writing}, timeout=0.05)
    assert not done
    assert await store.query_rollouts() == []
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(20):
        assert (await writing).input == 1
    await store.close()


# Values


async def test_names_that_are_no_text_are_refused(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollout = await store.start_rollout(1)
    with pytest.raises(UnserializableValueError, match="no valid text"):
        await store.add_span(span(rollout, "1").detached(name="\ud800"))
    with pytest.raises(UnserializableValueError, match="no valid text"):
        await store.get_rollout_by_id("\ud800")
    with pytest.raises(UnserializableValueError, match="too large"):
        await store.add_span(span(rollout, "2").detached(sequence_id=2**64))
    with pytest.raises(UnserializableValueError, match="too large"):
        await store.query_rollouts(limit=2**64)
    assert await store.query_spans(rollout.rollout_id) == []
    await store.close()


async def test_encoded_spans_are_stored_and_returned_without_being_decoded(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollout = await store.start_rollout(1)
    attempt_id = rollout.attempt.attempt_id
    # Not what any encoder writes: it would come back changed if it were read.
    body = '{ "attributes":{},"later field" : [1,   2] }'
    new = EncodedSpan(rollout.rollout_id, attempt_id, 0, "a" * 16, "b" * 32, "call", body)
    assert await store.add_encoded_spans([new, new]) == 1
    assert await store.query_encoded_spans(rollout.rollout_id) == [new._replace(sequence_id=1)]
    ordinary = span(rollout, "2", x=1)
    await store.add_encoded_spans([encode_span(ordinary)])
    [found] = await store.query_spans(rollout.rollout_id, span_id=ordinary.span_id)
    assert found == ordinary.detached(sequence_id=2)
    await store.close()


# Groups


async def test_a_write_that_fails_halfway_is_taken_back_and_the_others_are_not(tmp_path):
    """The first span of each batch is stored when the second one turns out to be impossible."""
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollouts = [await store.start_rollout(number) for number in range(10)]
    results = await asyncio.gather(
        *(
            store.add_spans(
                [
                    span(rollout, "1", x=1),
                    span(rollout, "2", x=1).detached(name="\ud800" if number % 2 else "good"),
                ]
            )
            for number, rollout in enumerate(rollouts)
        ),
        return_exceptions=True,
    )
    assert [isinstance(result, UnserializableValueError) for result in results] == [False, True] * 5
    for number, rollout in enumerate(rollouts):
        assert len(await store.query_spans(rollout.rollout_id)) == (0 if number % 2 else 2)
        # What was taken back is not counted as a sign of life either.
        [attempt] = await store.query_attempts(rollout.rollout_id)
        assert attempt.status == ("preparing" if number % 2 else "running")
    assert (await store.statistics()).spans == 10
    await store.close()


# Vacuum


async def test_a_vacuum_gives_space_back_to_the_file_system(tmp_path):
    path = tmp_path / "runs.db"
    now = 1_000.0
    store = SqliteLightningStore(path, synchronous="normal", clock=lambda: now)
    await finished(store, 20, spans=50)
    now = 2_000.0
    kept = await finished(store, 1, spans=1)
    await store.close()
    before = path.stat().st_size
    store = SqliteLightningStore(path, clock=lambda: now)
    deleted = await store.vacuum(before=1_500.0)
    assert (deleted.rollouts, deleted.attempts, deleted.spans) == ({"succeeded": 20}, 20, 1_000)
    await store.close()
    assert before > 1_000_000
    assert path.stat().st_size < before / 4
    store = SqliteLightningStore(path, clock=lambda: now)
    assert len(await store.query_spans(kept[0].rollout_id)) == 1
    await store.close()


async def test_writers_go_on_during_a_vacuum(tmp_path, monkeypatch):
    monkeypatch.setattr(vacuum, "_SPANS", 10)
    monkeypatch.setattr(vacuum, "_ROLLOUTS", 2)
    store = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    await finished(store, 10, spans=100)
    vacuuming = asyncio.create_task(store.vacuum(before=1e12))
    waited = 0
    while not vacuuming.done():
        # Reading sees whole rollouts only, as if the others had never been.
        rollouts = await store.query_rollouts(status=["succeeded"])
        if rollouts:
            spans = await store.query_spans(rollouts[-1].rollout_id)
            still_there = await store.get_rollout_by_id(rollouts[-1].rollout_id)
            assert still_there is None or len(spans) == 100
        await store.enqueue_rollout(waited)
        waited += 1
    assert (await vacuuming).spans == 1_000
    # If it held writers up until its end, the first one would be the last one.
    assert waited >= 3
    statistics = await store.statistics()
    assert (statistics.rollouts, statistics.attempts, statistics.spans) == ({"queuing": waited}, 0, 0)
    await store.close()


VACUUM = """
import asyncio, sys
from lightning_store_sqlite import SqliteLightningStore, vacuum

vacuum._SPANS, vacuum._ROLLOUTS = 5, 1

async def main():
    store = SqliteLightningStore(sys.argv[1])
    print("ready", flush=True)
    vacuuming = asyncio.create_task(store.vacuum(before=1e12))
    while not vacuuming.done():
        print((await store.statistics()).spans, flush=True)

asyncio.run(main())
"""


def kill_halfway(path: Path) -> None:
    """Run a vacuum in a process of its own, and kill it when a quarter is gone."""
    process = subprocess.Popen([sys.executable, "-c", VACUUM, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line != "ready\n" and int(line) < 600:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()


async def test_a_vacuum_that_is_killed_is_finished_by_the_next_one(tmp_path):
    path = tmp_path / "runs.db"
    store = SqliteLightningStore(path, synchronous="normal")
    await finished(store, 20, spans=40)
    await store.close()
    await asyncio.to_thread(kill_halfway, path)
    store = SqliteLightningStore(path)
    left = await store.query_rollouts()
    assert 0 < len(left) < 20
    counts = [len(await store.query_spans(rollout.rollout_id)) for rollout in left]
    assert counts == [40] * len(left)
    assert (await store.statistics()).spans == sum(counts)
    # Attempts that begin now must not inherit what is yet to be deleted.
    new = await store.start_rollout("new")
    assert await store.query_spans(new.rollout_id) == []
    await store.vacuum(before=1e12)
    assert await store.query_rollouts() == [await store.get_rollout_by_id(new.rollout_id)]
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM spans").fetchone()[0] == 0
    assert connection.execute("SELECT count(*) FROM garbage").fetchone()[0] == 0
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_those_who_wait_learn_of_ends_after_a_vacuum_by_another_process(tmp_path):
    """The deleted rollout had the greatest number of an end, below which others would stop looking."""
    one = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    two = SqliteLightningStore(tmp_path / "runs.db", synchronous="normal")
    early, late = await one.enqueue_rollouts([EnqueueRequest(input=number) for number in range(2)])
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(two.wait_for_rollouts(rollout_ids=[early.rollout_id, late.rollout_id]))
        await asyncio.to_thread(two._engine.room.occupied.wait, 20)
        await one.update_rollout(early.rollout_id, status="cancelled")
        await one.vacuum(before=1e12)
        await one.update_rollout(late.rollout_id, status="cancelled")
        assert [rollout.rollout_id for rollout in await waiting] == [late.rollout_id]
    await one.close()
    await two.close()


# Checkpoints


async def test_checkpoints_are_made_beside_the_writer_and_keep_the_log_short(tmp_path, monkeypatch):
    path = tmp_path / "runs.db"
    statements: list[tuple[str, str]] = []
    connect = schema.connect

    def traced(path, **settings):
        connection = connect(path, **settings)
        connection.set_trace_callback(
            lambda statement: statements.append((threading.current_thread().name, statement))
        )
        return connection

    monkeypatch.setattr(schema, "connect", traced)
    store = SqliteLightningStore(path, synchronous="normal")
    rollout = await store.start_rollout(1)
    for number in range(60):
        await store.add_spans([span(rollout, f"{number}-{index}", text="x" * 10_000) for index in range(40)])
    log = path.with_name("runs.db-wal").stat().st_size
    await store.close()
    checkpoints = {name for name, statement in statements if "wal_checkpoint" in statement}
    assert checkpoints == {"lightning-sqlite-checkpointer"}
    assert path.stat().st_size > 20_000_000
    assert log < path.stat().st_size
