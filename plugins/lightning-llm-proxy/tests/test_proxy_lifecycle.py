"""Starting, stopping, restarting; who may call; and what must not be seen anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading

import aiohttp
import openai
import pytest
from click.testing import CliRunner
from lightning_llm_proxy import LLMProxy

from lightning_core import LLM, Trainer, algo, resolve, rollout
from lightning_core.cli import main
from lightning_core.errors import ConfigurationError, EngineError, PluginSettingsError
from lightning_core.types import LLMCall

from .upstream import Request, always
from .wire import vllm_chat

SECRET = "sk-upstream-secret-12345"
TOKEN = "the-token-of-the-proxy"


async def test_twenty_restarts_in_one_process(attempt, serve, post):
    upstream = await serve(always(vllm_chat()))
    proxy = LLMProxy([{"name": "m", "base_url": upstream.url}], attempt.store)
    ports = set()
    for number in range(20):
        async with proxy:
            ports.add(proxy.url)
            status, _ = await post(proxy, messages=[])
            assert status == 200
        assert not proxy.running
        assert len(await attempt.spans()) == number + 1
    assert len(ports) == 1
    assert not [each for each in threading.enumerate() if each.name == "lightning-llm-proxy"]


def test_starting_and_stopping_twice_changes_nothing():
    proxy = LLMProxy([{"name": "m", "base_url": "http://a"}])
    proxy.stop()
    with pytest.raises(ConfigurationError, match="no port yet"):
        proxy.as_resource()
    llm = proxy.start()
    assert proxy.start() == llm
    assert (llm.model, llm.resource_type) == ("m", "proxy_llm")
    proxy.stop()
    proxy.stop()
    assert not proxy.running


def test_a_port_that_is_taken_is_refused():
    """Trap 25."""
    with LLMProxy() as first:
        port = int(first.url.split(":")[2].removesuffix("/v1"))
        with pytest.raises(EngineError, match=f"port {port} of 127.0.0.1 cannot be had"):
            LLMProxy(port=port).start()


def test_other_interfaces_need_a_token():
    """Trap 26."""
    for settings in ({"host": "0.0.0.0"}, {"token": "short"}):
        with pytest.raises(ConfigurationError, match="token"):
            LLMProxy(**settings)
        with pytest.raises(PluginSettingsError, match="token"):
            resolve("llm_proxy", {"type": "gateway", **settings})
    LLMProxy(host="0.0.0.0", token=TOKEN)


async def test_who_has_no_token_is_not_let_in(attempt, serve, gateway, client):
    upstream = await serve(always({"id": "x"}))
    proxy = await gateway(upstream, token=TOKEN)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": TOKEN[:-1]}]
    right = [{"Authorization": f"Bearer {TOKEN}"}, {"x-api-key": TOKEN}]
    for headers, status in [*((each, 401) for each in wrong), *((each, 200) for each in right)]:
        async with client.post(f"{url}/chat/completions", json={"model": "m"}, headers=headers) as response:
            assert response.status == status
    async with client.get(f"{proxy.url}/models") as response:
        assert response.status == 401
    assert len(upstream.requests) == 2
    assert all(TOKEN not in str(request.headers) for request in upstream.requests)
    assert proxy.as_resource().api_key == TOKEN
    assert proxy.as_resource().model == "m"


async def test_keys_are_sent_upstream_and_seen_nowhere_else(attempt, serve, gateway, client, caplog, capfd):
    caplog.set_level(logging.DEBUG)

    async def echo(request: Request):
        # As some servers do in their errors.
        error = {"error": {"message": f"wrong key {request.headers['Authorization']}"}}
        return await always(error, 401)(request)

    upstream = await serve(echo)
    proxy = await gateway(
        {"name": "m", "base_url": upstream.url, "api_key": SECRET, "engine": "vllm"}, token=TOKEN
    )
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    headers = {"Authorization": f"Bearer {TOKEN}", "Cookie": "session=1"}
    async with client.post(f"{url}/chat/completions", json={"model": "m"}, headers=headers) as response:
        assert response.status == 401
        assert await response.json() == {"error": {"message": "wrong key Bearer ***"}}
    seen = upstream.requests[0].headers
    assert seen["Authorization"] == f"Bearer {SECRET}"
    assert "Cookie" not in seen
    [span] = await attempt.spans()
    assert "wrong key Bearer ***" in span.attributes["output.value"]
    everywhere = f"{span!r} {caplog.text} {capfd.readouterr()} {proxy!r} {proxy.model_list!r} {vars(proxy)!r}"
    assert SECRET not in everywhere
    assert TOKEN not in everywhere


async def test_keys_are_not_in_what_is_said_of_failures(attempt, serve, gateway, client, caplog, capfd):
    caplog.set_level(logging.DEBUG)

    async def fail(request: Request):
        key = request.headers["Authorization"]
        how = request.json["model"]
        if how == "silent":
            await asyncio.Event().wait()
        if how == "refusing" and "return_token_ids" in request.json:
            return await always({"error": {"message": key}}, 400)(request)
        if how == "breaking":
            return await request.stream(b'data: {"error": {"message": "%s"}}\n\n' % key.encode())
        return await always({"error": key}, 500 if how == "failing" else 200)(request)

    upstream = await serve(fail)
    own = {"api_key": SECRET, "engine": "vllm"}
    models = [{"name": how, "base_url": upstream.url, **own} for how in ("silent", "refusing", "breaking")]
    models[0]["timeout"] = 0.5
    models += [{"name": "failing", "base_url": f"{upstream.url}{more}", **own} for more in ("", "/")]
    models[-1]["weight"] = 2.0
    gone = {**own, "name": "gone", "base_url": "http://127.0.0.1:9"}
    probed = {**own, "name": "probed", "base_url": "http://127.0.0.1:9", "engine": "auto"}
    proxy = await gateway(*models, gone, probed)
    url = proxy.as_resource().get_base_url(attempt.rollout_id, attempt.attempt_id)
    answers = {}
    for how in ("silent", "refusing", "breaking", "failing", "gone", "probed"):
        async with client.post(f"{url}/chat/completions", json={"model": how, "stream": True}) as response:
            answers[how] = response.status
            if how != "refusing":
                assert SECRET.encode() not in await response.read()
    assert answers == {
        "silent": 504,
        "refusing": 200,
        "breaking": 200,
        "failing": 500,
        "gone": 502,
        "probed": 502,
    }
    await proxy.flush()
    spans = await attempt.spans()
    assert [span.attributes["error.type"] for span in spans if span.attributes.get("error.type")] != []
    assert {event.name for span in spans for event in span.events} == {"lightning.llm_proxy.retry"}
    assert "does not say what serves there" in caplog.text
    assert "refuses to be asked" in caplog.text
    everywhere = f"{spans!r} {caplog.text} {capfd.readouterr()}"
    assert "***" in everywhere
    assert SECRET not in everywhere


async def test_stopping_lets_calls_end_and_cuts_those_that_do_not(attempt, serve, client):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Request):
        asked.set()
        await go_on.wait()
        return await always({"id": "x"})(request)

    upstream = await serve(answer)
    for seconds, ends in ((30.0, True), (0.1, False)):
        asked.clear()
        go_on.clear()
        proxy = LLMProxy(
            [{"name": "m", "base_url": upstream.url, "engine": "none"}], attempt.store, stop_seconds=seconds
        )
        url = proxy.start().get_base_url(attempt.rollout_id, attempt.attempt_id)
        calling = asyncio.create_task(client.post(f"{url}/chat/completions", json={"model": "m"}))
        await asked.wait()
        stopping = asyncio.create_task(asyncio.to_thread(proxy.stop))
        if ends:
            go_on.set()
            assert (await calling).status == 200
        else:
            with pytest.raises(aiohttp.ClientError):
                await calling
        await asyncio.wait_for(stopping, 20)
    first, second = await attempt.spans()
    assert first.status.status_code == "OK"
    assert second.attributes["error.type"] == "proxy_stopped"


def test_another_process_gets_the_settings():
    proxy = LLMProxy([{"name": "m", "base_url": "http://a", "api_key": SECRET}], token=TOKEN)
    with proxy:
        again: LLMProxy = pickle.loads(pickle.dumps(proxy))
        assert not again.running
    with again:
        assert again.model_list == proxy.model_list
        assert again.as_resource().api_key == TOKEN


def test_agents_of_a_trainer_are_recorded(monkeypatch):
    """The trainer gives the proxy its store; the algorithm starts it and publishes the resource."""

    @rollout
    def ask(task, llm: LLM):
        api = openai.OpenAI(base_url=llm.endpoint, api_key=llm.api_key, max_retries=0)
        with api:
            answer = api.chat.completions.create(
                model=llm.model, messages=[{"role": "user", "content": task}]
            )
        return float(answer.choices[0].message.content == "Hi!")

    @algo
    async def count(*, store, train_dataset, llm_proxy, algorithm):
        from .upstream import FakeUpstream

        async with FakeUpstream(always(vllm_chat())) as upstream:
            llm_proxy.update_model_list([{"name": "m", "base_url": upstream.url}])
            with llm_proxy:
                await store.add_resources({"main_llm": llm_proxy.as_resource()})
                rollouts = [await store.enqueue_rollout(task) for task in train_dataset]
                await store.wait_for_rollouts(rollout_ids=[each.rollout_id for each in rollouts])
                spans = [await store.query_spans(each.rollout_id) for each in rollouts]
                calls = [[s for s in each if s.attributes.get("openinference.span.kind")] for each in spans]
                algorithm.log_metrics(
                    ids=[[LLMCall.from_span(s).response.token_ids.ids for s in c] for c in calls]
                )

    result = Trainer(tracer="dummy", llm_proxy="gateway", algorithm=count, n_runners=2).fit(
        ask, ["a", "b", "c"]
    )
    assert result.metrics[0]["ids"] == [[[13048, 0, 151645]]] * 3


_SERVING = re.compile(r"passing calls on at (http://127\.0\.0\.1:\d+/v1)")


@pytest.mark.skipif(os.name != "posix", reason="signals are sent in the way of POSIX")
async def test_the_command_serves_in_a_process_of_its_own(tmp_path, serve, client):
    pytest.importorskip("lightning_store_sqlite")
    store = resolve("store", f"sqlite:///{tmp_path}/runs.db")
    started = await store.start_rollout({})
    upstream, other = await serve(always(vllm_chat())), await serve(always({"id": "other"}))
    models = tmp_path / "models.json"
    models.write_text(json.dumps([{"name": "n", "base_url": upstream.url, "engine": "none"}]))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIGHTNING_CORE")}
    command = [
        sys.executable,
        "-m",
        "lightning_core",
        "proxy",
        "serve",
        "--port",
        "0",
        "--store",
        store.location,
    ]
    command += ["--upstream", f"m={upstream.url}", "--models", str(models)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"LIGHTNING_CORE_UPSTREAM_KEY": SECRET},
    )
    try:
        async with asyncio.timeout(60):
            found = _SERVING.search((await process.stdout.readline()).decode())
            assert found, await process.stderr.read()
            prefix = f"/rollout/{started.rollout_id}/attempt/{started.attempt.attempt_id}/v1"
            url = found[1].replace("/v1", prefix) + "/chat/completions"
            for model in ("m", "n"):
                async with client.post(url, json={"model": model, "messages": []}) as response:
                    assert response.status == 200
            models.write_text(json.dumps([{"name": "n", "base_url": other.url, "engine": "none"}]))
            process.send_signal(signal.SIGHUP)
            assert b"read again" in await process.stdout.readline()
            async with client.post(url, json={"model": "n"}) as response:
                assert await response.json() == {"id": "other"}
            process.send_signal(signal.SIGTERM)
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, output, errors) == (0, b"stopping\n", b"")
    assert upstream.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    spans = await store.query_spans(started.rollout_id)
    await store.close()
    assert len(spans) == 3
    assert LLMCall.from_span(spans[0]).response.token_ids.ids == [13048, 0, 151645]
    assert SECRET not in repr(spans)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--store", "memory"], "--upstream URL, or --models FILE"),
        (["--store", "memory", "--upstream", "http://a"], "store serve"),
        (["--store", "memory", "--upstream", "nonsense"], "model_list.0.base_url"),
        (["--store", "memory", "--upstream", "http://a", "--host", "0.0.0.0"], "token"),
    ],
)
def test_what_cannot_be_served_is_said_plainly(arguments, said, monkeypatch):
    monkeypatch.delenv("LIGHTNING_CORE_PROXY_TOKEN", raising=False)
    result = CliRunner().invoke(main, ["proxy", "serve", *arguments])
    assert result.exit_code in (1, 2)
    assert said in result.output
