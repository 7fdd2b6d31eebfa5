"""The server lets in who may come, tells one store from another, keeps its limits, and stops in good order."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import threading
import time

import pytest
from lightning_store_http import LightningStoreClient, LightningStoreServer
from lightning_store_http.service import identify

from lightning_core.errors import ConfigurationError, ExecutionError, StoreUnavailableError
from lightning_core.store import EnqueueRequest, InMemoryLightningStore, StoreCapabilities
from lightning_core.testing.network import FaultyProxy

PATIENCE = 30


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


def ask(server, method, path, body=None, *, token="right", **headers) -> Answer:
    """Send a request; a body that is no bytes is sent as JSON."""
    if token == "right":
        token = server.token
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("content-type", "application/json")
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, sent)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture
def store():
    return InMemoryLightningStore()


@pytest.fixture
def server(store):
    with LightningStoreServer(store) as server:
        yield server


# Who may come


@pytest.mark.parametrize("path", ["/v1/statistics", "/v1/batch", "/v1/openapi.json", "/v1/traces", "/v1/no"])
@pytest.mark.parametrize("token", [None, "", "wrong", "wröng".encode().decode("latin-1")])
def test_without_the_token_nothing_is_said(server, path, token):
    """Trap 26."""
    answer = ask(server, "GET", path, token=token)
    assert answer.status == 401
    assert answer.json == {"error": {"type": "Unauthorized", "message": "a valid token is needed"}}
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_health_check_needs_no_token_and_tells_little(server):
    answer = ask(server, "GET", "/v1/health", token=None)
    assert answer.status == 200
    assert answer.json.keys() == {"nonce", "version"}
    assert answer.json["nonce"] == server.nonce == answer.headers["lightning-store-nonce"]


def test_a_server_listens_on_the_loopback_and_draws_a_token(store):
    """Trap 26."""
    one, two = LightningStoreServer(store), LightningStoreServer(store)
    assert one.host == "127.0.0.1"
    assert len(one.token) >= 32
    assert one.token != two.token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_another_interface_needs_a_token(store, host):
    """Trap 26: one that was chosen, not one that nobody has seen."""
    with pytest.raises(ConfigurationError, match="token"):
        LightningStoreServer(store, host)
    assert LightningStoreServer(store, host, token="chosen-token").token == "chosen-token"


@pytest.mark.parametrize("token", ["short", "with\nline-feed", "schlüssel-wort"])
def test_a_token_that_no_header_can_carry_is_refused(store, token):
    with pytest.raises(ConfigurationError, match="token"):
        LightningStoreServer(store, token=token)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_is_none_is_refused(store, port):
    """The system would take its last 16 bits."""
    with pytest.raises(ConfigurationError, match=f"a port is from 0 to 65535, not {port}"):
        LightningStoreServer(store, port=port)


async def test_a_client_without_the_token_is_told_what_to_do(server, monkeypatch):
    for token, advice in [(None, "wants a token"), ("wrong", "does not accept the token")]:
        client = LightningStoreClient(server.url, token=token)
        with pytest.raises(StoreUnavailableError, match=f"{advice}.*LIGHTNING_CORE_STORE_TOKEN"):
            await client.statistics()
        with pytest.raises(StoreUnavailableError, match=advice):
            assert client.capabilities
        await client.close()
    monkeypatch.setenv("LIGHTNING_CORE_STORE_TOKEN", server.token)
    client = LightningStoreClient(server.url)
    assert (await client.statistics()).rollouts == {}
    await client.close()


# Which store it is


def test_a_taken_port_is_refused(store, server):
    """Trap 25: two servers never share a port."""
    second = LightningStoreServer(store, port=server.port)
    with pytest.raises(StoreUnavailableError, match=f"port {server.port} of 127.0.0.1 cannot be had"):
        second.start()
    assert not second.running
    second.stop()
    assert ask(server, "GET", "/v1/health").status == 200


def test_a_taken_port_of_another_kind_of_server_is_refused(store):
    """Trap 25: even one that lets others share it."""
    with socket.socket() as other:
        if hasattr(socket, "SO_REUSEPORT"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StoreUnavailableError, match="cannot be had"):
            LightningStoreServer(store, port=other.getsockname()[1]).start()


def test_an_interface_that_does_not_exist_is_an_error(store):
    with pytest.raises(StoreUnavailableError, match="interface"):
        LightningStoreServer(store, "no.such.host.invalid", token="chosen-token").start()


def test_a_server_whose_store_cannot_be_read_says_why_it_does_not_start(monkeypatch):
    async def fail(run_id):
        raise StoreUnavailableError("the disk is gone")

    store = InMemoryLightningStore()
    monkeypatch.setattr(store, "capabilities", StoreCapabilities(durable=True))
    monkeypatch.setattr(store, "load_run_state", fail)
    with pytest.raises(ExecutionError, match=r"did not start: the disk is gone$"):
        LightningStoreServer(store).start()


async def test_a_client_never_talks_to_a_stranger(store):
    """Trap 25: a server with other data on the same port gets no request carried out."""
    other = InMemoryLightningStore()
    async with (
        LightningStoreServer(store, token="one-token") as first,
        LightningStoreServer(other, token="one-token") as second,
        FaultyProxy("127.0.0.1", first.port) as proxy,
    ):
        client = LightningStoreClient(f"http://127.0.0.1:{proxy.port}", token="one-token")
        await client.enqueue_rollout(1)
        proxy.target = "127.0.0.1", second.port
        proxy.cut()
        assert second.nonce != first.nonce
        with pytest.raises(StoreUnavailableError, match="another server answers"):
            await client.enqueue_rollout(2)
        with pytest.raises(StoreUnavailableError, match="another server answers"):
            await client.dequeue_rollouts(wait=1)
        assert (await other.statistics()).rollouts == {}
        # Given beforehand, the nonce counts from the first request on.
        strict = LightningStoreClient(second.url, token="one-token", nonce=first.nonce)
        with pytest.raises(StoreUnavailableError, match="another server answers"):
            assert strict.capabilities
        with pytest.raises(StoreUnavailableError, match="another server answers"):
            await strict.add_resources({})
        assert (await other.statistics()).resources == 0
        await strict.close()
        await client.close()


def test_a_request_for_another_store_is_refused_before_anything_else(server):
    """Trap 25: also with the right token."""
    body = {"rollouts": [{"input": 1}]}
    answer = ask(server, "POST", "/v1/enqueue", body, lightning_store_expect="another")
    assert answer.status == 421
    assert asyncio.run(server.store.statistics()).rollouts == {}
    assert ask(server, "POST", "/v1/enqueue", body, lightning_store_expect=server.nonce).status == 200


async def test_the_same_data_served_again_are_no_stranger(tmp_path):
    """A server that was restarted, even in another process, is the same if it has the same data."""
    sqlite = pytest.importorskip("lightning_store_sqlite")
    path = tmp_path / "runs.db"
    nonces: list[str] = []
    async with FaultyProxy("127.0.0.1", 0) as proxy:
        client = LightningStoreClient(f"http://127.0.0.1:{proxy.port}", token="one-token")
        for number in range(2):
            store = sqlite.SqliteLightningStore(path, synchronous="normal")
            async with LightningStoreServer(store, token="one-token") as server:
                proxy.target = "127.0.0.1", server.port
                nonces.append(server.nonce)
                assert (await asyncio.to_thread(lambda: client.capabilities)).durable
                await client.enqueue_rollout(number)
            await store.close()
        assert nonces[0] == nonces[1]
        path.unlink()
        store = sqlite.SqliteLightningStore(path, synchronous="normal")
        async with LightningStoreServer(store, token="one-token") as other:
            proxy.target = "127.0.0.1", other.port
            assert other.nonce not in nonces
            with pytest.raises(StoreUnavailableError, match="another server answers"):
                await client.query_runs()
        await store.close()
        await client.close()


async def test_servers_that_begin_at_once_with_new_data_have_one_nonce(store, monkeypatch):
    """Even if one looks before the other has written, and writes when the other has looked again."""
    monkeypatch.setattr(store, "capabilities", StoreCapabilities(durable=True))
    load, save = store.load_run_state, store.save_run_state
    looked = asyncio.Barrier(2)
    writers: list[str] = []

    async def load_run_state(run_id):
        state = await load(run_id)
        if state is None:
            await looked.wait()
        return state

    async def save_run_state(run_id, state):
        writers.append(state["nonce"])
        if len(writers) == 2:
            # While the first one, which has written, does all that it does without a pause.
            for _ in range(100):
                await asyncio.sleep(0)
        await save(run_id, state)

    monkeypatch.setattr(store, "load_run_state", load_run_state)
    monkeypatch.setattr(store, "save_run_state", save_run_state)
    first, second = await asyncio.gather(identify(store), identify(store))
    assert first == second == writers[1]


async def test_a_store_in_memory_keeps_its_nonce_while_it_lives(store):
    with LightningStoreServer(store) as first:
        pass
    with LightningStoreServer(store) as second:
        assert second.nonce == first.nonce
    with LightningStoreServer(InMemoryLightningStore()) as other:
        assert other.nonce != first.nonce


def test_a_server_that_has_not_started_has_no_nonce(store):
    with pytest.raises(ExecutionError, match="start"):
        assert LightningStoreServer(store).nonce
    assert LightningStoreServer(store, nonce="mine").nonce == "mine"


# The user's log


def test_what_uvicorn_says_of_its_life_is_not_in_the_log(store, caplog):
    caplog.set_level(logging.DEBUG)
    with LightningStoreServer(store) as server:
        ask(server, "GET", "/v1/health")
        logging.getLogger("uvicorn.error").info("of the user's own server")
    logging.getLogger("uvicorn.error").info("later")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert said == ["of the user's own server", "later"]


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error"])
def test_who_asks_for_what_uvicorn_says_gets_it(store, caplog, name):
    with caplog.at_level(logging.INFO, logger=name), LightningStoreServer(store):
        pass
    assert "Started server process" in caplog.text


# Errors and limits


def test_an_unexpected_error_is_told_by_a_number_alone(server, store, monkeypatch, caplog):
    """Trap 26: the traceback is in the log, under that number."""

    async def fail(**_):
        raise RuntimeError("the secret is swordfish")

    monkeypatch.setattr(store, "query_workers", fail)
    monkeypatch.setattr(store, "statistics", fail)
    with caplog.at_level(logging.ERROR):
        plain = ask(server, "GET", "/v1/statistics")
        batch = ask(server, "POST", "/v1/batch", {"operations": [["statistics", {}]]})
    assert plain.status == 500
    assert plain.json["error"]["type"] == "InternalError"
    [[good, error]] = batch.json
    assert not good
    for message in (plain.message, error["message"]):
        number = message.split()[2].rstrip(";")
        assert number in caplog.text
        assert "swordfish" not in message
    assert "Traceback" in caplog.text


def test_errors_of_the_store_keep_their_name(server):
    answer = ask(server, "POST", "/v1/rollouts/ro-none/attempts", {})
    assert answer.status == 404
    assert answer.json["error"]["type"] == "UnknownRolloutError"
    assert "ro-none" in answer.message


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/dequeue", {"limt": 1}, 422, "limt"),
        ("POST", "/v1/dequeue", {"limit": -1}, 422, "limit"),
        ("POST", "/v1/dequeue", {"limit": "1"}, 422, "limit"),
        ("GET", "/v1/rollouts?stats=failed", None, 422, "stats"),
        ("GET", "/v1/rollouts?limit=1&limit=2", None, 422, "limit: it is given twice"),
        ("GET", "/v1/rollouts?status=finished", None, 422, "status"),
        ("POST", "/v1/enqueue?run_id=r", {"rollouts": []}, 422, "run_id"),
        ("POST", "/v1/enqueue", [], 422, "object"),
        ("POST", "/v1/enqueue", b"{", 415, "application/json"),
        ("PATCH", "/v1/rollouts/r", {"rollout_id": "s"}, 422, "rollout_id"),
        ("DELETE", "/v1/rollouts", None, 405, "Method Not Allowed"),
        ("GET", "/v1/batch", None, 405, "Method Not Allowed"),
        ("GET", "/v2/rollouts", None, 404, "Not Found"),
        ("POST", "/v1/batch", {"operations": [["x"]]}, 422, "operations"),
        ("POST", "/v1/batch", {"operations": [], "number": 1, "client": "x"}, 422, "client"),
    ],
)
def test_what_is_wrong_is_refused_and_named(server, method, path, body, status, said):
    """Trap 31: an argument that is not understood is not ignored."""
    answer = ask(server, method, path, body)
    assert (answer.status, said in answer.message) == (status, True), answer.body


def test_a_body_that_is_not_what_it_says_is_refused(server):
    as_json = {"content_type": "application/json"}
    for body in (b"{", b'{"limit": NaN}', b"\xff"):
        assert ask(server, "POST", "/v1/dequeue", body, **as_json).status == 400, body
    for body in (b'{"rollouts": [{"input": 1e999}]}', b'{"rollouts": [{"input": Infinity}]}'):
        assert ask(server, "POST", "/v1/enqueue", body, **as_json).status in (400, 422), body
    for body in (b"\xc1", b"\x81\x01\x02", b"\xc4\x01x", b"\x90\x90", b"\x91"):
        answer = ask(server, "POST", "/v1/batch", body, content_type="application/msgpack")
        assert answer.status in (400, 422), body
    zipped = {"content_encoding": "gzip", **as_json}
    assert ask(server, "POST", "/v1/dequeue", b"no gzip", **zipped).status == 400
    assert ask(server, "POST", "/v1/dequeue", gzip.compress(b"{}")[:-4], **zipped).status == 400
    assert ask(server, "POST", "/v1/dequeue", b"{}", content_encoding="br", **as_json).status == 415


def test_a_body_or_batch_beyond_the_limit_is_refused(store):
    """413 says what the limit is, and how to raise it; whether the length is announced, chunked, or compressed."""
    with LightningStoreServer(store, max_body_bytes=1000, max_batch=5) as server:
        as_json = {"content_type": "application/json"}
        long = json.dumps({"rollouts": [{"input": "x" * 2000}]}).encode()
        answers = [
            ask(server, "POST", "/v1/enqueue", long, **as_json),
            ask(server, "POST", "/v1/batch", long, **as_json),
            ask(server, "POST", "/v1/enqueue", gzip.compress(long), content_encoding="gzip", **as_json),
        ]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request(
            "POST",
            "/v1/enqueue",
            iter([long[:800], long[800:]]),
            {"authorization": f"Bearer {server.token}", "content-type": "application/json"},
            encode_chunked=True,
        )
        answers.append(Answer(connection.getresponse()))
        connection.close()
        for answer in answers:
            assert answer.status == 413
            assert "1000 bytes" in answer.message
            assert "max_body_bytes" in answer.message
        for path, body in [
            ("/v1/enqueue", {"rollouts": [{"input": n} for n in range(6)]}),
            ("/v1/batch", {"operations": [["statistics", {}]] * 6}),
        ]:
            answer = ask(server, "POST", path, body)
            assert answer.status == 413
            assert "takes 5" in answer.message
            assert "max_batch" in answer.message
        assert ask(server, "POST", "/v1/enqueue", {"rollouts": [{"input": 1}] * 5}).status == 200
        assert asyncio.run(store.statistics()).rollouts == {"queuing": 5}


async def test_a_client_is_told_of_the_limits_too(store):
    with LightningStoreServer(store, max_body_bytes=5000, max_batch=5) as server:
        client = LightningStoreClient(server.url, token=server.token)
        with pytest.raises(ConfigurationError, match="max_batch"):
            await client.enqueue_rollouts([EnqueueRequest(input=n) for n in range(6)])
        with pytest.raises(ConfigurationError, match="max_body_bytes"):
            await client.enqueue_rollout("x" * 10_000)
        # One that is too large harms none that travels along.
        sizes = [10, 10, 10_000, 10, 10]
        results = await asyncio.gather(
            *(client.enqueue_rollout("x" * size) for size in sizes), return_exceptions=True
        )
        assert [isinstance(result, ConfigurationError) for result in results] == [size > 10 for size in sizes]
        # Calls that only together are too much go one by one.
        await asyncio.gather(*(client.enqueue_rollout("x" * 1000) for _ in range(12)))
        assert (await client.statistics()).rollouts == {"queuing": 4 + 12}
        await client.close()


def test_answers_are_compressed_for_those_who_want_it(server):
    body = {"rollouts": [{"input": "x" * 100}] * 50}
    packed = gzip.compress(json.dumps(body).encode())
    for path in ("/v1/enqueue", "/v1/batch"):
        sent = packed
        if path == "/v1/batch":
            sent = gzip.compress(json.dumps({"operations": [["enqueue_rollouts", body]]}).encode())
        headers = {"content_type": "application/json", "content_encoding": "gzip"}
        plain = ask(server, "POST", path, sent, **headers)
        zipped = ask(server, "POST", path, sent, accept_encoding="gzip", **headers)
        assert (plain.status, zipped.status) == (200, 200)
        assert "content-encoding" not in plain.headers
        assert zipped.headers["content-encoding"] == "gzip"
        assert len(zipped.body) < len(plain.body) / 5
        assert len(gzip.decompress(zipped.body)) > len(plain.body) * 0.9


async def test_a_client_reads_compressed_answers(server):
    client = LightningStoreClient(server.url, token=server.token, compress=True)
    await client.enqueue_rollouts([EnqueueRequest(input="x" * 100) for _ in range(100)])
    assert len(await client.query_rollouts()) == 100
    await client.close()


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "[]",
        "{}",
        '{"attributes":[],"status":{"status_code":"OK","description":null},"start_time":1,"end_time":2,'
        '"resource":{"attributes":{},"schema_url":""}}',
        '{"attributes":{},"status":{"status_code":"OK","description":null},"start_time":"1","end_time":2,'
        '"resource":{"attributes":{},"schema_url":""}}',
        '{"attributes":{},"status":{"status_code":"OK","description":null},"start_time":1,"end_time":2,'
        '"resource":{"attributes":{},"schema_url":""},"events":[{"name":1}]}',
    ],
)
def test_an_encoded_span_that_could_not_be_read_is_refused(server, store, body):
    """It would break every reader of its rollout."""
    rollout = asyncio.run(store.start_rollout(1))
    span = [rollout.rollout_id, rollout.attempt.attempt_id, 0, "1" * 16, "2" * 32, "name", body]
    answer = ask(server, "POST", "/v1/batch", {"operations": [["add_encoded_spans", {"spans": [span]}]]})
    [[good, error]] = answer.json
    assert not good
    assert error["type"] == "ConfigurationError"
    assert "1" * 16 in error["message"]
    assert asyncio.run(store.query_spans(rollout.rollout_id)) == []


# The end


async def test_stopping_answers_those_who_wait_and_finishes_what_runs(store, monkeypatch):
    server = LightningStoreServer(store, token="one-token")
    server.start()
    entered, go_on = threading.Event(), threading.Event()
    enqueue = store.enqueue_rollouts

    async def slowly(requests):
        entered.set()
        await asyncio.to_thread(go_on.wait)
        return await enqueue(requests)

    monkeypatch.setattr(store, "enqueue_rollouts", slowly)
    client = LightningStoreClient(server.url, token="one-token", retry_seconds=0.3)
    waiting = asyncio.create_task(client.dequeue_rollouts(wait=60))
    writing = asyncio.create_task(client.enqueue_rollout(1))
    await asyncio.to_thread(entered.wait)
    begun = time.monotonic()
    stopping = asyncio.create_task(asyncio.to_thread(server.stop))
    with pytest.raises(StoreUnavailableError):
        # Told at once that nothing came, it asks again, and finds nobody.
        await waiting
    assert time.monotonic() - begun < 10
    go_on.set()
    assert (await writing).input == 1
    await stopping
    assert not server.running
    assert (await store.statistics()).rollouts == {"queuing": 1}
    await client.close()


async def test_the_end_of_a_run_is_told_to_those_who_wait(server, until):
    client = LightningStoreClient(server.url, token=server.token)
    assert not client.run_over
    waiting = asyncio.create_task(client.dequeue_rollouts(wait=PATIENCE))
    ending = asyncio.create_task(
        client.wait_for_rollouts(rollout_ids=[(await client.enqueue_rollout(1, run_id="x")).rollout_id])
    )
    assert len(await waiting) == 1
    waiting = asyncio.create_task(client.dequeue_rollouts(wait=PATIENCE))
    await until(lambda: len(server._app.service.waits) == 2)
    begun = time.monotonic()
    server.announce_end()
    assert await waiting == []
    assert client.run_over
    # Also one who has not heard of it; and who waits for an end goes on.
    late = LightningStoreClient(server.url, token=server.token)
    assert await late.dequeue_rollouts(wait=PATIENCE) == []
    assert late.run_over
    assert time.monotonic() - begun < PATIENCE / 2
    assert not ending.done()
    [rollout] = await client.query_rollouts()
    await client.update_rollout(rollout.rollout_id, status="cancelled")
    assert len(await ending) == 1
    for one in (client, late):
        await one.close()


def test_a_server_can_be_started_again(store):
    server = LightningStoreServer(store)
    for _ in range(2):
        server.start()
        with pytest.raises(ExecutionError, match="started already"):
            server.start()
        assert ask(server, "GET", "/v1/health").status == 200
        server.stop()
        server.stop()
        with pytest.raises(OSError, match="refused"):
            ask(server, "GET", "/v1/health")
