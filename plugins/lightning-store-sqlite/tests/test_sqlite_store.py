"""What the SQLite store adds to the contract: files, URLs, errors of the disk, and the cost of a call."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from lightning_store_sqlite import SqliteLightningStore, schema
from lightning_store_sqlite.url import format_url, parse_url

from lightning_core import resolve
from lightning_core.errors import (
    ConfigurationError,
    FinalRolloutError,
    PluginSettingsError,
    StoreSchemaError,
    StoreUnavailableError,
    UnserializableValueError,
)
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import RolloutConfig, Span


def span(rollout, span_id="1", **attributes):
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        span_id=span_id.rjust(16, "0"),
        attributes=attributes,
    )


# URLs and files


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("sqlite://", {}),
        ("sqlite:///runs.db", {"path": "runs.db"}),
        ("sqlite:///a/runs.db", {"path": "a/runs.db"}),
        ("sqlite:////data/runs.db", {"path": "/data/runs.db"}),
        ("sqlite:///my%20runs%3F.db", {"path": "my runs?.db"}),
        ("sqlite:///runs.db?synchronous=normal", {"path": "runs.db", "synchronous": "normal"}),
        ("sqlite://?busy_timeout=5", {"busy_timeout": "5"}),
    ],
)
def test_urls_become_settings(url, settings):
    assert parse_url(url) == settings


@pytest.mark.parametrize(
    "url", ["sqlite:runs.db", "sqlite:/runs.db", "sqlite://runs.db", "sqlite:///", "sqlite:///:memory:"]
)
def test_other_urls_are_refused_with_a_hint(url):
    with pytest.raises(ConfigurationError, match="sqlite://"):
        parse_url(url)


def test_a_path_becomes_a_url_that_names_it(tmp_path):
    path = tmp_path / "odd name?#%.db"
    assert Path(parse_url(format_url(path))["path"]) == path


async def test_the_store_is_resolved_by_url_and_reopened_by_location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = resolve("store", "sqlite:///runs.db?synchronous=normal")
    assert isinstance(store, SqliteLightningStore)
    rollout = await store.enqueue_rollout({"x": 1})
    await store.close()
    assert (tmp_path / "runs.db").is_file()
    monkeypatch.chdir("/")
    again = resolve("store", store.location)
    assert await again.get_rollout_by_id(rollout.rollout_id) == rollout
    await again.close()


def test_wrong_settings_name_the_users_field():
    with pytest.raises(PluginSettingsError, match="synchronous"):
        resolve("store", {"type": "sqlite", "synchronous": "off"})
    with pytest.raises(PluginSettingsError, match="journal"):
        resolve("store", "sqlite:///runs.db?journal=wal")


def test_a_temporary_file_is_removed_on_close():
    store = SqliteLightningStore("sqlite://")
    path = Path(parse_url(store.location)["path"])
    asyncio.run(store.enqueue_rollout(1))
    assert path.is_file()
    asyncio.run(store.close())
    assert not path.parent.exists()


def test_a_temporary_file_is_removed_when_the_store_is_forgotten():
    store = SqliteLightningStore()
    path = Path(parse_url(store.location)["path"])
    asyncio.run(store.enqueue_rollout(1))
    del store
    gc.collect()
    assert not path.parent.exists()


async def test_closing_ends_all_threads(tmp_path):
    before = set(threading.enumerate())
    store = SqliteLightningStore(tmp_path / "runs.db")
    await store.enqueue_rollout(1)
    await store.query_rollouts()
    await store.dequeue_rollouts(2, wait=0.01, run_id="none")
    assert any("lightning-sqlite" in thread.name for thread in threading.enumerate())
    await store.close()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if "lightning-sqlite" in name] == []


async def test_what_was_asked_for_before_close_is_still_stored(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    writes = [asyncio.ensure_future(store.enqueue_rollout(number)) for number in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*writes)) == 20
    again = SqliteLightningStore(tmp_path / "runs.db")
    assert [rollout.input for rollout in await again.query_rollouts()] == list(range(20))
    await again.close()


# Bad files


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(StoreUnavailableError, match=r"no directory .*none.*create it"):
        SqliteLightningStore(tmp_path / "none" / "runs.db")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(StoreUnavailableError, match="is a directory"):
        SqliteLightningStore(tmp_path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a directory that nobody can write to")
def test_an_unwritable_place_says_so():
    with pytest.raises(StoreUnavailableError, match="permissions"):
        SqliteLightningStore("/proc/lightning-runs.db")


def test_a_corrupt_file_says_what_to_do(tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(StoreUnavailableError, match=r"corrupt.*Move it away.*recover"):
        SqliteLightningStore(path)
    assert path.read_bytes().startswith(b"this is no database")


async def test_a_file_that_is_damaged_inside_says_what_to_do(tmp_path):
    path = tmp_path / "runs.db"
    store = SqliteLightningStore(path)
    await store.enqueue_rollouts([EnqueueRequest(input="x" * 500) for _ in range(100)])
    await store.close()
    content = bytearray(path.read_bytes())
    # The schema stays readable: only pages with rollouts are hit.
    size = int.from_bytes(content[16:18], "big")
    for start in range(0, len(content), size):
        if b"x" * 500 in content[start : start + size]:
            content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    store = SqliteLightningStore(path)
    with pytest.raises(StoreUnavailableError, match="corrupt"):
        await store.query_rollouts()
    with pytest.raises(StoreUnavailableError, match="corrupt"):
        await store.enqueue_rollout(1)
    await store.close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "runs.db"
    await SqliteLightningStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreSchemaError, match="pip install --upgrade"):
        SqliteLightningStore(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_never_touched(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailableError, match="another program"):
        SqliteLightningStore(path)
    assert path.read_bytes() == before


async def test_an_older_file_is_migrated(tmp_path, monkeypatch):
    path = tmp_path / "runs.db"
    store = SqliteLightningStore(path)
    rollout = await store.enqueue_rollout(1)
    await store.close()
    newer = [*schema._MIGRATIONS, "CREATE TABLE extra (x); ALTER TABLE runs ADD COLUMN note TEXT;"]
    monkeypatch.setattr(schema, "_MIGRATIONS", newer)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(newer))
    store = SqliteLightningStore(path)
    assert await store.get_rollout_by_id(rollout.rollout_id) == rollout
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(newer)
    connection.close()


async def test_a_file_of_the_first_version_is_upgraded(tmp_path):
    path = tmp_path / "runs.db"
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode = wal;" + schema._MIGRATIONS[0])
    connection.executescript(
        """
        INSERT INTO rollouts (no, id, status, queue_no, end_no, attempt_no, start_time, end_time, run_id, config,
            metadata, input)
        VALUES (1, 'ro-1', 'failed', NULL, 1, 1, 1.0, 2.0, 'run-1', '{}', '{}', '"task"'),
               (2, 'ro-2', 'running', NULL, NULL, 3, 2.0, NULL, 'run-1', '{"max_attempts":3}', '{}', '{}'),
               (3, 'ro-3', 'queuing', 1, NULL, NULL, 3.0, NULL, NULL, '{}', '{}', '[]');
        INSERT INTO attempts (no, rollout_no, seq, id, status, worker_id, start_time, check_at, last_span_seq, metadata)
        VALUES (1, 1, 1, 'at-1', 'failed', 'w', 1.0, NULL, 0, '{"error":"x"}'),
               (2, 2, 1, 'at-2', 'timeout', 'w', 2.0, NULL, 0, '{}'),
               (3, 2, 2, 'at-3', 'running', 'w', 3.0, 63.0, 1, '{}');
        INSERT INTO spans VALUES (3, 1, 'aa', 'bb', 'call', '{"attributes":{"x":1},"status":{"status_code":"OK",
        "description":null},"start_time":1.0,"end_time":2.0,"resource":{"attributes":{},"schema_url":""}}');
        INSERT INTO runs (id, body) VALUES ('run-1', '{"run_id":"run-1","start_time":1.0,"end_time":2.0}');
        INSERT INTO counts VALUES ('', 'rollout failed', 1), ('', 'rollout running', 1), ('', 'rollout queuing', 1),
            ('run run-1', 'rollout failed', 1), ('run run-1', 'rollout running', 1), ('', 'attempts', 3),
            ('', 'spans', 1);
        """
    )
    connection.execute(f"PRAGMA application_id = {0x4C434F52}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = SqliteLightningStore(path, clock=lambda: 10.0)
    [first] = await store.query_attempts("ro-1")
    assert (first.reason, first.metadata) == ("agent_error", {"error": "x"})
    assert [attempt.reason for attempt in await store.query_attempts("ro-2")] == ["timeout", None]
    assert [attempt.lost_before for attempt in await store.query_attempts("ro-2")] == [0, 0]
    [span] = await store.query_spans("ro-2", "latest")
    assert span.attributes == {"x": 1}
    found = await store.query_rollouts(run_id="run-1", status=["running"])
    assert [rollout.rollout_id for rollout in found] == ["ro-2"]
    await store.update_attempt("ro-2", "at-3", status="failed", reason="infrastructure")
    assert (await store.query_attempts("ro-2"))[1].reason == "infrastructure"
    again = await store.dequeue_rollouts(5, "w", request_id="r")
    assert [rollout.rollout_id for rollout in again] == ["ro-3", "ro-2"]
    assert [rollout.attempt.lost_before for rollout in again] == [0, 1]
    await store.save_run_state("run-1", {"step": 1})
    deleted = await store.vacuum(before=100.0)
    assert (deleted.rollouts, deleted.attempts, deleted.runs) == ({"failed": 1}, 1, 1)
    await store.close()


async def test_a_full_disk_is_an_error_and_loses_nothing_acknowledged(tmp_path, monkeypatch):
    connect = schema.connect

    def limited(path, **settings):
        connection = connect(path, **settings)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    monkeypatch.setattr(schema, "connect", limited)
    store = SqliteLightningStore(tmp_path / "runs.db")
    acknowledged = []

    async def fill() -> None:
        while len(acknowledged) < 1_000:
            acknowledged.append(await store.enqueue_rollout("x" * 3_000))

    with pytest.raises(StoreUnavailableError, match="disk is full"):
        await fill()
    assert acknowledged
    assert await store.query_rollouts() == acknowledged
    monkeypatch.undo()
    await store.close()
    again = SqliteLightningStore(tmp_path / "runs.db")
    assert await again.query_rollouts() == acknowledged
    assert (await again.statistics()).rollouts == {"queuing": len(acknowledged)}
    await again.enqueue_rollout(1)
    await again.close()


async def test_a_lock_that_is_held_too_long_is_an_error(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db", busy_timeout=0.05)
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match=r"locked.*busy_timeout"):
        await store.enqueue_rollout(1)
    assert await store.query_rollouts() == []
    other.execute("ROLLBACK")
    other.close()
    assert (await store.enqueue_rollout(2)).input == 2
    await store.close()


# Groups


async def test_one_failing_write_takes_no_other_of_its_group_with_it(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    done = await store.enqueue_rollout(0)
    await store.update_rollout(done.rollout_id, status="cancelled")
    # All of these are asked for before the writer can begin, and so share a transaction or two.
    results = await asyncio.gather(
        *(
            store.enqueue_rollout(number)
            if number % 3
            else store.update_rollout(done.rollout_id, input=number)
            for number in range(30)
        ),
        return_exceptions=True,
    )
    assert [isinstance(result, FinalRolloutError) for result in results] == [n % 3 == 0 for n in range(30)]
    assert len(await store.query_rollouts()) == 21
    assert (await store.statistics()).rollouts == {"cancelled": 1, "queuing": 20}
    await store.close()


async def test_many_writes_share_a_commit(tmp_path, monkeypatch):
    commits = 0
    connect = schema.connect

    def counted(path, **settings):
        connection = connect(path, **settings)
        connection.set_trace_callback(count)
        return connection

    def count(statement):
        nonlocal commits
        commits += statement == "COMMIT"

    monkeypatch.setattr(schema, "connect", counted)
    store = SqliteLightningStore(tmp_path / "runs.db")
    await store.enqueue_rollout(0)
    commits = 0
    await asyncio.gather(*(store.enqueue_rollout(number) for number in range(200)))
    assert 1 <= commits < 100
    await store.close()


# Values


async def test_floats_of_spans_are_kept_whatever_they_are(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollout = await store.start_rollout(1)
    await store.add_span(span(rollout, real=math.nan, reals=[math.inf, -math.inf], text="\ud800"))
    [found] = await store.query_spans(rollout.rollout_id)
    assert math.isnan(found.attributes["real"])
    assert found.attributes["reals"] == [math.inf, -math.inf]
    assert found.attributes["text"] == "\ud800"
    await store.close()


async def test_values_that_json_cannot_hold_are_named(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    rollout = await store.start_rollout(1)
    with pytest.raises(UnserializableValueError, match=r"input\.items\[1\]\.x"):
        await store.update_rollout(rollout.rollout_id, input={"items": [1, {"x": {1}}]})
    with pytest.raises(UnserializableValueError, match=r"metadata\.when"):
        await store.update_attempt(rollout.rollout_id, "latest", metadata={"when": object()})
    with pytest.raises(UnserializableValueError, match=r"attributes\.bad"):
        await store.add_spans([span(rollout, good=1).detached(attributes={"good": 1, "bad": object()})])
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UnserializableValueError, match="contains itself"):
        await store.enqueue_rollout(loop)
    assert await store.query_spans(rollout.rollout_id) == []
    await store.close()


async def test_long_and_deep_values_come_back(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    for value in ("x" * 3_000_000, deep, 2**100, "\ud800", {"": {"\x00": "漢字"}}):
        rollout = await store.enqueue_rollout(value)
        assert rollout.input == value
        found = await store.get_rollout_by_id(rollout.rollout_id)
        assert found is not None
        assert found.input == value
    await store.close()


# Cost


def steps(path: Path, stored: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count what SQLite's virtual machine does, in hundreds of instructions, among so many live rollouts."""
    total = 0
    connect = schema.connect

    def counted(path, **settings):
        connection = connect(path, **settings)
        connection.set_progress_handler(count, 100)
        return connection

    def count() -> int:
        nonlocal total
        total += 1
        return 0

    monkeypatch.setattr(schema, "connect", counted)
    store = SqliteLightningStore(path, synchronous="normal")
    config = RolloutConfig(unresponsive_seconds=1_000)

    async def work() -> int:
        for _ in range(2):
            request = EnqueueRequest(input=1, config=config, run_id="other", mode="train")
            await store.enqueue_rollouts([request] * stored)
            await store.dequeue_rollouts(stored // 2, "other")
        # The run itself has as many rollouts that have ended, and they wait behind the others.
        ended = await store.enqueue_rollouts([EnqueueRequest(input=1, run_id="mine")] * stored)
        await asyncio.gather(
            *(store.update_rollout(rollout.rollout_id, status="cancelled") for rollout in ended)
        )
        before = total
        for number in range(10):
            await store.enqueue_rollout(number, "val", run_id="mine", idempotency_key=str(number))
            [rollout] = await store.dequeue_rollouts(1, "w", run_id="mine")
            await store.add_span(span(rollout, a=1))
            await store.add_span(span(rollout, a=1))
            await store.renew_leases("w", [(rollout.rollout_id, rollout.attempt.attempt_id)])
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id])
            await store.get_rollout_by_id(rollout.rollout_id)
            await store.get_latest_attempt(rollout.rollout_id)
            await store.query_spans(rollout.rollout_id, "latest")
            await store.query_rollouts(status=["succeeded", "failed"], limit=1)
            await store.query_rollouts(status=["queuing", "preparing"], limit=1, descending=True)
            await store.query_rollouts(rollout_ids=[rollout.rollout_id], status=["succeeded"])
            await store.query_rollouts(run_id="mine", limit=1)
            await store.query_rollouts(mode="val", limit=1)
            await store.query_workers()
            await store.statistics(run_id="mine")
        after = total
        await store.close()
        return after - before

    result = asyncio.run(work())
    monkeypatch.undo()
    return result


