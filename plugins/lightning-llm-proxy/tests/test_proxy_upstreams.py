"""Several upstreams: weights, limits, fail-over, and changing them under load."""

from __future__ import annotations

import asyncio
import collections
import json
import socket

import pytest
from lightning_llm_proxy import Upstream
from lightning_llm_proxy.upstreams import Backend, Upstreams

from lightning_core.errors import ConfigurationError
from lightning_core.types import LLM

from .upstream import Request, always


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def of(upstream, **settings) -> dict:
    url = upstream if isinstance(upstream, str) else upstream.url
    return {"name": "m", "base_url": url, "engine": "none", **settings}


async def test_an_upstream_that_fails_is_stood_in_for(attempt, serve, gateway, post):
    good = await serve(always({"id": "good"}))
    busy = await serve(always({"error": {"message": "busy"}}, 429))
    broken = await serve(always({"error": {"message": "broken"}}, 503))
    # So large a share that the others are tried first.
    proxy = await gateway(
        of(closed_port(), weight=1e12), of(busy, weight=1e9), of(broken, weight=1e6), of(good, weight=1e-6)
    )
    status, body = await post(proxy)
    assert (status, json.loads(body)) == (200, {"id": "good"})
    span = await attempt.span()
    assert span.attributes["lightning.llm_proxy.retries"] == 3
    assert span.attributes["lightning.llm_proxy.upstream"] == good.url
    assert [event.name for event in span.events] == ["lightning.llm_proxy.retry"] * 3
    reasons = [event.attributes["reason"] for event in span.events]
    assert "cannot be reached" in reasons[0]
    assert reasons[1:] == ["status 429", "status 503"]
    # Who has just failed is asked no more while others are well.
    await post(proxy)
    assert (len(busy.requests), len(broken.requests), len(good.requests)) == (1, 1, 2)


async def test_the_last_ones_own_error_is_passed_on(attempt, serve, gateway, post):
    busy = await serve(always({"error": {"message": "busy"}}, 429, **{"Retry-After": "7"}))
    proxy = await gateway(of(closed_port(), weight=1e12), of(busy))
    status, body = await post(proxy)
    assert (status, json.loads(body)) == (429, {"error": {"message": "busy"}})
    assert (await attempt.span()).attributes["error.type"] == "429"


async def test_nobody_can_be_reached(attempt, gateway, post):
    url = closed_port()
    status, body = await post(await gateway(of(url)))
    assert status == 502
    assert url in json.loads(body)["error"]["message"]
    span = await attempt.span()
    assert span.attributes["error.type"] == "upstream_unreachable"
    assert span.attributes["lightning.llm_proxy.upstream"] == url


async def test_an_idle_connection_that_the_upstream_closed_is_no_failure(attempt, serve, gateway, post):
    """Trap 24."""
    upstream = await serve(always({"id": "x"}))
    proxy = await gateway(of(upstream))
    await post(proxy)
    first = upstream.requests[0].raw

    async def close_first(request: Request):
        if len(upstream.requests) == 2:
            # As a server does that closes an idle connection while a request is on its way.
            request.raw.transport.abort()
        return await always({"id": "y"})(request)

    upstream.answer = close_first
    status, body = await post(proxy)
    assert (status, json.loads(body)) == (200, {"id": "y"})
    assert len(upstream.requests) == 3
    assert first is not upstream.requests[2].raw
    assert (await attempt.spans())[1].attributes["lightning.llm_proxy.retries"] == 1


async def test_shares_follow_the_weights(serve, gateway, post):
    one, two = await serve(always({"id": "1"})), await serve(always({"id": "2"}))
    proxy = await gateway(of(one, weight=3), of(two, weight=1))
    await asyncio.gather(*[post(proxy, prefix="") for _ in range(200)])
    assert len(one.requests) + len(two.requests) == 200
    # Six standard deviations.
    assert 113 <= len(one.requests) <= 187


async def test_an_upstream_gets_no_more_calls_at_once_than_it_may(attempt, serve, gateway, post):
    async def answer(request: Request):
        await asyncio.sleep(0.01)
        return await always({"id": "x"})(request)

    upstream = await serve(answer)
    proxy = await gateway(of(upstream, max_concurrency=3))
    answers = await asyncio.gather(*[post(proxy) for _ in range(30)])
    assert [status for status, _ in answers] == [200] * 30
    assert upstream.most_active == 3
    waits = [span.attributes["lightning.llm_proxy.queue_seconds"] for span in await attempt.spans()]
    assert min(waits) < 0.01 < max(waits)


