"""The client: where it may be used from, what it puts together, what it keeps to itself."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer

from lightning_core.errors import (
    ConfigurationError,
    PluginSettingsError,
    StoreClosedError,
    StoreUnavailableError,
    UnserializableValueError,
)
from lightning_core.plugin import resolve
from lightning_core.store import EnqueueRequest, InMemoryLightningStore
from lightning_core.store import LightningStoreClient as FromCore
from lightning_core.types import Span

PATIENCE = 30


class Recording(InMemoryLightningStore):
    """Remembers the sizes of enqueues, and holds them up on request."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    async def enqueue_rollouts(self, requests):
        await asyncio.to_thread(self.gate.wait)
        return await super().enqueue_rollouts(requests)


@pytest.fixture
def server():
    with LightningStoreServer(Recording()) as server:
        yield server


@pytest.fixture
async def client(server):
    client = LightningStoreClient(server.url, token=server.token)
    yield client
    await client.close()


def count_requests(server) -> list[str]:
    """Note each request that the server gets from now on."""
    app, seen = server._app, []
    admit = app._admit

    def noting(scope):
        seen.append(scope["path"])
        admit(scope)

    app._admit = noting
    return seen


# Threads and loops


def test_a_hundred_event_loops_leave_nothing_behind(server):
    """Trap 28: one client, a hundred calls of ``asyncio.run``, and no connection or warning is left."""
    client = LightningStoreClient(server.url, token=server.token)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(100):
            assert asyncio.run(client.enqueue_rollout(number)).input == number
            # The connections of the loop were closed with it.
            assert client._channels == {}
        gc.collect()
    asyncio.run(client.close())


def test_loops_that_are_closed_carelessly_are_forgotten(server):
    """Trap 28: closed without a shutdown, their sockets are closed when the client is used next."""
    client = LightningStoreClient(server.url, token=server.token)
    for number in range(20):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(client.enqueue_rollout(number))
        loop.close()
        assert len(client._channels) == 1
    asyncio.run(client.close())
    gc.collect()


def test_loops_in_several_threads_use_one_client(server):
    """Trap 28."""
    client = LightningStoreClient(server.url, token=server.token)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        async def work() -> None:
            await asyncio.gather(*(client.enqueue_rollout(10 * number + n) for n in range(10)))

        try:
            for _ in range(3):
                asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    inputs = sorted(rollout.input for rollout in asyncio.run(server.store.query_rollouts()))
    assert inputs == sorted([*range(60)] * 3)
    asyncio.run(client.close())


async def test_closing_ends_the_waits_of_other_loops_too(server, until):
    client = LightningStoreClient(server.url, token=server.token)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(client.dequeue_rollouts(wait=PATIENCE))
        except StoreClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await until(lambda: server._app.service.waits)
    await client.close()
    await asyncio.to_thread(thread.join)
    assert len(ended) == 1
    for call in (client.statistics(), client.dequeue_rollouts(), client.close()):
        if call.__name__ == "close":
            await call
            continue
        with pytest.raises(StoreClosedError, match=server.url):
            await call


def test_capabilities_are_known_without_an_event_loop_and_within_one(server):
    client = LightningStoreClient(server.url, token=server.token)
    assert (client.capabilities.durable, client.capabilities.processes) == (False, True)
    assert not client.capabilities.python_values
    assert client.location == server.url

    async def within() -> bool:
        return LightningStoreClient(server.url, token=server.token).capabilities.durable

    assert asyncio.run(within()) is False


