"""The client: both of its halves, its cache, its patience, and what it says of a server that is none."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from lightning_legacy import AgentLightningClient, AgentLightningServer, LegacyServerError

from lightning_core.bridge import bridge_loop
from lightning_core.errors import ConfigurationError, UnserializableValueError
from lightning_core.types import LLM, ResourcesUpdate, Rollout, Task, Triplet

from .conftest import FakeServer, reply, until

Ask = Callable[..., Awaitable[Any]]
NO_TASK = '{"is_available": false, "task": null}'
TASK = '{"is_available": true, "task": {"rollout_id": "ro-1", "input": 1}}'


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method of a client, in one of its two forms."""

    async def ask(client: AgentLightningClient, name: str, *arguments: Any) -> Any:
        if request.param == "async":
            return await getattr(client, f"{name}_async")(*arguments)
        return await asyncio.to_thread(getattr(client, name), *arguments)

    return ask


def resources(model: str) -> dict[str, Any]:
    return {"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model=model)}


# Both halves


async def test_a_task_goes_through_from_end_to_end(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    resources_id = await server.update_resources(resources("small"))
    rollout_id = await server.queue_task({"q": 1}, "val", resources_id, {"n": 1})
    task = await ask(client, "poll_next_task")
    assert isinstance(task, Task)
    assert (task.rollout_id, task.input, task.mode, task.metadata) == (rollout_id, {"q": 1}, "val", {"n": 1})
    update = await ask(client, "get_resources_by_id", task.resources_id)
    assert isinstance(update, ResourcesUpdate)
    assert (update.resources_id, update.resources) == (resources_id, resources("small"))
    assert await ask(client, "get_latest_resources") == update
    rollout = Rollout(
        rollout_id=rollout_id,
        task=task,
        final_reward=0.5,
        triplets=[Triplet(prompt={"token_ids": [1]}, response={"token_ids": [2]}, reward=0.5)],
        trace=[{"name": "openai.chat.completion"}],
        logs=["done"],
        metadata={"epoch": 1},
    )
    answer = await ask(client, "post_rollout", rollout)
    assert (answer["status"], answer["data"]) == ("success", {"counted": True})
    assert await server.retrieve_completed_rollouts() == [rollout]


def test_both_halves_have_the_same_methods_and_parameters():
    for name in ("poll_next_task", "get_resources_by_id", "get_latest_resources", "post_rollout"):
        sync, twin = (getattr(AgentLightningClient, each) for each in (name, f"{name}_async"))
        assert inspect.signature(sync).parameters == inspect.signature(twin).parameters
        assert inspect.iscoroutinefunction(twin)


async def test_what_does_not_exist_is_none(client: AgentLightningClient, ask: Ask):
    assert await ask(client, "get_latest_resources") is None
    assert await ask(client, "get_resources_by_id", "rs/else?&") is None


async def test_an_id_of_any_letters_is_found(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    name = "step 1/2?é#"
    await server.store.update_resources(ResourcesUpdate(resources_id=name, resources=resources("small")))
    update = await ask(client, "get_resources_by_id", name)
    assert update.resources_id == name


async def test_a_report_that_is_not_taken_is_logged_and_answered(
    client: AgentLightningClient, ask: Ask, caplog: pytest.LogCaptureFixture
):
    answer = await ask(client, "post_rollout", Rollout(rollout_id="ro-else"))
    assert answer["status"] == "error"
    assert "knows no task 'ro-else'" in answer["message"]
    assert "did not take the report on rollout ro-else" in caplog.text


async def test_a_report_that_json_cannot_hold_is_an_error(client: AgentLightningClient, ask: Ask):
    with pytest.raises(UnserializableValueError, match=r"a Rollout cannot be sent.*object"):
        await ask(client, "post_rollout", Rollout(rollout_id="ro", metadata={"x": object()}))


def test_the_sync_half_works_without_an_event_loop_and_the_async_half_on_any(durable: str):
    server = AgentLightningServer(port=0, store=durable)
    asyncio.run(server.start())
    client = AgentLightningClient(server.endpoint)
    for number in range(3):
        asyncio.run(server.queue_task(number))
        task = client.poll_next_task() if number else asyncio.run(client.poll_next_task_async())
        assert task is not None
        asyncio.run(client.post_rollout_async(Rollout(rollout_id=task.rollout_id)))
    assert len(asyncio.run(server.retrieve_completed_rollouts())) == 3
    asyncio.run(server.close())


async def test_both_halves_can_be_used_on_the_bridge_itself(
    server: AgentLightningServer, client: AgentLightningClient
):
    await server.update_resources(resources("small"))

    async def work() -> ResourcesUpdate | None:
        with pytest.raises(RuntimeError, match="use its async twin"):
            client.get_latest_resources()
        return await client.get_latest_resources_async()

    running = asyncio.run_coroutine_threadsafe(work(), bridge_loop())
    assert await asyncio.wrap_future(running) is not None


# Waiting for a task


async def test_it_waits_until_there_is_a_task(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    waiting = asyncio.create_task(ask(client, "poll_next_task"))
    await until(lambda: client._sleepers)
    rollout_id = await server.queue_task(1)
    assert (await waiting).rollout_id == rollout_id


async def test_it_asks_at_most_once_per_interval(fake: FakeServer, ask: Ask):
    fake.answer = lambda request: reply(NO_TASK)
    client = AgentLightningClient(fake.endpoint, poll_interval=3600)
    waiting = asyncio.create_task(ask(client, "poll_next_task"))
    await until(lambda: fake.requests)
    await asyncio.sleep(0.2)
    client.close()
    assert await waiting is None
    assert fake.lines == ["GET /task HTTP/1.1"]


async def test_a_closed_client_takes_no_task(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    await server.queue_task(1)
    client.close()
    assert await ask(client, "poll_next_task") is None
    assert server.store.get_processing_tasks() == {}


async def test_whoever_is_cancelled_takes_no_task(server: AgentLightningServer, client: AgentLightningClient):
    waiting = asyncio.create_task(client.poll_next_task_async())
    await until(lambda: client._sleepers)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not client._sleepers)
    await server.queue_task(1)
    await asyncio.sleep(0.05)
    assert server.store.get_processing_tasks() == {}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of POSIX")
async def test_ctrl_c_ends_the_wait_and_takes_no_task(server: AgentLightningServer):
    client = AgentLightningClient(server.endpoint, poll_interval=0.001)
    main = threading.get_ident()
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.poll_next_task()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    await until(lambda: not client._sleepers)
    await server.queue_task(1)
    await asyncio.sleep(0.05)
    assert server.store.get_processing_tasks() == {}


async def test_a_task_whose_answer_is_lost_is_the_one_that_is_got(
    server: AgentLightningServer, fake: FakeServer, ask: Ask
):
    """The fake server stands between the two, and drops every second answer."""
    rollout_ids = [await server.queue_task(number) for number in range(3)]

    async def pass_on(request: bytes) -> bytes | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        answer = await reader.read()
        writer.close()
        return answer if len(fake.requests) % 2 == 0 else None

    fake.answer = pass_on
    client = AgentLightningClient(fake.endpoint)
    for rollout_id in rollout_ids:
        task = await ask(client, "poll_next_task")
        assert (task.rollout_id, task.num_claims) == (rollout_id, 1)
        answer = await ask(client, "post_rollout", Rollout(rollout_id=rollout_id, final_reward=1.0))
        # Its first copy was the one that counted.
        assert answer["data"] == {"counted": False}
    assert [result.final_reward for result in await server.retrieve_completed_rollouts()] == [1.0] * 3


# The cache


async def test_resources_are_asked_for_once_by_id(fake: FakeServer, ask: Ask):
    body = ResourcesUpdate(resources_id="rs-1", resources=resources("small")).model_dump_json()
    fake.answer = lambda request: reply(body)
    client = AgentLightningClient(fake.endpoint)
    for _ in range(3):
        assert (await ask(client, "get_resources_by_id", "rs-1")).resources == resources("small")
    assert fake.lines == ["GET /resources/rs-1 HTTP/1.1"]
    for _ in range(2):
        await ask(client, "get_latest_resources")
    assert fake.lines[1:] == ["GET /resources/latest HTTP/1.1"] * 2


async def test_the_latest_need_not_be_asked_for_by_id_again(fake: FakeServer, ask: Ask):
    body = ResourcesUpdate(resources_id="rs-1", resources=resources("small")).model_dump_json()
    fake.answer = lambda request: reply(body)
    client = AgentLightningClient(fake.endpoint)
    latest = await ask(client, "get_latest_resources")
    assert await ask(client, "get_resources_by_id", "rs-1") == latest
    assert len(fake.requests) == 1


async def test_what_an_agent_does_to_its_resources_stays_with_it(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    resources_id = await server.update_resources(resources("small"))
    for _ in range(3):
        update = await ask(client, "get_resources_by_id", resources_id)
        assert update.resources["main_llm"].model == "small"
        update.resources["main_llm"].model = "changed"


async def test_the_cache_is_bounded_and_forgets_what_is_not_asked_for(fake: FakeServer, ask: Ask):
    def answer(request: bytes) -> bytes:
        name = request.split()[1].decode().rpartition("/")[2]
        return reply(ResourcesUpdate(resources_id=name, resources={}).model_dump_json())

    fake.answer = answer
    client = AgentLightningClient(fake.endpoint, cache_size=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        await ask(client, "get_resources_by_id", name)
    assert [line.split()[1] for line in fake.lines] == [
        "/resources/a",
        "/resources/b",
        "/resources/c",
        "/resources/b",
    ]
    assert len(client._cache) == 2


async def test_unknown_resources_are_asked_for_again(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    assert await ask(client, "get_resources_by_id", "rs-1") is None
    await server.store.update_resources(ResourcesUpdate(resources_id="rs-1", resources={}))
    assert (await ask(client, "get_resources_by_id", "rs-1")).resources_id == "rs-1"


# Patience


async def test_a_server_that_is_started_later_is_waited_for_and_logged_once(
    fake: FakeServer, ask: Ask, caplog: pytest.LogCaptureFixture
):
    await fake.stop()
    fake.answer = lambda request: reply(TASK)
    client = AgentLightningClient(fake.endpoint)
    waiting = asyncio.create_task(ask(client, "poll_next_task"))
    await until(lambda: caplog.records)
    await asyncio.sleep(0.5)
    await fake.start()
    assert (await waiting).rollout_id == "ro-1"
    messages = [record.getMessage() for record in caplog.records if record.name == "lightning_legacy.client"]
    assert len(messages) == 2
    assert messages[0].startswith(f"no answer by the server at {fake.endpoint}, trying again")
    assert messages[1] == f"the server at {fake.endpoint} answers again"


@pytest.mark.parametrize(
    "status", ["500 Internal Server Error", "502 Bad Gateway", "503 Busy", "429 Slow down"]
)
async def test_an_answer_that_is_worth_another_try_gets_one(fake: FakeServer, ask: Ask, status: str):
    fake.answer = lambda request: (
        reply("<html>gateway</html>", status, "text/html") if len(fake.requests) < 3 else reply(TASK)
    )
    client = AgentLightningClient(fake.endpoint)
    assert (await ask(client, "poll_next_task")).rollout_id == "ro-1"
    assert len(fake.requests) == 3


async def test_an_answer_that_does_not_come_in_time_is_asked_for_again(fake: FakeServer, ask: Ask):
    async def answer(request: bytes) -> bytes:
        if len(fake.requests) == 1:
            await asyncio.Event().wait()
        return reply(TASK)

    fake.answer = answer
    client = AgentLightningClient(fake.endpoint, timeout=0.1)
    waiting = asyncio.create_task(ask(client, "poll_next_task"))
    await until(lambda: len(fake.requests) > 1)
    assert (await waiting).rollout_id == "ro-1"


async def test_a_report_that_cannot_be_delivered_is_logged_and_none(
    fake: FakeServer, ask: Ask, caplog: pytest.LogCaptureFixture
):
    await fake.stop()
    client = AgentLightningClient(fake.endpoint, retry_seconds=0.3)
    assert await ask(client, "post_rollout", Rollout(rollout_id="ro-1")) is None
    assert "rollout ro-1 could not be reported" in caplog.text
    assert "0.3 s" in caplog.text


async def test_a_report_is_delivered_to_a_server_that_comes_back(fake: FakeServer, ask: Ask):
    await fake.stop()
    fake.answer = lambda request: reply('{"status": "success"}')
    client = AgentLightningClient(fake.endpoint)
    posting = asyncio.create_task(ask(client, "post_rollout", Rollout(rollout_id="ro-1")))
    await until(lambda: client._away)
    await fake.start()
    assert await posting == {"status": "success"}
    assert len(fake.requests) == 1


async def test_resources_that_cannot_be_had_are_an_error_and_not_none(fake: FakeServer, ask: Ask):
    await fake.stop()
    client = AgentLightningClient(fake.endpoint, retry_seconds=0)
    for name, arguments in (("get_latest_resources", ()), ("get_resources_by_id", ("rs-1",))):
        with pytest.raises(
            LegacyServerError, match=f"server at {fake.endpoint} could not be reached for 0 s"
        ):
            await ask(client, name, *arguments)


async def test_closing_ends_the_wait_for_a_server(fake: FakeServer, ask: Ask):
    await fake.stop()
    client = AgentLightningClient(fake.endpoint)
    waiting = asyncio.create_task(ask(client, "poll_next_task"))
    await until(lambda: client._away)
    client.close()
    assert await waiting is None


# What can never work


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("localhost:8000", "did you mean 'http://localhost:8000'"),
        ("127.0.0.1:8000", "did you mean 'http://127.0.0.1:8000'"),
        ("ftp://host:8000/", "has the scheme 'ftp'; did you mean 'http://host:8000/'"),
        ("sqlite:///runs.db", "has the scheme 'sqlite'"),
        ("http://", "is not the root URL of a server"),
        ("http://host:80000", "is no URL"),
        ("http://host:0", "is not the root URL"),
        ("http://[::1", "is no URL"),
        ("http://host:8000/?a=b", "is not the root URL"),
        ("http://host:8000/#a", "is not the root URL"),
        ("", "has no scheme"),
        (8000, "not a int"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_at_once(endpoint: Any, message: str):
    with pytest.raises(ConfigurationError) as caught:
        AgentLightningClient(endpoint)
    assert message in str(caught.value)


def test_credentials_in_the_endpoint_are_refused_and_not_shown():
    with pytest.raises(ConfigurationError, match="give the server's token as token") as caught:
        AgentLightningClient("http://user:swordfish@host:8000")
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"poll_interval": -1}, {"timeout": 0}, {"retry_seconds": -1}, {"cache_size": 0}], ids=str
)
def test_numbers_out_of_range_are_named(settings: dict[str, Any]):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        AgentLightningClient("http://127.0.0.1:8000", **settings)


def test_a_slash_at_the_end_and_a_path_are_fine():
    assert AgentLightningClient("https://host/agents/").endpoint == "https://host/agents"


GARBAGE = [
    (
        "a web page",
        reply("<html><body>It works!</body></html>", content_type="text/html"),
        "a web page: <html>",
    ),
    ("no JSON", reply("hello"), "this: hello"),
    ("nothing", reply(""), "an empty body"),
    ("another object", reply('{"tasks": []}'), r"is_available: Field required"),
    ("a list", reply("[1, 2]"), r"\[1, 2\]"),
    (
        "a task that is none",
        reply('{"is_available": true, "task": {"id": 1}}'),
        "task.rollout_id: Field required",
    ),
    ("another API", reply('{"detail": "Not Found"}', "404 Not Found"), "with status 404: Not Found"),
    (
        "a page that is not there",
        reply("<html>", "404 Not Found", "text/html"),
        "with status 404 and a web page",
    ),
    ("a method that is not allowed", reply("{}", "405 Method Not Allowed"), "with status 405"),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.9\r\n", "does not speak HTTP"),
    (
        "a redirection",
        reply("", "301 Moved", more="location: https://host/\r\n"),
        "leads on to https://host/",
    ),
]


@pytest.mark.parametrize(
    ("answer", "message"), [entry[1:] for entry in GARBAGE], ids=[entry[0] for entry in GARBAGE]
)
async def test_a_server_that_answers_garbage_is_an_error_and_not_asked_again(
    fake: FakeServer, ask: Ask, answer: bytes, message: str
):
    fake.answer = lambda request: answer
    client = AgentLightningClient(fake.endpoint)
    with pytest.raises(LegacyServerError, match=message) as caught:
        await ask(client, "poll_next_task")
    assert fake.endpoint in str(caught.value)
    assert len(fake.requests) == 1
    assert isinstance(caught.value, ConnectionError)


async def test_garbage_for_resources_and_reports_is_an_error_too(fake: FakeServer, ask: Ask):
    fake.answer = lambda request: reply('{"resources": 1}' if request.startswith(b"GET") else "[]")
    client = AgentLightningClient(fake.endpoint)
    with pytest.raises(LegacyServerError, match=r"GET /resources/latest .*resources_id: Field required"):
        await ask(client, "get_latest_resources")
    with pytest.raises(LegacyServerError, match="POST /rollout"):
        await ask(client, "post_rollout", Rollout(rollout_id="ro-1"))


async def test_a_host_that_does_not_exist_is_named_at_once(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    client = AgentLightningClient("http://no-such-host.invalid:8000")
    with pytest.raises(
        LegacyServerError, match=r"no host of the name in the endpoint http://no-such-host\.invalid:8000"
    ):
        await ask(client, "poll_next_task")


async def test_a_name_service_that_is_away_is_waited_for(
    ask: Ask, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
):
    fake.answer = lambda request: reply(TASK)
    known, tries = socket.getaddrinfo, 0

    def resolve(host: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal tries
        if host != "briefly-away.invalid":
            return known(host, *arguments, **more)
        tries += 1
        if tries < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return known("127.0.0.1", *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    client = AgentLightningClient(f"http://briefly-away.invalid:{fake.port}")
    assert (await ask(client, "poll_next_task")).rollout_id == "ro-1"


async def test_a_server_that_speaks_no_tls_is_named(server: AgentLightningServer, ask: Ask):
    client = AgentLightningClient(f"https://127.0.0.1:{server.port}")
    with pytest.raises(
        LegacyServerError, match=f"no encrypted connection to https://127.0.0.1:{server.port}"
    ):
        await ask(client, "poll_next_task")


# The token


async def test_the_token_is_shown_to_the_server(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    server = AgentLightningServer(port=0, token="the right one")
    await server.start()
    await server.update_resources(resources("small"))
    given = AgentLightningClient(server.endpoint, token="the right one")
    assert await ask(given, "get_latest_resources") is not None
    for token, message in ((None, "wants a token"), ("the wrong one", "does not accept the token")):
        client = AgentLightningClient(server.endpoint, token=token)
        with pytest.raises(
            LegacyServerError, match=f"{message}: give it as token=… or in the variable LIGHTNING_CORE"
        ):
            await ask(client, "poll_next_task")
    monkeypatch.setenv("LIGHTNING_CORE_LEGACY_TOKEN", "the right one")
    assert await ask(AgentLightningClient(server.endpoint), "get_latest_resources") is not None
    await server.close()


def test_a_token_that_no_header_can_carry_is_refused():
    with pytest.raises(ConfigurationError, match="a token has at least 8 characters"):
        AgentLightningClient("http://127.0.0.1:8000", token="ends with a line\n")


# Other processes


async def test_it_can_be_pickled_while_it_waits(
    server: AgentLightningServer, client: AgentLightningClient, ask: Ask
):
    await server.update_resources(resources("small"))
    waiting = asyncio.create_task(client.poll_next_task_async())
    await until(lambda: client._sleepers)
    copy = pickle.loads(pickle.dumps(client))
    assert copy.endpoint == client.endpoint
    assert copy.poll_interval == 0.01
    assert await ask(copy, "get_latest_resources") is not None
    client.close()
    assert await waiting is None
