"""Nothing is lost and nothing happens twice, whatever the network does."""

from __future__ import annotations

import asyncio
import random

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer
from lightning_store_http.answers import Answer, Peer

from lightning_core.errors import StoreError, StoreUnavailableError
from lightning_core.store import EnqueueRequest, InMemoryLightningStore
from lightning_core.testing.network import FaultyProxy
from lightning_core.types import LLM, PromptTemplate, RolloutConfig, Span

PATIENCE = 30


def make_span(rollout, number: int) -> Span:
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        attributes={"number": number},
        span_id=f"{number:016x}",
    )


class Counting(InMemoryLightningStore):
    """Counts what reaches the store."""

    def __init__(self):
        super().__init__()
        self.calls: dict[str, int] = {}

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    async def enqueue_rollouts(self, requests):
        self.count("enqueue")
        return await super().enqueue_rollouts(requests)

    async def dequeue_rollouts(self, *args, **kwargs):
        self.count("dequeue")
        return await super().dequeue_rollouts(*args, **kwargs)

    async def update_resources(self, *args, **kwargs):
        self.count("update_resources")
        return await super().update_resources(*args, **kwargs)

    async def start_attempt(self, *args, **kwargs):
        self.count("start_attempt")
        return await super().start_attempt(*args, **kwargs)

    async def get_next_span_sequence_id(self, *args, **kwargs):
        self.count("sequence_id")
        return await super().get_next_span_sequence_id(*args, **kwargs)


@pytest.fixture
async def served():
    store = Counting()
    async with LightningStoreServer(store) as server:
        yield server
    await store.close()


@pytest.fixture
async def proxy(served):
    async with FaultyProxy("127.0.0.1", served.port) as proxy:
        yield proxy


@pytest.fixture
async def client(served, proxy):
    client = LightningStoreClient(
        f"http://127.0.0.1:{proxy.port}", token=served.token, retry_seconds=PATIENCE
    )
    yield client
    await client.close()