def test_it_is_not_needed_to_list_the_plugin():
    """The client and the server, with all that they need, are imported when they are used."""
    code = (
        "import lightning_store_http.plugin, sys; print({'uvicorn','msgpack','httptools'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_fork_makes_connections_of_its_own(server, client):
    """Trap 29: also if the parent was just using the client; its own connections go on."""
    await client.enqueue_rollout(1)
    with client._lock:
        process = multiprocessing.get_context("fork").Process(target=_enqueue, args=(client, 2))
        process.start()
    await client.enqueue_rollout(3)
    await asyncio.to_thread(process.join, PATIENCE)
    assert process.exitcode == 0
    assert sorted(rollout.input for rollout in await client.query_rollouts()) == [1, 2, 3]


def _enqueue(client: LightningStoreClient, number: int) -> None:
    async def use() -> None:
        await client.enqueue_rollout(number)
        await client.close()

    # The parent's loop is running, as far as this thread was told.
    asyncio.events._set_running_loop(None)
    asyncio.run(use())


# Pickling, settings


def test_a_pickled_client_knows_its_server(server):
    """Trap 29: also before its first use; the copy has connections of its own."""
    client = LightningStoreClient(server.url, token=server.token)
    asyncio.run(client.enqueue_rollout(1))
    copy = pickle.loads(pickle.dumps(client))
    assert copy._peer.nonce == server.nonce
    assert len(asyncio.run(copy.query_rollouts())) == 1
    asyncio.run(client.close())
    assert len(asyncio.run(copy.query_rollouts())) == 1
    asyncio.run(copy.close())


def test_it_is_selected_by_its_url(server, monkeypatch):
    monkeypatch.setenv("LIGHTNING_CORE_STORE_TOKEN", server.token)
    store = resolve("store", server.url)
    assert type(store) is LightningStoreClient is FromCore
    assert asyncio.run(store.statistics()).rollouts == {}
    asyncio.run(store.close())
    with pytest.raises(PluginSettingsError, match=r"store\.retries: unknown setting"):
        resolve("store", {"type": server.url, "retries": 3})
    given = resolve("store", {"type": "http", "url": server.url, "token": server.token, "retry_seconds": 1})
    asyncio.run(given.close())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:4747", "looks like http://host:4747"),
        ("http://", "looks like"),
        ("http://host:99999", "looks like"),
        ("http://host:4747/v1", "looks like"),
        ("ftp://host", "looks like"),
        ("http://:secret@host:4747", "token="),
    ],
)
def test_a_url_that_is_none_is_refused(url, said):
    """Trap 31."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        LightningStoreClient(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("token", ["secret-token\n", "secret\r\nx-header: 1", "sécret-token"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token, monkeypatch):
    with pytest.raises(ConfigurationError, match="printable ASCII") as raised:
        LightningStoreClient("http://localhost:4747", token=token)
    assert token.strip() not in str(raised.value)
    monkeypatch.setenv("LIGHTNING_CORE_STORE_TOKEN", token)
    with pytest.raises(ConfigurationError, match="LIGHTNING_CORE_STORE_TOKEN"):
        LightningStoreClient("http://localhost:4747")


# What travels


async def test_calls_that_are_made_together_travel_together(server, client):
    """The first goes at once; what comes while it is under way shares the next requests."""
    await client.statistics()
    seen = count_requests(server)
    server.store.gate.clear()
    calls = [asyncio.create_task(client.enqueue_rollout(number)) for number in range(200)]
    await asyncio.sleep(0.1)
    server.store.gate.set()
    rollouts = await asyncio.gather(*calls)
    assert [rollout.input for rollout in rollouts] == list(range(200))
    assert len(seen) < 10


@pytest.mark.parametrize("method", ["enqueue_rollouts", "dequeue_rollouts"])
async def test_a_store_that_is_unavailable_for_a_while_is_asked_again(server, client, monkeypatch, method):
    """Such as one whose disk is full; calls that travel together, and those that go alone."""
    works, failures = getattr(server.store, method), 3

    async def fail(*args, **kwargs):
        nonlocal failures
        if failures > 0:
            failures -= 1
            raise StoreUnavailableError("the disk is full")
        return await works(*args, **kwargs)

    monkeypatch.setattr(server.store, method, fail)
    calls = [client.enqueue_rollout(number) for number in range(3)]
    assert [rollout.input for rollout in await asyncio.gather(*calls)] == [0, 1, 2]
    assert len(await client.dequeue_rollouts(9, "w")) == 3
    assert failures == 0
    hasty = LightningStoreClient(server.url, token=server.token, retry_seconds=0.1)
    failures = 10_000
    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        await (hasty.enqueue_rollout(1) if method == "enqueue_rollouts" else hasty.dequeue_rollouts())
    await hasty.close()


async def test_a_vacuum_that_may_take_long_fails_as_soon_as_others(server, monkeypatch):
    async def fail(*, before):
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(server.store, "vacuum", fail)
    client = LightningStoreClient(server.url, token=server.token, retry_seconds=0.1)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StoreUnavailableError, match="the disk is full"):
            await client.vacuum(before=0.0)
    await client.close()


async def test_one_bad_call_harms_none_that_travels_along(server, client):
    good = [client.enqueue_rollout(number) for number in range(3)]
    bad = client.update_rollout("ro-none", status="cancelled")
    results = await asyncio.gather(*good, bad, client.statistics(), return_exceptions=True)
    assert [result.input for result in results[:3]] == [0, 1, 2]
    assert isinstance(results[3], LookupError)


async def test_a_cancelled_call_harms_none_that_travels_along(server, client):
    calls = [asyncio.create_task(client.enqueue_rollout(number)) for number in range(5)]
    await asyncio.sleep(0)
    calls[2].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "value",
    [2**100, -(2**70), "\ud800", "漢字\x00", [[[[]]]], {"": None}, 1e-300, True, {"a": [1, 2.5, None, "x"]}],
    ids=repr,
)
async def test_any_json_value_comes_back_as_it_was(client, value):
    """Also what msgpack cannot hold."""
    rollout = await client.enqueue_rollout(value, metadata={"value": value})
    assert (rollout.input, rollout.metadata) == (value, {"value": value})
    (taken,) = await client.dequeue_rollouts()
    assert taken.input == value
    span = Span.from_attributes(
        rollout_id=taken.rollout_id, attempt_id=taken.attempt.attempt_id, attributes={"value": str(value)}
    )
    assert (await client.add_span(span)).attributes == {"value": str(value)}


async def test_a_deeply_nested_value_is_carried_or_refused(client):
    value: list = []
    for _ in range(600):
        value = [value]
    with pytest.raises(UnserializableValueError, match="nested too deeply"):
        await client.enqueue_rollout(value)
    for _ in range(300):
        (value,) = value
    assert (await client.enqueue_rollout(value)).input == value


async def test_work_that_the_network_cannot_carry_is_not_tried_for_ever(server, client):
    """A store in memory takes any value from its own process; a runner elsewhere could never get it."""
    await server.store.enqueue_rollout({1, 2})
    await server.store.enqueue_rollout("fine")
    with pytest.raises(UnserializableValueError, match="type set"):
        await client.dequeue_rollouts(1, "w")
    [bad, fine] = await server.store.query_rollouts()
    assert (bad.status, fine.status) == ("failed", "queuing")
    attempt = await client.get_latest_attempt(bad.rollout_id)
    assert attempt is not None
    assert attempt.reason == "infrastructure"
    assert "type set" in attempt.metadata["error"]
    assert [one.input for one in await client.dequeue_rollouts(1, "w")] == ["fine"]


async def test_the_keys_that_it_draws_are_not_shown(server, client):
    """They make an enqueue harmless that comes again after a restart of the server, and are nobody's business."""
    await client.enqueue_rollouts([EnqueueRequest(input=1), EnqueueRequest(input=2, idempotency_key="mine")])
    await client.start_rollout(3)
    shown = [rollout.idempotency_key for rollout in await client.query_rollouts()]
    assert shown == [None, "mine", None]
    assert (await client.dequeue_rollouts(1))[0].idempotency_key is None
    stored = [rollout.idempotency_key for rollout in await server.store.query_rollouts()]
    assert all(stored)
    assert len(set(stored)) == 3
