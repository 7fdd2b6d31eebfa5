"""Spans that wait for a store: none is lost, doubled or out of order, unless it is said, and waiting is cheap."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest

from lightning_core import InMemoryLightningStore
from lightning_core.emitter import emit_message, emit_reward, get_reward_value
from lightning_core.errors import StoreUnavailableError, TraceError
from lightning_core.tracer import processor
from lightning_core.tracer.capture import LightningSpanProcessor, SpanRouter, TraceContext, private_provider
from lightning_core.types import AttemptedRollout, Span, SpanNames


class Unsteady(InMemoryLightningStore):
    """Refuses writes, or loses the answer to them, as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: Any = lambda: None
        self.writes = 0

    async def add_spans(self, spans: Sequence[Span]) -> int:
        self.writes += 1
        await asyncio.sleep(0)
        fault = self.faults()
        if fault == "refuse":
            raise StoreUnavailableError("away")
        count = await super().add_spans(spans)
        if fault == "lose the answer":
            raise StoreUnavailableError("connection reset")
        return count


@pytest.fixture
def store() -> Unsteady:
    return Unsteady()


@pytest.fixture
def make_trace(store: Unsteady) -> Any:
    tracer = private_provider(SpanRouter()).get_tracer("test")

    def make(rollout: AttemptedRollout, root: str | None = None) -> TraceContext:
        collector = LightningSpanProcessor(
            store, rollout.rollout_id, rollout.attempt.attempt_id, tracer=tracer
        )
        return TraceContext(collector, root)

    return make


async def test_transient_failures_neither_lose_nor_double_nor_reorder(
    store: Unsteady, make_trace: Any, monkeypatch: pytest.MonkeyPatch
):
    """Trap 14, and 6: half of the writes fail before or after they were done."""
    monkeypatch.setattr(processor, "FLUSH_SPANS", 7)
    monkeypatch.setattr(processor, "PAUSE_SECONDS", (0.0,))
    chance = random.Random(4)
    store.faults = lambda: chance.choice([None, None, "refuse", "lose the answer"])
    rollout = await store.start_rollout("task")
    async with make_trace(rollout):
        for number in range(2_000):
            emit_reward(number)
            if number % 3 == 0:
                await asyncio.sleep(0)
        assert store.writes > 100
        store.faults = lambda: None
    stored = await store.query_spans(rollout.rollout_id)
    assert [get_reward_value(span) for span in stored] == list(range(2_000))
    assert [span.sequence_id for span in stored] == list(range(1, 2_001))


async def test_what_a_store_refuses_at_the_end_can_be_flushed_later(store: Unsteady, make_trace: Any):
    """The runner does so, while it is away."""
    rollout = await store.start_rollout("task")
    store.faults = lambda: "refuse"
    context = make_trace(rollout)

    async def trace() -> None:
        async with context:
            emit_reward(1)
            emit_reward(2)

    with pytest.raises(TraceError, match="2 spans") as caught:
        await trace()
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    store.faults = lambda: None
    await context.processor.flush()
    assert [get_reward_value(span) for span in await store.query_spans(rollout.rollout_id)] == [1, 2]


async def test_a_store_that_refuses_is_not_asked_at_every_span(
    store: Unsteady, make_trace: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """And it is said once for all traces."""
    monkeypatch.setattr(processor, "FLUSH_SPANS", 2)
    monkeypatch.setattr(processor, "PAUSE_SECONDS", (3600.0,))
    monkeypatch.setattr(processor, "_quiet_until", 0.0)
    store.faults = lambda: "refuse"
    rollouts = [await store.start_rollout(number) for number in range(20)]

    async def trace(rollout: AttemptedRollout) -> None:
        async with make_trace(rollout):
            for number in range(100):
                emit_reward(number)
                await asyncio.sleep(0)
            together.release()
            await go.wait()

    together, go = asyncio.Semaphore(0), asyncio.Event()
    tracing = [asyncio.create_task(trace(rollout)) for rollout in rollouts]
    for _ in rollouts:
        await together.acquire()
    assert store.writes == len(rollouts)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    store.faults = lambda: None
    go.set()
    await asyncio.gather(*tracing)
    assert [len(await store.query_spans(rollout.rollout_id)) for rollout in rollouts] == [100] * 20


async def test_memory_is_bounded_and_what_exceeds_it_is_an_error(
    store: Unsteady, make_trace: Any, monkeypatch: pytest.MonkeyPatch
):
    """Trap 14: what was kept is stored all the same."""
    monkeypatch.setattr(processor, "UNSENT_SPANS", 50)
    rollout = await store.start_rollout("task")
    context = make_trace(rollout)

    async def trace() -> None:
        async with context:
            for number in range(80):
                emit_reward(number)

    with pytest.raises(TraceError, match="30 spans"):
        await trace()
    assert len(context.processor.spans) == 50
    stored = await store.query_spans(rollout.rollout_id)
    assert [get_reward_value(span) for span in stored] == list(range(50))
    # It was said, and is not said again.
    await context.processor.flush()


async def test_what_is_added_at_the_end_comes_after_the_root_and_in_the_same_write(
    store: Unsteady, make_trace: Any
):
    rollout = await store.start_rollout("task")
    seen: list[str] = []

    def at_end(spans: Sequence[Any]) -> list[Span]:
        seen.extend(span.name for span in spans)
        own = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        return [Span.from_attributes(name="last", attributes={}, **own)]

    async with make_trace(rollout, "root") as collector:
        emit_message("hello")
        collector.at_end = at_end
    assert seen == [SpanNames.MESSAGE.value, "root"]
    stored = await store.query_spans(rollout.rollout_id)
    assert [span.name for span in stored] == [SpanNames.MESSAGE.value, "root", "last"]
    assert store.writes == 1


async def test_a_cancelled_flush_does_not_let_later_spans_overtake_those_under_way(
    make_trace: Any, store: Unsteady, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "FLUSH_SPANS", 1)
    under_way = asyncio.Event()
    arrived: list[list[str]] = []
    add_spans = store.add_spans

    async def stuck_at_first(spans: Sequence[Span]) -> int:
        if not under_way.is_set():
            under_way.set()
            # The store is slow: this answers when the test is over, unless the call is cancelled.
            await asyncio.sleep(60)
        arrived.append([str(span.attributes["message"]) for span in spans])
        return await add_spans(spans)

    monkeypatch.setattr(store, "add_spans", stuck_at_first)
    rollout = await store.start_rollout({"task": 1})
    ready, cancelled_once = asyncio.Event(), asyncio.Event()

    async def agent() -> None:
        async with make_trace(rollout):
            emit_message("first")
            await under_way.wait()
            emit_message("second")
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled_once.set()

    running = asyncio.create_task(agent())
    await ready.wait()
    running.cancel()
    await cancelled_once.wait()
    # It waits now for the write that is under way, and is cancelled there too.
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [message for batch in arrived for message in batch] == ["first", "second"]
    stored = await store.query_spans(rollout.rollout_id)
    assert [span.attributes["message"] for span in stored] == ["first", "second"]
