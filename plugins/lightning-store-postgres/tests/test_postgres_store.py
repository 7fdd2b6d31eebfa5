"""What the PostgreSQL store adds to the contract: URLs, schemas, texts that PostgreSQL refuses, the cost of a call."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import string
import threading

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_store_postgres import PostgresLightningStore, engine
from lightning_store_postgres.schema import _MIGRATIONS, SCHEMA_VERSION
from lightning_store_postgres.settings import ServerError, Settings
from lightning_store_postgres.testing import PostgresServer, find_server_binaries
from lightning_store_postgres.text import json_text, quote, unquote
from lightning_store_postgres.url import format_url, parse_url
from psycopg.conninfo import conninfo_to_dict

from lightning_core import resolve
from lightning_core.errors import (
    ConfigurationError,
    PluginSettingsError,
    StoreClosedError,
    StoreSchemaError,
    StoreUnavailableError,
)
from lightning_core.store.base import EnqueueRequest
from lightning_core.types import PromptTemplate, RolloutConfig, Run, Span

PATIENCE = 30


def span(rollout, span_id="1", **attributes):
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        span_id=span_id.rjust(16, "0"),
        attributes=attributes,
    )


@pytest.fixture
async def store(postgres_url, schema):
    store = PostgresLightningStore(postgres_url, schema=schema)
    yield store
    await store.close()


def ask(url, statement, *values):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


# URLs and settings


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("postgresql://u@h:1/db", {"url": "postgresql://u@h:1/db"}),
        ("postgres://h/db?schema=mine", {"url": "postgresql://h/db", "schema": "mine"}),
        (
            "postgresql:///db?host=/run/pg&poll_interval=1&sslmode=require",
            {"url": "postgresql:///db?host=%2Frun%2Fpg&sslmode=require", "poll_interval": "1"},
        ),
    ],
)
def test_urls_become_settings(url, settings):
    assert {
        **parse_url(url),
        "url": parse_url(url)["url"].replace("host=/run/pg", "host=%2Frun%2Fpg"),
    } == settings


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@h:5433/db?sslmode=require",
        "postgresql://u:secret@h1:1,h2:2/db",
        "postgresql:///db?host=/run/pg&password=secret",
        "postgresql://a%40b:secret@[::1]:5433/d%2Fb",
        "host=h port=1 password=secret dbname=db",
    ],
)
def test_a_location_opens_the_same_database_and_holds_no_password(url):
    given = conninfo_to_dict(url)
    location = format_url(given, "mine")
    assert "secret" not in location
    parsed = parse_url(location)
    assert parsed.pop("schema") == "mine"
    assert conninfo_to_dict(parsed["url"]) == {name: v for name, v in given.items() if name != "password"}


@pytest.mark.parametrize("url", ["postgresql:db", "postgresql://u:secret@h/db?no=1"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url):
    with pytest.raises(ConfigurationError, match="postgresql://user@host") as caught:
        PostgresLightningStore(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_wrong_settings_name_the_users_field(postgres_url):
    with pytest.raises(PluginSettingsError, match="schema"):
        resolve("store", {"type": "postgres", "url": postgres_url, "schema": "no-name"})
    with pytest.raises(ConfigurationError, match="schema"):
        PostgresLightningStore(postgres_url, schema='a"; DROP')
    with pytest.raises(ConfigurationError, match="poll_interval"):
        PostgresLightningStore(f"{postgres_url}?poll_interval=1")


async def test_the_store_is_resolved_by_url_and_reopened_by_location(postgres_url, schema):
    store = resolve("store", f"{postgres_url}?schema={schema}&poll_interval=1")
    assert isinstance(store, PostgresLightningStore)
    rollout = await store.enqueue_rollout({"x": 1})
    await store.close()
    again = resolve("store", store.location)
    assert await again.get_rollout_by_id(rollout.rollout_id) == rollout
    await again.close()


async def test_stores_in_two_schemas_share_nothing(postgres_url, schema, store):
    other = PostgresLightningStore(postgres_url, schema=f"{schema}_other")
    await store.enqueue_rollout(1, idempotency_key="k")
    assert await other.query_rollouts() == []
    assert (await other.enqueue_rollout(2, idempotency_key="k")).input == 2
    await other.close()


async def test_a_store_is_pickled_by_its_settings(postgres_url, schema, store):
    rollout = await store.enqueue_rollout(1)
    again = pickle.loads(pickle.dumps(store))
    assert await again.get_rollout_by_id(rollout.rollout_id) == rollout
    await again.close()


# The password


@pytest.fixture(scope="module")
def guarded_server():
    if find_server_binaries() is None:
        pytest.skip("no PostgreSQL server is installed")
    with PostgresServer(password="s3cret-word") as server:
        yield server


async def test_the_password_is_in_no_message(guarded_server):
    right = guarded_server.url.replace("lightning@", "lightning:s3cret-word@")
    store = PostgresLightningStore(right, retry_seconds=0.2)
    assert "s3cret-word" not in store.location
    assert "s3cret-word" not in repr(store)
    await store.enqueue_rollout(1)
    with pytest.raises(StoreUnavailableError, match="user and password") as wrong:
        PostgresLightningStore(right.replace("s3cret", "an0ther"))
    assert "an0ther" not in str(wrong.value)
    with pytest.raises(StoreUnavailableError, match="give a password"):
        PostgresLightningStore(store.location)
    with pytest.raises(StoreUnavailableError, match="create it first"):
        PostgresLightningStore(right.replace("/postgres", "/none"))
    guarded_server.halt()
    with pytest.raises(StoreUnavailableError, match="cannot be reached") as away:
        await store.enqueue_rollout(1)
    assert "s3cret-word" not in str(away.value)
    guarded_server.start()
    await store.enqueue_rollout(1)
    await store.close()


def test_secrets_that_the_server_repeats_are_hidden():
    settings = Settings(
        "postgresql://u:hidden-word@h/db",
        schema="s",
        retry_seconds=1,
        poll_interval=1,
        writers=1,
        readers=1,
        clock=None,
    )
    assert "hidden-word" not in str(settings.explain(ServerError("XX000", "odd: hidden-word")))
    assert "hidden-word" not in str(settings.unreachable(OSError("odd: hidden-word"), 1))


# Migrations


def test_many_may_open_a_new_database_at_once(postgres_url, schema):
    stores, errors = [], []

    def open_one():
        try:
            stores.append(PostgresLightningStore(postgres_url, schema=schema, writers=1, readers=1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        asyncio.run(store.close())
    assert errors == []
    assert ask(postgres_url, f"SELECT count(*) FROM {schema}.lightning_schema") == [(SCHEMA_VERSION,)]


async def test_tables_of_the_first_version_are_upgraded(postgres_url, schema, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("lightning_store_postgres.schema._MIGRATIONS", _MIGRATIONS[:1])
        older.setattr("lightning_store_postgres.schema.SCHEMA_VERSION", 1)
        await PostgresLightningStore(postgres_url, schema=schema).close()
    ask(
        postgres_url,
        f"""
        INSERT INTO {schema}.rollouts (no, id, status, attempt_seq, start_time, config, metadata, input)
        VALUES (nextval('{schema}.rollout_numbers'), 'ro-1', 'running', 1, 1.0, '{{"max_attempts":1}}', '{{}}', '1');
        INSERT INTO {schema}.attempts (rollout_no, seq, id, status, worker_id, start_time, check_at, last_span_seq,
            metadata)
        VALUES (1, 1, 'at-1', 'running', 'w', 1.0, 61.0, 0, '{{}}');
        """,
    )
    store = PostgresLightningStore(postgres_url, schema=schema, clock=lambda: 10.0)
    [attempt] = await store.query_attempts("ro-1")
    assert (attempt.status, attempt.lost_before) == ("running", 0)
    await store.update_attempt("ro-1", "at-1", status="failed", reason="infrastructure")
    again = await store.dequeue_rollout("w")
    assert again is not None
    assert (again.rollout_id, again.attempt.lost_before) == ("ro-1", 1)
    await store.close()


def test_tables_of_a_newer_version_are_refused_and_left_alone(postgres_url, schema):
    asyncio.run(PostgresLightningStore(postgres_url, schema=schema).close())
    ask(postgres_url, f"INSERT INTO {schema}.lightning_schema VALUES (999, now())")
    with pytest.raises(StoreSchemaError, match=r"999.*pip install --upgrade"):
        PostgresLightningStore(postgres_url, schema=schema)
    assert ask(postgres_url, f"SELECT max(version) FROM {schema}.lightning_schema") == [(999,)]


def test_a_user_who_may_not_create_a_schema_is_told(postgres_url, schema):
    role = f"{schema}_nobody"
    ask(postgres_url, f"CREATE ROLE {role} LOGIN")
    url = postgres_url.replace("lightning@", f"{role}@")
    if url == postgres_url:
        pytest.skip("the given server's URL names another user")
    with pytest.raises(StoreUnavailableError, match=f"may not use the schema '{schema}'"):
        PostgresLightningStore(url, schema=schema)


# Texts


@given(st.text(st.characters(exclude_categories=()), max_size=20), st.text(max_size=20))
def test_every_string_has_one_form_that_postgresql_takes(one, two):
    for text in (one, two, f"\\{one}", f"\x00{two}\ud800", "\\0000"):
        assert unquote(quote(text)) == text
        assert "\0" not in quote(text)
        quote(text).encode()
    assert (quote(one) == quote(two)) == (one == two)


def test_json_text_keeps_what_utf8_cannot_hold():
    assert json_text('{"a":"\ud800"}') == b'{"a":"\\ud800"}'
    assert json_text("é") == "é".encode()


async def test_texts_that_postgresql_refuses_are_kept_everywhere(store):
    odd = "a\x00b\ud800\\0000 \U0001f600'\"%$1"
    rollout = await store.enqueue_rollout(
        {odd: [odd]}, resources_id=odd, metadata={odd: odd}, run_id=odd, idempotency_key=odd
    )
    assert (rollout.input, rollout.resources_id, rollout.run_id) == ({odd: [odd]}, odd, odd)
    assert (await store.enqueue_rollout(2, idempotency_key=odd)).rollout_id == rollout.rollout_id
    assert [r.rollout_id for r in await store.query_rollouts(run_id=odd)] == [rollout.rollout_id]
    assert (await store.statistics(run_id=odd)).rollouts == {"queuing": 1}
    [taken] = await store.dequeue_rollouts(1, odd, run_id=odd, request_id=odd)
    assert await store.dequeue_rollouts(1, odd, run_id=odd, request_id=odd) == [taken]
    assert taken.input == {odd: [odd]}
    assert taken.attempt.attempt_id.startswith(f"at-{odd}-")
    written = Span.from_attributes(
        rollout_id=taken.rollout_id,
        attempt_id=taken.attempt.attempt_id,
        span_id=odd,
        trace_id=odd,
        name=odd,
        attributes={odd: odd},
    )
    await store.add_spans([written, written])
    [found] = await store.query_spans(
        taken.rollout_id, taken.attempt.attempt_id, name=odd, span_id=odd, trace_id=odd
    )
    assert found == written.detached(sequence_id=1)
    await store.update_attempt(
        taken.rollout_id, "latest", status="failed", metadata={odd: odd}, worker_id=odd
    )
    [attempt] = await store.query_attempts(taken.rollout_id)
    assert (attempt.metadata, attempt.worker_id) == ({odd: odd}, odd)
    await store.update_worker(odd, heartbeat_stats={odd: odd})
    assert [(w.worker_id, w.heartbeat_stats) for w in await store.query_workers()] == [(odd, {odd: odd})]
    await store.update_resources(odd, {"a\x00b": PromptTemplate(template="a\x00b")})
    resources = await store.get_resources_by_id(odd)
    assert resources is not None
    assert resources.resources["a\x00b"].template == "a\x00b"
    await store.save_run(Run(run_id=odd, settings={"a\x00b": "a\x00b"}))
    assert [run.settings for run in await store.query_runs(odd)] == [{"a\x00b": "a\x00b"}]
    await store.save_run_state(odd, {odd: odd})
    assert await store.load_run_state(odd) == {odd: odd}
    assert len(await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)) == 1
    assert await store.get_rollout_by_id(odd) is None


async def test_an_id_that_no_index_holds_is_refused_alone(store):
    long = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
    good, bad = await asyncio.gather(
        store.enqueue_rollout(1), store.enqueue_rollout(2, idempotency_key=long), return_exceptions=True
    )
    assert isinstance(bad, StoreUnavailableError)
    assert "id this long" in str(bad)
    assert [rollout.rollout_id for rollout in await store.query_rollouts()] == [good.rollout_id]


# Errors of the server


async def test_a_disk_that_is_full_is_reported_and_harms_nobody_else(postgres_url, schema, store):
    taken = [await store.start_rollout(number) for number in range(8)]
    ask(
        postgres_url,
        f"""
        CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.name = 'too much' THEN
                RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON {schema}.spans FOR EACH ROW EXECUTE FUNCTION {schema}.fail();
        """,
    )
    spans = [
        span(rollout).detached(name="too much" if number == 3 else "x")
        for number, rollout in enumerate(taken)
    ]
    done = await asyncio.gather(*(store.add_spans([one]) for one in spans), return_exceptions=True)
    assert isinstance(done[3], StoreUnavailableError)
    assert "disk or memory is full" in str(done[3])
    assert done[:3] + done[4:] == [1] * 7
    ask(postgres_url, f"DROP TRIGGER fail ON {schema}.spans")
    assert await store.add_spans(spans) == 1
    assert (await store.statistics()).spans == 8


# Cost


async def test_no_call_reads_a_table_whole(postgres_url, schema):
    # The tables are read whole while their indexes are made.
    await PostgresLightningStore(postgres_url, schema=schema).close()
    before = await _whole_readings(postgres_url, schema)
    store = PostgresLightningStore(postgres_url, schema=schema)
    config = RolloutConfig(unresponsive_seconds=1_000)

    async def work(rollout):
        await store.add_spans([span(rollout, "a"), span(rollout, "b")])
        await store.add_spans([span(rollout, "a")])
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")

    for _ in range(3):
        await store.enqueue_rollouts([EnqueueRequest(input=n, config=config, run_id="r") for n in range(300)])
        await asyncio.gather(*map(work, await store.dequeue_rollouts(250, "w")))
    await store.start_rollout(1, idempotency_key="k")
    await store.start_rollout(1, idempotency_key="k")
    taken = await store.dequeue_rollouts(2, "w", run_id="r", request_id="q")
    assert await store.dequeue_rollouts(2, "w", run_id="r", request_id="q") == taken
    await store.renew_leases("w", [(r.rollout_id, r.attempt.attempt_id) for r in taken])
    await store.update_rollout(taken[0].rollout_id, metadata={"a": 1})
    await store.wait_for_rollouts(rollout_ids=[taken[0].rollout_id], timeout=0.05)
    await store.query_rollouts(status=["queuing", "succeeded"], limit=5)
    await store.query_rollouts(run_id="r", limit=5, descending=True)
    await store.query_attempts(taken[0].rollout_id)
    await store.query_spans(taken[0].rollout_id, "latest")
    await store.get_latest_attempt(taken[0].rollout_id)
    await store.query_workers()
    await store.statistics(run_id="r")
    await store.close()
    assert await _whole_readings(postgres_url, schema) == before


async def _whole_readings(url, schema):
    """How often each table was read whole, once the server has counted everything that was done."""
    statement = (
        "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = %s AND relname IN "
        "('rollouts', 'attempts', 'spans', 'resources')"
    )
    found = None
    async with asyncio.timeout(PATIENCE):
        while found != (found := ask(url, statement, schema)) or not found:  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.3)
    return {name: number for name, number, _ in found}


async def test_counters_are_added_up_from_time_to_time(postgres_url, schema, monkeypatch):
    monkeypatch.setattr(engine, "_FOLD_EVERY", 10)
    store = PostgresLightningStore(postgres_url, schema=schema)
    for number in range(40):
        await store.enqueue_rollout(number, run_id="r")
        await store.update_rollout((await store.dequeue_rollout()).rollout_id, status="succeeded")
    statistics = await store.statistics(run_id="r")
    assert (statistics.rollouts, statistics.attempts) == ({"succeeded": 40}, 40)
    await store.close()
    [(rows,)] = ask(postgres_url, f"SELECT count(*) FROM {schema}.counts")
    assert rows < 100


# Threads and processes


async def test_closing_ends_the_thread_and_the_connections(postgres_url, schema):
    before = set(threading.enumerate())
    store = PostgresLightningStore(f"{postgres_url}?application_name={schema}", schema=schema)
    await store.enqueue_rollout(1)
    await store.dequeue_rollouts(2, wait=0.01, run_id="none")
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    assert ask(postgres_url, count, schema)[0][0] >= 2
    await store.close()
    assert not [thread for thread in set(threading.enumerate()) - before if "lightning" in thread.name]
    async with asyncio.timeout(PATIENCE):
        while ask(postgres_url, count, schema) != [(0,)]:  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.01)
    with pytest.raises(StoreClosedError):
        await store.enqueue_rollout(1)


async def test_what_was_asked_for_before_close_is_still_stored(postgres_url, schema):
    store = PostgresLightningStore(postgres_url, schema=schema)
    writes = [asyncio.ensure_future(store.enqueue_rollout(number)) for number in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*writes)) == 20
    again = PostgresLightningStore(postgres_url, schema=schema)
    assert sorted(rollout.input for rollout in await again.query_rollouts()) == list(range(20))
    await again.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_uses_the_store_and_leaves_the_parents_connections_alone(postgres_url, schema):
    store = PostgresLightningStore(postgres_url, schema=schema)
    asyncio.run(store.enqueue_rollout("parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:

            async def use():
                await store.enqueue_rollout("child")
                assert len(await store.query_rollouts()) == 2
                await store.close()

            asyncio.run(asyncio.wait_for(use(), PATIENCE))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0

    async def look():
        await store.enqueue_rollout("parent again")
        found = [rollout.input for rollout in await store.query_rollouts()]
        await store.close()
        return found

    assert asyncio.run(look()) == ["parent", "child", "parent again"]


async def test_machines_whose_clocks_are_wrong_agree_on_leases(postgres_url, schema, store, monkeypatch):
    """Only the server's clock counts."""
    rollout = await store.enqueue_rollout(1, config=RolloutConfig(unresponsive_seconds=30, max_attempts=2))
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    behind = PostgresLightningStore(postgres_url, schema=schema)
    [taken] = await behind.dequeue_rollouts(1, "behind")
    monkeypatch.setattr("time.time", lambda: 9e9)
    assert await store.dequeue_rollouts(1, "ahead") == []
    await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=9e9)
    [(now,)] = ask(postgres_url, "SELECT extract(epoch FROM clock_timestamp())::float8")
    attempt = await behind.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None
    assert now - 60 < taken.attempt.start_time <= attempt.last_heartbeat_time <= now
    assert [worker.status for worker in await store.query_workers()] == ["busy"]
    await behind.close()