def test_no_statement_costs_more_the_more_is_stored(tmp_path, monkeypatch):
    few = steps(tmp_path / "few.db", 50, monkeypatch)
    many = steps(tmp_path / "many.db", 2_000, monkeypatch)
    assert few > 10
    assert many < 1.5 * few


async def test_a_renewed_lease_is_looked_at_once_for_each_lease_and_not_for_each_renewal(tmp_path):
    now = 1_000.0
    store = SqliteLightningStore(tmp_path / "runs.db", clock=lambda: now)
    rollout = await store.start_rollout(1, config=RolloutConfig(unresponsive_seconds=10))
    reader = sqlite3.connect(tmp_path / "runs.db")
    checks = set()
    for number in range(20):
        now += 1
        await store.add_span(span(rollout, str(number), a=1))
        checks.add(reader.execute("SELECT check_at FROM attempts").fetchone()[0])
    reader.close()
    assert checks == {1_011.0, 1_020.0, 1_029.0}
    assert (await store.query_attempts(rollout.rollout_id))[0].status == "running"
    await store.close()


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_serves_parent_and_child_after_a_fork(tmp_path):
    store = SqliteLightningStore(tmp_path / "runs.db")
    asyncio.run(store.enqueue_rollout("parent, before"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(store.enqueue_rollout("child"))
            asyncio.run(store.close())
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(store.enqueue_rollout("parent, after"))
    inputs = [rollout.input for rollout in asyncio.run(store.query_rollouts())]
    assert inputs == ["parent, before", "child", "parent, after"]
    asyncio.run(store.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_remove_its_parents_temporary_file():
    store = SqliteLightningStore()
    asyncio.run(store.enqueue_rollout(1))
    child = os.fork()
    if child == 0:
        asyncio.run(store.close())
        os._exit(0)
    os.waitpid(child, 0)
    assert len(asyncio.run(store.query_rollouts())) == 1
    asyncio.run(store.close())