async def test_a_lost_answer_is_given_again_and_the_work_is_done_once(served, proxy, client):
    """Traps 3 and 6: for every operation that cannot simply be repeated."""
    calls = served.store.calls

    async def lose(call):
        proxy.lose_answers(1)
        lost = proxy.lost_answers
        result = await call
        assert proxy.lost_answers == lost + 1
        return result

    await lose(client.enqueue_rollouts([EnqueueRequest(input=n) for n in range(3)]))
    assert calls["enqueue"] == 1
    (rollout,) = await lose(client.dequeue_rollouts(1, "w"))
    (other,) = await lose(client.dequeue_rollouts(1))
    assert (rollout.input, other.input) == (0, 1)
    assert calls["dequeue"] == 2
    key = rollout.rollout_id, rollout.attempt.attempt_id
    assert await lose(client.get_next_span_sequence_id(*key)) == 1
    assert await lose(client.add_spans([make_span(rollout, 1)])) == 1
    again = await lose(client.start_attempt(rollout.rollout_id))
    assert again.attempt.sequence_id == 2
    added = await lose(client.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")}))
    updated = await lose(
        client.update_resources(added.resources_id, {"prompt": PromptTemplate(template="{x}")})
    )
    assert updated.version == 2
    started = await lose(client.start_rollout("mine"))
    assert started.idempotency_key is None
    assert calls == {"enqueue": 1, "dequeue": 2, "sequence_id": 1, "start_attempt": 1, "update_resources": 2}
    assert len(await client.query_rollouts()) == 4


async def test_a_report_that_comes_twice_does_not_end_the_next_attempt(served, proxy, client):
    """Trap 3: "latest" means what it meant when the report was sent first."""
    config = RolloutConfig(max_attempts=2)
    rollout = await client.enqueue_rollout(1, config=config)
    await client.dequeue_rollout("w")
    proxy.lose_answers(1)
    reporting = asyncio.create_task(client.update_attempt(rollout.rollout_id, "latest", status="failed"))
    # Another worker takes the rollout before the answer is asked for again.
    (taken,) = await served.store.dequeue_rollouts(1, "other", PATIENCE)
    assert (await reporting).sequence_id == 1
    latest = await client.get_latest_attempt(rollout.rollout_id)
    assert latest is not None
    assert (latest.attempt_id, latest.status) == (taken.attempt.attempt_id, "preparing")


async def test_what_was_done_is_not_done_again_when_its_answer_was_too_much_to_keep(
    served, proxy, client, monkeypatch
):
    """The caller gets an error, since nobody knows the answer any more."""
    rollout = await client.start_rollout("mine")
    keep = Peer.keep

    def keep_and_answer_more(peer: Peer, number: int, answer: Answer) -> None:
        keep(peer, number, answer)
        keep(peer, number + 1, Answer("application/json", b"x" * 2000, []))

    monkeypatch.setattr("lightning_store_http.answers._MOST_BYTES", 2000)
    monkeypatch.setattr(Peer, "keep", keep_and_answer_more)
    proxy.lose_answers(1)
    with pytest.raises(StoreError, match="has been carried out, and is not carried out again"):
        await client.start_attempt(rollout.rollout_id)
    assert served.store.calls["start_attempt"] == 1
    assert (await client.get_latest_attempt(rollout.rollout_id)).sequence_id == 2


async def test_an_idle_connection_that_was_closed_is_replaced(proxy, client):
    """Trap 24: the server closes it just as the client uses it again."""
    for number in range(5):
        await client.enqueue_rollout(number)
        proxy.cut()
    assert [rollout.input for rollout in await client.dequeue_rollouts(9)] == [0, 1, 2, 3, 4]


async def test_a_wait_survives_the_loss_of_its_connection(served, proxy, client, until):
    """For work, which is handed out once, and for an end."""
    waiting = asyncio.create_task(client.dequeue_rollouts(2, "w", PATIENCE))
    await until(lambda: proxy.connections)
    proxy.cut()
    await client.enqueue_rollout(1)
    (rollout,) = await waiting
    ending = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
    await asyncio.sleep(0.05)
    proxy.cut()
    await served.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    assert [one.status for one in await ending] == ["succeeded"]
    assert (await client.statistics()).attempts == 1


async def test_a_client_that_goes_away_while_it_waits_takes_no_work(served, proxy, client, until):
    """Trap 3: what comes later goes to others at once, not when a lease ends."""
    waiting = asyncio.create_task(client.dequeue_rollouts(1, "w", PATIENCE))
    app = served._app
    await until(lambda: app.service.waits)
    proxy.refusing = True
    proxy.cut()
    await until(lambda: not app.service.waits)
    await served.store.enqueue_rollout(1)
    assert len(await served.store.dequeue_rollouts(1, "other")) == 1
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_repeated_request_is_harmless_across_a_restart_of_the_server(tmp_path, until):
    """Traps 3 and 6: the answer is lost, and the server that is asked again has never heard of the request."""
    sqlite = pytest.importorskip("lightning_store_sqlite")
    path, token = tmp_path / "runs.db", "one-token"

    def start() -> LightningStoreServer:
        server = LightningStoreServer(sqlite.SqliteLightningStore(path, synchronous="normal"), token=token)
        server.start()
        return server

    server = start()
    async with FaultyProxy("127.0.0.1", server.port) as proxy:
        client = LightningStoreClient(f"http://127.0.0.1:{proxy.port}", token=token, retry_seconds=PATIENCE)

        async def lose(call):
            nonlocal server
            # On a connection that is there, so that the proxy can refuse new ones.
            await client.statistics()
            proxy.lose_answers(1)
            proxy.refusing = True
            lost = proxy.lost_answers
            running = asyncio.create_task(call)
            await until(lambda: proxy.lost_answers > lost)
            await asyncio.to_thread(server.stop)
            await server.store.close()
            server = await asyncio.to_thread(start)
            # Its old port may be somebody else's by now.
            proxy.target = "127.0.0.1", server.port
            proxy.refusing = False
            return await running

        rollouts = await lose(client.enqueue_rollouts([EnqueueRequest(input=n) for n in range(2)]))
        assert [rollout.input for rollout in rollouts] == [0, 1]
        started = await lose(client.start_rollout("mine"))
        assert started.attempt.sequence_id == 1
        assert len(await client.query_rollouts()) == 3
        # A wait has a connection of its own: the one that is there already.
        taken = await lose(client.dequeue_rollouts(1, "w"))
        assert [rollout.input for rollout in taken] == [0]
        assert [rollout.status for rollout in await client.query_rollouts()] == [
            "preparing",
            "queuing",
            "preparing",
        ]
        assert await lose(client.add_spans([make_span(taken[0], n) for n in (1, 2)])) in (0, 2)
        added = await lose(client.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")}))
        assert added.version == 1
        second = await lose(client.start_attempt(started.rollout_id, "w"))
        assert second.attempt.sequence_id == 2
        statistics = await client.statistics()
        assert (statistics.attempts, statistics.spans, statistics.resources) == (3, 2, 1)
        await client.close()
    server.stop()
    await server.store.close()


async def test_a_server_that_stays_away_is_an_error_in_time(served, proxy):
    """Trap 30: after ``retry_seconds``, and the error says where it should have been."""
    async with asyncio.timeout(PATIENCE):
        url = f"http://127.0.0.1:{proxy.port}"
        client = LightningStoreClient(url, token=served.token, retry_seconds=0.2)
        proxy.refusing = True
        with pytest.raises(StoreUnavailableError, match=rf"{url} could not be reached for 0\.2 s"):
            await client.statistics()
        with pytest.raises(StoreUnavailableError, match=url):
            await client.dequeue_rollouts(wait=0.1)
        with pytest.raises(StoreUnavailableError, match=url):
            await asyncio.to_thread(lambda: client.capabilities)
        proxy.refusing = False
        assert (await client.statistics()).attempts == 0
        assert not (await asyncio.to_thread(lambda: client.capabilities)).durable
        await client.close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.repeated) for seed in (1, 2))])
