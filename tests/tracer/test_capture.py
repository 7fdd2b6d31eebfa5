"""Collecting spans: in which trace they land, what happens to late ones, and that nothing blocks or is lost."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import logging.handlers
import queue
import random
import threading
import weakref
from collections.abc import Sequence

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace as trace_api

from lightning_core.emitter import emit_message, emit_reward, get_reward_value
from lightning_core.errors import TraceError
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer import DummyTracer, capture, processor
from lightning_core.tracer.capture import LightningSpanProcessor, SpanRouter, TraceContext, private_provider
from lightning_core.types import AttemptedRollout, Span

LIMIT = 20.0


class Store(InMemoryLightningStore):
    """A store whose next writes can be made to fail, to wait, or to do something else."""

    def __init__(self):
        super().__init__()
        self.before = None
        self.written = threading.Event()

    async def add_spans(self, spans: Sequence[Span]) -> int:
        if self.before is not None:
            await self.before()
        count = await super().add_spans(spans)
        self.written.set()
        return count


@pytest.fixture
async def store():
    store = Store()
    yield store
    await store.close()


@pytest.fixture
def tracer():
    return private_provider(SpanRouter()).get_tracer("test")


def ids(rollout: AttemptedRollout) -> dict[str, str]:
    return {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}


async def names(store: InMemoryLightningStore, rollout: AttemptedRollout) -> list[str]:
    return [span.name for span in await store.query_spans(rollout.rollout_id)]


async def fail():
    raise OSError("the disk is full")


# Which trace a span belongs to


def test_a_span_that_ends_in_another_context_belongs_where_it_started(tracer):
    """Trap 11."""
    first, second = LightningSpanProcessor(tracer=tracer), LightningSpanProcessor(tracer=tracer)
    with TraceContext(first):
        span = tracer.start_span("mine")
    with TraceContext(second):
        span.end()
    assert [each.name for each in first.spans] == ["mine"]
    assert second.spans == []


def test_a_child_started_where_no_trace_is_belongs_to_its_parents_trace(tracer):
    trace = LightningSpanProcessor(tracer=tracer)
    with TraceContext(trace):
        parent = tracer.start_span("parent")
    elsewhere = contextvars.Context()
    elsewhere.run(lambda: tracer.start_span("child", trace_api.set_span_in_context(parent)).end())
    parent.end()
    assert [span.name for span in trace.spans] == ["child", "parent"]


def test_a_child_of_another_traces_span_belongs_to_that_trace(tracer):
    outer, inner = LightningSpanProcessor(tracer=tracer), LightningSpanProcessor(tracer=tracer)
    with TraceContext(outer):
        parent = tracer.start_span("parent")
        with TraceContext(inner):
            tracer.start_span("child", trace_api.set_span_in_context(parent)).end()
            tracer.start_span("own").end()
        parent.end()
    assert [span.name for span in outer.spans] == ["child", "parent"]
    assert [span.name for span in inner.spans] == ["own"]


def test_a_span_with_a_context_of_its_own_still_belongs_to_the_current_trace(tracer):
    trace = LightningSpanProcessor(tracer=tracer)
    with TraceContext(trace):
        tracer.start_span("root", context_api.Context()).end()
    assert [span.name for span in trace.spans] == ["root"]


def test_a_span_seen_by_two_routers_is_recorded_once():
    tracer = private_provider(SpanRouter(), SpanRouter()).get_tracer("test")
    trace = LightningSpanProcessor(tracer=tracer)
    with TraceContext(trace):
        tracer.start_span("once").end()
    assert [span.name for span in trace.spans] == ["once"]


def test_the_trace_of_the_user_is_neither_continued_nor_lost(tracer):
    with tracer.start_as_current_span("users") as users:
        trace = LightningSpanProcessor(tracer=tracer)
        with TraceContext(trace, root="rollout"):
            emit_message("hello")
        assert trace_api.get_current_span() is users
    message, root = trace.spans
    assert root.parent is None
    assert message.parent.span_id == root.context.span_id
    assert root.context.trace_id != users.get_span_context().trace_id


def test_the_root_span_records_how_the_block_ended(tracer):
    trace = LightningSpanProcessor(tracer=tracer)
    with pytest.raises(ZeroDivisionError), TraceContext(trace, root="rollout"):
        raise ZeroDivisionError("by zero")
    [root] = trace.spans
    assert root.status.description == "ZeroDivisionError: by zero"
    assert [event.name for event in root.events] == ["exception"]


def test_a_context_is_entered_once(tracer):
    context = TraceContext(LightningSpanProcessor(tracer=tracer))
    with context:
        pass
    with pytest.raises(TraceError, match="opened before"):
        context.__enter__()


# Which trace was last


async def test_the_last_trace_is_that_of_the_context_and_else_the_tracers_own():
    tracer, other = DummyTracer(), DummyTracer()
    assert tracer.get_last_trace() == []

    async def run(value: float):
        async with tracer.trace_context():
            emit_reward(value)
        with other.trace_context():
            emit_message("not mine")

    await asyncio.create_task(run(1))
    assert [get_reward_value(span) for span in tracer.get_last_trace()] == [1]
    with tracer.trace_context():
        emit_reward(2)
        await asyncio.create_task(run(3))
        assert [get_reward_value(span) for span in tracer.get_last_trace()] == [2]
    assert [get_reward_value(span) for span in tracer.get_last_trace()] == [2]


def test_a_trace_within_hides_the_outer_one_only_until_that_ends():
    tracer = DummyTracer()
    with tracer.trace_context():
        emit_reward(1)
        with tracer.trace_context():
            emit_reward(2)
        assert [get_reward_value(span) for span in tracer.get_last_trace()] == [2]
    assert [get_reward_value(span) for span in tracer.get_last_trace()] == [1]


async def test_a_finished_trace_is_not_kept_alive(store, tracer):
    def run():
        with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)) as trace:
            emit_message("hello")
        return weakref.ref(trace)

    rollout = await store.start_rollout("task")
    # In a context of its own, which is gone afterwards.
    trace = contextvars.copy_context().run(run)
    gc.collect()
    assert trace() is None


# Ids and limits


def test_seeding_random_neither_repeats_ids_nor_is_disturbed(tracer):
    seen = set()
    for _ in range(3):
        random.seed(42)
        with TraceContext(LightningSpanProcessor(tracer=tracer)):
            span = emit_reward(1)
        seen.add((span.context.trace_id, span.context.span_id))
    assert len(seen) == 3
    assert random.random() == random.Random(42).random()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "0"),
    ],
)
def test_the_users_telemetry_settings_do_not_thin_out_traces(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    tracer = DummyTracer()
    with tracer.trace_context() as trace:
        span = tracer._tracer.start_span("s", attributes={"a": "long", "b": "text"})
        span.add_event("event")
        span.end()
    [span] = trace.spans
    assert dict(span.attributes) == {"a": "long", "b": "text"}
    assert len(span.events) == 1


def test_a_long_conversation_keeps_all_its_attributes():
    tracer = DummyTracer()
    attributes = {f"llm.input_messages.{n}.message.content": "hi" for n in range(1000)}
    with tracer.trace_context() as trace:
        tracer._tracer.start_span("llm", attributes=attributes).end()
    assert dict(trace.spans[0].attributes) == attributes


# Late, unfinished and abandoned spans


async def test_a_span_that_ends_after_its_trace_is_stored_too(store, tracer):
    rollout = await store.start_rollout("task")
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)):
        late = tracer.start_span("late")
        emit_message("hello")
    store.written.clear()
    late.end()
    assert await asyncio.to_thread(store.written.wait, LIMIT)
    assert await names(store, rollout) == ["lightning.message", "late"]
    assert not processor._unfinished


async def test_a_late_span_is_stored_when_the_loop_of_its_trace_has_ended(store, tracer):
    async def run():
        rollout = await store.start_rollout("task")
        async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)):
            return rollout, tracer.start_span("late")

    rollout, late = await asyncio.to_thread(asyncio.run, run())
    late.end()
    assert await asyncio.to_thread(store.written.wait, LIMIT)
    assert await names(store, rollout) == ["late"]


async def test_a_late_span_that_cannot_be_stored_is_an_error_in_the_log(store, tracer):
    rollout = await store.start_rollout("task")
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)) as trace:
        late = tracer.start_span("late")
    logged: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(logged)
    processor.logger.addHandler(handler)
    store.before = fail
    late.end()
    record = await asyncio.to_thread(logged.get, timeout=LIMIT)
    processor.logger.removeHandler(handler)
    assert record.levelno == logging.ERROR
    assert "the disk is full" in record.message
    assert rollout.rollout_id in record.message
    store.before = None
    await trace.flush()
    assert await names(store, rollout) == ["late"]


async def test_spans_that_never_end_are_given_up_aloud(store, tracer, caplog, monkeypatch):
    monkeypatch.setattr(processor, "UNFINISHED_TRACES", 1)
    known = len(processor._open_spans)
    rollouts = [await store.start_rollout(n) for n in range(3)]
    spans = []
    for rollout in rollouts:
        async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)):
            spans.append(tracer.start_span("abandoned"))
    assert len(processor._open_spans) == known + 1
    messages = [record.message for record in caplog.records]
    gone = [each.rollout_id for each in rollouts[:2]]
    assert messages == [f"1 spans of rollout {each} never ended and are not stored" for each in gone]
    store.written.clear()
    for span in spans:
        span.end()
    assert await asyncio.to_thread(store.written.wait, LIMIT)
    assert [await names(store, rollout) for rollout in rollouts] == [[], [], ["abandoned"]]
    assert len(processor._open_spans) == known


# Slow, failing and hanging stores


async def test_a_failed_background_write_is_tried_again(store, tracer, caplog, monkeypatch):
    monkeypatch.setattr(processor, "FLUSH_SPANS", 2)
    monkeypatch.setattr(processor, "_quiet_until", 0.0)
    rollout = await store.start_rollout("task")
    store.before = fail
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)) as trace:
        for n in range(5):
            emit_reward(n)
        while not caplog.records:  # noqa: ASYNC110 - the write runs as a task of this loop
            await asyncio.sleep(0)
        assert "5 spans" in caplog.text
        assert "trying again" in caplog.text
        store.before = None
        emit_reward(5)
    stored = await store.query_spans(rollout.rollout_id)
    assert [get_reward_value(span) for span in stored] == [0, 1, 2, 3, 4, 5]
    assert [span.sequence_id for span in stored] == [1, 2, 3, 4, 5, 6]
    assert len(trace.spans) == 6


async def test_when_block_and_store_fail_the_blocks_error_passes_and_the_loss_is_logged(
    store, tracer, caplog
):
    rollout = await store.start_rollout("task")
    store.before = fail
    for asynchronous in (True, False):
        context = TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer))

        async def run(context=context, asynchronous=asynchronous):
            if asynchronous:
                async with context:
                    emit_message("hello")
                    raise ZeroDivisionError
            with context:
                emit_message("hello")
                raise ZeroDivisionError

        caplog.clear()
        with pytest.raises(ZeroDivisionError):
            await run()
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "1 spans" in record.message
        assert "the disk is full" in record.message


async def test_a_trace_cancelled_while_it_is_flushed_stores_its_spans(store, tracer):
    rollout = await store.start_rollout("task")
    flushing = asyncio.Event()

    async def hold_first():
        if not flushing.is_set():
            flushing.set()
            await asyncio.Event().wait()

    store.before = hold_first

    async def run():
        async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer), root="rollout"):
            emit_message("hello")

    async with asyncio.timeout(LIMIT):
        task = asyncio.create_task(run())
        await flushing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await names(store, rollout) == ["lightning.message", "rollout"]


async def test_a_cancelled_trace_does_not_wait_for_ever_for_its_store(store, tracer, caplog, monkeypatch):
    monkeypatch.setattr(capture, "CANCEL_SECONDS", 0.01)
    rollout = await store.start_rollout("task")
    flushing, go_on = asyncio.Event(), threading.Event()

    async def hold():
        flushing.set()
        await asyncio.to_thread(go_on.wait, LIMIT)

    store.before = hold

    async def run():
        async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)):
            emit_message("hello")

    async with asyncio.timeout(LIMIT):
        task = asyncio.create_task(run())
        await flushing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "were not stored within 0.01 s" in caplog.text
    go_on.set()
    assert await asyncio.to_thread(store.written.wait, LIMIT)
    assert await names(store, rollout) == ["lightning.message"]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_finaliser_that_ends_a_span_on_the_writers_thread_does_not_deadlock(
    store, tracer, asynchronous
):
    """Trap 15."""

    class Stream:
        """Ends its span when the garbage collector finds it."""

        def __init__(self):
            self.span = tracer.start_span("stream")
            self.cycle = self

        def __del__(self):
            self.span.end()

    async def collect():
        # On the thread that writes, in the middle of writing.
        gc.collect()

    rollout = await store.start_rollout("task")
    store.before = collect

    def open_and_drop():
        emit_message("hello")
        gc.disable()
        Stream()

    context = TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer))
    try:
        async with asyncio.timeout(LIMIT):
            if asynchronous:
                async with context as trace:
                    open_and_drop()
            else:
                with context as trace:
                    open_and_drop()
            await trace.flush()
    finally:
        gc.enable()
    assert await names(store, rollout) == ["lightning.message", "stream"]


async def test_spans_can_be_flushed_from_another_loop(store, tracer):
    rollout = await store.start_rollout("task")
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)) as trace:
        emit_message("hello")
        await asyncio.to_thread(asyncio.run, trace.flush())
        assert await names(store, rollout) == ["lightning.message"]


async def test_many_spans_are_written_in_parts_and_in_order(store, tracer, monkeypatch):
    monkeypatch.setattr(processor, "FLUSH_SPANS", 10)
    rollout = await store.start_rollout("task")
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)):
        for n in range(95):
            emit_reward(n)
    stored = await store.query_spans(rollout.rollout_id)
    assert [get_reward_value(span) for span in stored] == list(range(95))
    assert [span.sequence_id for span in stored] == list(range(1, 96))


async def test_threads_that_still_emit_when_the_trace_ends_lose_nothing(store, tracer):
    rollout = await store.start_rollout("task")
    started, count = threading.Barrier(5, timeout=LIMIT), 300

    def emit():
        started.wait()
        for n in range(count):
            emit_reward(n)

    threads = []
    async with TraceContext(LightningSpanProcessor(store, **ids(rollout), tracer=tracer)) as trace:
        for _ in range(4):
            threads.append(threading.Thread(target=contextvars.copy_context().run, args=(emit,)))
            threads[-1].start()
        started.wait()
        await asyncio.sleep(0)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await trace.flush()
    assert len(await store.query_spans(rollout.rollout_id)) == 4 * count
