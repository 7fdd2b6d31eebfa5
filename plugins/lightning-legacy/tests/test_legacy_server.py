"""The server: its protocol, its errors, who may come, and how it starts and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from lightning_legacy import AgentLightningServer, LegacyServerError, ServerDataStore

from lightning_core import InMemoryLightningStore
from lightning_core.errors import ConfigurationError, StoreUnavailableError, UnknownRolloutError
from lightning_core.types import LLM, Rollout, RolloutV2

from .conftest import until

RESOURCES = {"main_llm": LLM(endpoint="http://127.0.0.1:1/v1", model="small", api_key="secret-key")}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def get(http: aiohttp.ClientSession, url: str, **more: Any) -> tuple[int, Any]:
    async with http.get(url, **more) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def post(
    http: aiohttp.ClientSession, server: AgentLightningServer, body: Any, **more: Any
) -> tuple[int, Any]:
    given = {"json": body} if not isinstance(body, bytes) else {"data": body}
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{server.endpoint}/rollout", **given, **{"headers": headers, **more}) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


# The protocol


async def test_tasks_are_handed_out_in_the_form_of_v0_1(
    server: AgentLightningServer, http: aiohttp.ClientSession
):
    url = f"{server.endpoint}/task"
    assert await get(http, url) == (200, {"is_available": False, "task": None})
    rollout_id = await server.queue_task({"q": "1+1?"}, "train", "rs-1", {"n": 1})
    status, answer = await get(http, url)
    assert (status, answer["is_available"]) == (200, True)
    task = answer["task"]
    assert (task["rollout_id"], task["input"], task["mode"]) == (rollout_id, {"q": "1+1?"}, "train")
    assert (task["resources_id"], task["num_claims"], task["metadata"]) == ("rs-1", 1, {"n": 1})
    assert await get(http, url) == (200, {"is_available": False, "task": None})


async def test_resources_are_given_out_by_id_and_as_the_latest(
    server: AgentLightningServer, http: aiohttp.ClientSession
):
    status, answer = await get(http, f"{server.endpoint}/resources/latest")
    assert (status, answer["status"]) == (404, "error")
    assert "update_resources" in answer["message"]
    resources_id = await server.update_resources(RESOURCES)
    for name in ("latest", resources_id):
        status, answer = await get(http, f"{server.endpoint}/resources/{name}")
        assert (status, answer["resources_id"]) == (200, resources_id)
        assert answer["resources"]["main_llm"]["api_key"] == "secret-key"
    status, answer = await get(http, f"{server.endpoint}/resources/rs-else")
    assert (status, answer["message"]) == (404, "this server has no resources 'rs-else'")


async def test_a_report_is_answered_with_whether_it_counts(
    server: AgentLightningServer, http: aiohttp.ClientSession
):
    rollout_id = await server.queue_task(1)
    await get(http, f"{server.endpoint}/task")
    status, answer = await post(http, server, {"rollout_id": rollout_id, "final_reward": 0.5})
    assert (status, answer["status"], answer["data"]) == (200, "success", {"counted": True})
    status, answer = await post(http, server, {"rollout_id": rollout_id, "final_reward": 0.7})
    assert (status, answer["status"], answer["data"]) == (200, "success", {"counted": False})
    assert "was reported before" in answer["message"]
    result = await server.get_completed_rollout(rollout_id)
    assert result == Rollout(rollout_id=rollout_id, final_reward=0.5)
    assert await server.get_completed_rollout(rollout_id) is None


async def test_a_report_that_comes_too_late_is_told_so(http: aiohttp.ClientSession):
    server = AgentLightningServer(port=0, task_timeout_seconds=0.05, max_requeues=0)
    await server.start()
    rollout_id = await server.queue_task(1)
    await get(http, f"{server.endpoint}/task")
    result = await server.poll_completed_rollout(rollout_id, timeout=60)
    assert result is not None
    assert result.metadata["status"] == "abandoned"
    status, answer = await post(http, server, {"rollout_id": rollout_id, "final_reward": 1.0})
    assert (status, answer["data"]) == (200, {"counted": False})
    assert "too late" in answer["message"]
    await server.close()


async def test_a_client_that_asks_again_gets_the_same_task_and_no_other(
    server: AgentLightningServer, http: aiohttp.ClientSession
):
    first, second = await server.queue_task(1), await server.queue_task(2)
    url, headers = f"{server.endpoint}/task", {"Lightning-Client": "host-1", "Lightning-Request": "r1"}
    for _ in range(2):
        _, answer = await get(http, url, headers=headers)
        assert (answer["task"]["rollout_id"], answer["task"]["num_claims"]) == (first, 1)
    _, answer = await get(http, url, headers={**headers, "Lightning-Request": "r2"})
    assert answer["task"]["rollout_id"] == second


async def test_a_head_request_takes_no_task(server: AgentLightningServer, http: aiohttp.ClientSession):
    await server.queue_task(1)
    async with http.head(f"{server.endpoint}/task") as response:
        assert response.status == 405
    assert server.store.get_processing_tasks() == {}


# Errors


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        ([], 422, "no rollout"),
        ({"final_reward": 1.0}, 422, "rollout_id: Field required"),
        ({"rollout_id": "x", "final_reward": "high"}, 422, "final_reward: Input should be a valid number"),
        ({"rollout_id": "x", "triplets": [{"prompt": 1}]}, 422, "triplets.0.response: Field required"),
        (b'{"rollout_id": "x", "final_reward": NaN}', 422, "a reward is a finite number"),
        ({"rollout_id": "ro-else"}, 404, "knows no task 'ro-else'"),
    ],
)
async def test_a_report_that_is_none_is_refused_with_a_reason(
    server: AgentLightningServer, http: aiohttp.ClientSession, body: Any, status: int, message: str
):
    found, answer = await post(http, server, body)
    assert (found, answer["status"]) == (status, "error")
    assert message in answer["message"]


async def test_a_web_page_cannot_send_a_report(server: AgentLightningServer, http: aiohttp.ClientSession):
    rollout_id = await server.queue_task(1)
    body = json.dumps({"rollout_id": rollout_id}).encode()
    status, answer = await post(http, server, body, headers={"Content-Type": "text/plain"})
    assert (status, answer["status"]) == (415, "error")
    assert await server.get_completed_rollout(rollout_id) is None


async def test_a_body_that_is_too_large_is_refused(http: aiohttp.ClientSession):
    server = AgentLightningServer(port=0, max_body_bytes=1000)
    await server.start()
    status, answer = await post(http, server, {"rollout_id": "x", "logs": ["x" * 1000]})
    assert status == 413
    assert "larger than 1000 bytes" in answer["message"]
    await server.close()


async def test_other_paths_are_told_what_the_server_answers(
    server: AgentLightningServer, http: aiohttp.ClientSession
):
    for path in ("/", "/v1/batch", "/tasks"):
        status, answer = await get(http, f"{server.endpoint}{path}")
        assert status == 404
        assert "GET /task" in answer["message"]
    status, answer = await get(http, f"{server.endpoint}/rollout")
    assert (status, answer["status"]) == (405, "error")


async def test_a_header_that_is_none_is_refused(server: AgentLightningServer, http: aiohttp.ClientSession):
    for value in ("x" * 65, "a b", "a/b"):
        status, answer = await get(http, f"{server.endpoint}/task", headers={"Lightning-Client": value})
        assert status == 400
        assert "Lightning-Client" in answer["message"]


class Broken(InMemoryLightningStore):
    error: Exception | None = None

    async def get_latest_resources(self) -> Any:
        if self.error is not None:
            raise self.error
        return await super().get_latest_resources()


async def test_an_error_of_the_server_is_logged_and_not_shown(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
):
    store = Broken()
    server = AgentLightningServer(port=0, store=store)
    await server.start()
    store.error = ZeroDivisionError("private details")
    status, answer = await get(http, f"{server.endpoint}/resources/latest")
    assert (status, answer["status"]) == (500, "error")
    assert "private" not in json.dumps(answer)
    assert "private details" in caplog.text
    store.error = StoreUnavailableError("the disk is full")
    status, answer = await get(http, f"{server.endpoint}/resources/latest")
    assert status == 503
    assert "the disk is full" in caplog.text
    await server.close()


# Who may come


def test_other_interfaces_need_a_token(monkeypatch: pytest.MonkeyPatch):
    for host in ("0.0.0.0", "", "192.0.2.1", "::"):
        with pytest.raises(ConfigurationError, match="give it a token"):
            AgentLightningServer(host)
    AgentLightningServer("0.0.0.0", token="long enough")
    monkeypatch.setenv("LIGHTNING_CORE_LEGACY_TOKEN", "long enough")
    AgentLightningServer("0.0.0.0")


@pytest.mark.parametrize("token", ["short", "not\nprintable", "täglich ein Apfel"])
def test_a_token_that_is_none_is_refused(token: str):
    with pytest.raises(ConfigurationError, match="a token has at least 8 characters") as caught:
        AgentLightningServer(token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"port": -1}, {"port": 65536}, {"max_body_bytes": 0}], ids=str)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]):
    with pytest.raises(ConfigurationError):
        AgentLightningServer(**arguments)  # pyright: ignore[reportArgumentType]


async def test_without_the_token_nothing_is_said_and_nothing_done(http: aiohttp.ClientSession):
    server = AgentLightningServer(port=0, token="the right one")
    await server.start()
    rollout_id = await server.queue_task(1)
    for headers in ({}, {"Authorization": "Bearer the wrong one"}, {"Authorization": "Basic the right one"}):
        for path in ("/task", "/resources/latest", "/else"):
            status, answer = await get(http, f"{server.endpoint}{path}", headers=headers)
            assert (status, answer["status"]) == (401, "error")
        more = {"Content-Type": "application/json", **headers}
        status, _ = await post(http, server, {"rollout_id": rollout_id}, headers=more)
        assert status == 401
    assert server.store.get_processing_tasks() == {}
    headers = {"Authorization": "bearer the right one"}
    _, answer = await get(http, f"{server.endpoint}/task", headers=headers)
    assert answer["task"]["rollout_id"] == rollout_id
    await server.close()


# Its life


async def test_it_starts_again_on_the_same_port_with_everything_it_had(http: aiohttp.ClientSession):
    server = AgentLightningServer(port=0)
    await server.start()
    port = server.port
    rollout_id = await server.queue_task(1)
    for _ in range(3):
        await get(http, f"{server.endpoint}/resources/latest")
        await server.stop()
        assert not server.running
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(http, f"{server.endpoint}/task")
        await server.start()
        assert (server.running, server.port) == (True, port)
    _, answer = await get(http, f"{server.endpoint}/task")
    assert answer["task"]["rollout_id"] == rollout_id
    await server.close()


async def test_starting_and_stopping_twice_does_no_harm(http: aiohttp.ClientSession):
    server = AgentLightningServer(port=0)
    await server.stop()
    await asyncio.gather(server.start(), server.start())
    await server.start()
    assert (await get(http, f"{server.endpoint}/task"))[0] == 200
    await asyncio.gather(server.stop(), server.stop())
    assert not server.running


async def test_a_port_that_is_taken_is_refused_and_can_be_had_later(server: AgentLightningServer):
    other = AgentLightningServer(port=server.port)
    with pytest.raises(LegacyServerError, match=f"port {server.port} of 127.0.0.1 cannot be had"):
        await other.start()
    await server.stop()
    await other.start()
    await other.close()


async def test_an_interface_that_does_not_exist_is_named():
    server = AgentLightningServer("192.0.2.1", port=0, token="long enough")
    with pytest.raises(LegacyServerError, match=r"192\.0\.2\.1"):
        await server.start()


async def test_several_in_one_process_know_nothing_of_each_other(http: aiohttp.ClientSession):
    servers = [AgentLightningServer(port=0) for _ in range(3)]
    for server in servers:
        await server.start()
    ids = [await server.queue_task(number) for number, server in enumerate(servers)]
    for server, rollout_id in zip(servers, ids, strict=True):
        _, answer = await get(http, f"{server.endpoint}/task")
        assert answer["task"]["rollout_id"] == rollout_id
        await server.close()


def test_each_call_may_come_from_another_event_loop():
    server = AgentLightningServer(port=0)
    asyncio.run(server.start())
    rollout_id = asyncio.run(server.queue_task(1))

    async def work() -> None:
        async with aiohttp.ClientSession() as http:
            await get(http, f"{server.endpoint}/task")
            await post(http, server, {"rollout_id": rollout_id, "final_reward": 1.0})

    asyncio.run(work())
    assert len(asyncio.run(server.retrieve_completed_rollouts())) == 1
    asyncio.run(server.close())


async def test_it_answers_while_the_loop_of_its_owner_is_busy(server: AgentLightningServer):
    # Done without an await: this event loop stands still meanwhile.
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /task HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


async def test_run_forever_ends_with_stop():
    server = AgentLightningServer(port=0)
    running = asyncio.create_task(server.run_forever())
    await until(lambda: server.running)
    await server.stop()
    await running
    assert not server.running


async def test_run_forever_stops_when_it_is_cancelled():
    server = AgentLightningServer(port=0)
    running = asyncio.create_task(server.run_forever())
    await until(lambda: server.running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not server.running


async def test_a_stale_task_is_logged_though_nobody_asks(
    caplog: pytest.LogCaptureFixture, http: aiohttp.ClientSession
):
    server = AgentLightningServer(port=0, task_timeout_seconds=0.05, max_requeues=0)
    await server.start()
    with caplog.at_level(logging.ERROR):
        rollout_id = await server.queue_task(1)
        await get(http, f"{server.endpoint}/task")
        await until(lambda: f"task {rollout_id} is given up" in caplog.text)
    await server.close()


async def test_it_goes_on_looking_for_stale_tasks_after_an_error_of_the_store(
    caplog: pytest.LogCaptureFixture, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_legacy.server._LOOK_AGAIN_SECONDS", 0.01)

    class Flaky(InMemoryLightningStore):
        away = threading.Event()

        async def query_rollouts(self, **filters: Any) -> list[RolloutV2]:
            if self.away.is_set():
                raise StoreUnavailableError("the disk is full")
            return await super().query_rollouts(**filters)

    store = Flaky()
    server = AgentLightningServer(port=0, task_timeout_seconds=0.05, max_requeues=0, store=store)
    await server.start()
    rollout_id = await server.queue_task(1)
    await get(http, f"{server.endpoint}/task")
    store.away.set()
    await until(lambda: "cannot look for stale tasks" in caplog.text)
    store.away.clear()
    await until(lambda: f"task {rollout_id} is given up" in caplog.text)
    await server.close()


async def test_waiting_for_an_unknown_task_is_an_error(server: AgentLightningServer):
    with pytest.raises(UnknownRolloutError, match="knows no task"):
        await server.poll_completed_rollout("ro-else")


def test_the_settings_reach_the_data_store():
    server = AgentLightningServer("localhost", 0, 12.5, max_requeues=7)
    assert isinstance(server.store, ServerDataStore)
    assert server.store.task_timeout_seconds == 12.5
    with pytest.raises(ConfigurationError, match="max_requeues"):
        AgentLightningServer(max_requeues=-1)