async def test_many_workers_lose_nothing_in_a_bad_network(served, proxy, seed):
    """Connections are cut, answers lost and data held back at random; every rollout and span is there once."""
    source = random.Random(seed)
    number, workers = 200, 4
    clients = [
        LightningStoreClient(f"http://127.0.0.1:{proxy.port}", token=served.token, retry_seconds=PATIENCE)
        for _ in range(workers + 1)
    ]
    done: list[int] = []
    moved = asyncio.Event()

    async def work(client: LightningStoreClient, name: str) -> None:
        while len(done) < number:
            for rollout in await client.dequeue_rollouts(3, name, 0.05):
                spans = [make_span(rollout, n) for n in range(1, 6)]
                assert await client.add_spans(spans) == 5
                await client.update_attempt(
                    rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded"
                )
                done.append(rollout.input)
                moved.set()

    async def harm() -> None:
        while True:
            fault = source.choice(["cut", "lose", "delay", "rest"])
            if fault == "cut":
                proxy.cut()
            elif fault == "lose":
                proxy.lose_answers(source.randint(1, 3))
            proxy.delay = 0.01 if fault == "delay" else 0.0
            await asyncio.sleep(source.uniform(0, 0.2))
            # However slow the machine is, something gets through between two faults.
            moved.clear()
            await moved.wait()

    harming = asyncio.create_task(harm())
    async with asyncio.timeout(2 * PATIENCE):
        working = [asyncio.create_task(work(clients[n], f"w{n}")) for n in range(workers)]
        ids: list[str] = []
        for start in range(0, number, 10):
            requests = [EnqueueRequest(input=start + n) for n in range(10)]
            ids += [one.rollout_id for one in await clients[-1].enqueue_rollouts(requests)]
        finished = await clients[-1].wait_for_rollouts(rollout_ids=ids)
        await asyncio.gather(*working)
        harming.cancel()
        await asyncio.wait([harming])
        proxy.delay = 0.0
    assert sorted(done) == list(range(number))
    assert {one.status for one in finished} == {"succeeded"}
    assert len(finished) == number
    statistics = await served.store.statistics()
    assert (statistics.rollouts, statistics.attempts) == ({"succeeded": number}, number)
    assert statistics.spans == 5 * number
    for client in clients:
        await client.close()