async def test_who_waited_longest_comes_first_and_who_left_takes_no_place():
    upstreams = Upstreams([Upstream(name="m", base_url="http://a/v1", max_concurrency=1)])
    backend = await upstreams.acquire("m")
    assert backend is not None
    waiting = [asyncio.create_task(upstreams.acquire("m")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    backend.release()
    # Cancelled at the very moment in which it gets the place.
    waiting[1].cancel()
    assert await waiting[2] is backend
    assert backend.active == 1
    backend.release()
    assert (backend.active, len(backend.waiting)) == (0, 0)


async def test_a_new_list_of_models_under_load_loses_no_call(attempt, serve, gateway, post):
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(request: Request):
        begun.set()
        await go_on.wait()
        return await always({"id": "old"})(request)

    old, new = await serve(slow), await serve(always({"id": "new"}))
    proxy = await gateway(of(old, max_concurrency=1))
    under_way = asyncio.create_task(post(proxy))
    await begun.wait()
    # These wait for the only place of the old one.
    waiting = [asyncio.create_task(post(proxy)) for _ in range(5)]
    while proxy._server._upstreams.find("m")[0].waiting.__len__() < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.to_thread(proxy.update_model_list, [of(new)])
    assert {json.loads(body)["id"] for _, body in await asyncio.gather(*waiting)} == {"new"}
    go_on.set()
    assert json.loads((await under_way)[1])["id"] == "old"
    assert len(old.requests) == 1


async def test_many_changes_while_many_calls_come(attempt, serve, gateway, post):
    upstreams = [await serve(always({"id": str(number)})) for number in range(2)]
    proxy = await gateway(of(upstreams[0], max_concurrency=2))
    over = asyncio.Event()

    async def swap() -> int:
        number = 0
        while not over.is_set():
            number += 1
            await asyncio.to_thread(proxy.update_model_list, [of(upstreams[number % 2], max_concurrency=2)])
        return number

    swapping = asyncio.create_task(swap())
    answers = await asyncio.gather(*[post(proxy) for _ in range(200)])
    over.set()
    assert await swapping > 5
    assert collections.Counter(status for status, _ in answers) == {200: 200}
    assert all(upstream.requests for upstream in upstreams)
    assert len(await attempt.spans()) == 200
    assert [backend.active for backend in proxy._server._upstreams.find("m")] == [0]


async def test_an_upstream_that_stays_keeps_its_limit():
    settings = Upstream(name="m", base_url="http://a/v1", max_concurrency=1)
    upstreams = Upstreams([settings])
    backend = await upstreams.acquire("m")
    upstreams.replace([Upstream(**settings.model_dump()), Upstream(name="n", base_url="http://b/v1")])
    assert upstreams.find("m") == [backend]
    assert not backend.free


async def test_models_by_name_and_any_other(serve, gateway, post, client):
    one, rest = await serve(always({"id": "1"})), await serve(always({"id": "2"}))
    proxy = await gateway(of(one, name="one", model="its/own-name"), of(rest, name="*"))
    assert json.loads((await post(proxy, model="one"))[1]) == {"id": "1"}
    assert one.requests[0].json["model"] == "its/own-name"
    assert json.loads((await post(proxy, model="whatever"))[1]) == {"id": "2"}
    assert rest.requests[0].json["model"] == "whatever"
    async with client.get(f"{proxy.url}/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["one"]
    async with client.get(f"{proxy.url}/models/two") as response:
        assert response.status == 404


async def test_what_serves_is_asked_once_whatever_comes_at_once(attempt, serve, gateway, post):
    upstream = await serve(always({"id": "x"}), "llamacpp")
    proxy = await gateway(upstream)
    await asyncio.gather(*[post(proxy, messages=[]) for _ in range(5)])
    engines = {span.attributes["lightning.llm_proxy.engine"] for span in await attempt.spans()}
    assert engines == {"llamacpp"}
    assert all(request.json["return_tokens"] for request in upstream.requests)


async def test_an_unknown_engine_is_asked_for_nothing(attempt, serve, gateway, post):
    upstream = await serve(always({"id": "x"}), "somebody")
    await post(await gateway(upstream), messages=[])
    assert upstream.requests[0].json == {"model": "m", "messages": []}


def test_wrong_settings_name_the_field_and_not_the_key():
    from lightning_llm_proxy import LLMProxy

    cases = {
        "base_url": {"base_url": "localhost"},
        "api_key": {"base_url": "http://user:pass@host/v1"},
        "weight": {"base_url": "http://a", "weight": 0},
        "colour": {"base_url": "http://a", "colour": 1, "api_key": "sk-very-secret"},
    }
    for field, settings in cases.items():
        with pytest.raises(ConfigurationError, match=field) as caught:
            LLMProxy([settings])
        assert "sk-very-secret" not in str(caught.value)
        assert "user:pass" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="are the same"):
        LLMProxy([{"base_url": "http://a"}, {"base_url": "http://a/v1/"}])


def test_an_upstream_of_a_resource():
    llm = LLM(endpoint="http://a:1/v1", model="m", api_key="sk-123456")
    upstream = Upstream.from_llm(llm, name="served", max_concurrency=4)
    assert (upstream.name, upstream.base_url, upstream.max_concurrency) == ("served", "http://a:1/v1", 4)
    assert upstream.api_key.get_secret_value() == "sk-123456"
    assert Backend(upstream).headers["Authorization"] == "Bearer sk-123456"
    assert "sk-123456" not in repr(upstream)
