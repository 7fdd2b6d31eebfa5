"""Spans reach the store in order, outlast its absence, and are never lost in silence."""

from __future__ import annotations

import asyncio
import logging

import pytest
from lightning_llm_proxy.recorder import Recorder

from lightning_core.errors import StoreUnavailableError, TraceError
from lightning_core.store import InMemoryLightningStore
from lightning_core.types import Span

from .upstream import always


class Away(InMemoryLightningStore):
    """A store that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.tries = 0
        self.tried = asyncio.Event()

    async def add_spans(self, spans):
        self.tries += 1
        self.tried.set()
        if self.away:
            raise StoreUnavailableError("gone fishing")
        return await super().add_spans(spans)


@pytest.fixture
async def store():
    return Away()


@pytest.fixture
async def make_span(store):
    rollout = await store.start_rollout({})

    def make(number: int = 0, **names: str) -> Span:
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id, **names}
        return Span.from_attributes(attributes={"number": number, "input.value": "x" * 1000}, **ids)

    return make


@pytest.fixture
async def start(store):
    made: list[Recorder] = []

    def begin(**settings) -> Recorder:
        recorder = Recorder(store, **{"max_bytes": 10**9, "retry_seconds": 60.0, **settings})
        recorder.start()
        made.append(recorder)
        return recorder

    yield begin
    for recorder in made:
        await recorder.close(1)


async def numbers(store) -> list[int]:
    [rollout] = await store.query_rollouts()
    return [span.attributes["number"] for span in await store.query_spans(rollout.rollout_id)]


async def test_spans_are_written_in_order_and_together(store, start, make_span):
    recorder = start()
    stored = [recorder.put(make_span(number)) for number in range(1000)]
    assert all(await asyncio.gather(*stored))
    assert await numbers(store) == list(range(1000))
    assert store.tries == 4
    assert (recorder.written, recorder.lost, recorder.waiting) == (1000, 0, 0)


async def test_a_store_that_is_away_delays_nobody_and_gets_all_when_it_is_back(
    store, start, make_span, caplog
):
    recorder = start()
    store.away = True
    first = recorder.put(make_span(0))
    # It is of no use to wait for it.
    assert await asyncio.wait_for(first, 5) is False
    assert recorder.put(make_span(1)).result() is False
    assert recorder.waiting == 2
    store.away = False
    await asyncio.wait_for(recorder.flush(), 10)
    assert await numbers(store) == [0, 1]
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert await recorder.put(make_span(2)) is True


async def test_spans_that_the_store_will_not_take_are_lost_loudly(store, start, make_span, caplog):
    """And cost the others nothing that were written along with them."""
    recorder = start()
    for number in range(6):
        recorder.put(make_span(number) if number % 2 else make_span(number, attempt_id="at-unknown"))
    with pytest.raises(TraceError, match=r"3 spans of model calls are lost: UnknownAttemptError.*at-unknown"):
        await recorder.flush()
    assert await numbers(store) == [1, 3, 5]
    assert recorder.lost == 3
    await recorder.flush()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_queue_that_is_full_loses_what_comes_next(store, start, make_span, caplog):
    recorder = start(max_bytes=10_000)
    store.away = True
    recorder.put(make_span(0))
    await store.tried.wait()
    for number in range(1, 10):
        recorder.put(make_span(number))
    store.away = False
    with pytest.raises(TraceError, match="7 spans of model calls are lost"):
        await recorder.flush()
    assert await numbers(store) == [0, 1, 2]
    assert "waiting for the store" in caplog.text


async def test_a_store_that_stays_away_is_given_up(store, start, make_span, caplog):
    recorder = start(retry_seconds=0.05)
    store.away = True
    recorder.put(make_span(0))
    with pytest.raises(TraceError, match=r"the store was away for 0\.05 s: gone fishing"):
        await recorder.flush()


async def test_what_cannot_be_written_before_the_end_is_lost_loudly(store, start, make_span, caplog):
    recorder = start()
    store.away = True
    recorder.put(make_span(0))
    await recorder.close(0.05)
    assert recorder.lost == 1
    assert "stopped before the store took them" in caplog.text
    assert recorder.put(make_span(1)).result() is False
    assert recorder.lost == 2


async def test_a_proxy_without_a_store_says_so(serve, gateway, post, caplog):
    proxy = await gateway(await serve(always({"id": "x"})), store=None)
    assert (await post(proxy))[0] == 200
    with pytest.raises(TraceError, match="was given no store"):
        await proxy.flush()
    assert "was given no store" in caplog.text


async def test_a_slow_store_holds_up_an_answer_for_a_limited_time(serve, gateway, post, attempt):
    class Slow(InMemoryLightningStore):
        go_on = asyncio.Event()

        async def add_spans(self, spans):
            while not self.go_on.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return await attempt.store.add_spans(spans)

    store = Slow()
    proxy = await gateway(await serve(always({"id": "x"})), store=store, confirm_seconds=0.05)
    assert (await asyncio.wait_for(post(proxy), 10))[0] == 200
    assert await attempt.spans() == []
    store.go_on.set()
    await proxy.flush()
    assert len(await attempt.spans()) == 1
