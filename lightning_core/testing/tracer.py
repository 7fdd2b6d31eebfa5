"""The contract of a tracer: no span is lost, none is in the wrong trace, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry import trace as trace_api

from lightning_core.emitter import (
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    find_reward_spans,
    get_reward_value,
    operation,
)
from lightning_core.errors import TraceError
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.processor import FLUSH_SPANS
from lightning_core.types import AttemptedRollout, Span, SpanLike, SpanNames

__all__ = ["TracerConformance"]

MANY = 50
LIMIT = 30.0


class _Unwilling(InMemoryLightningStore):
    """Refuses spans as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = True

    async def add_spans(self, spans: Sequence[Span]) -> int:
        if self.refuses:
            raise OSError("the disk is full")
        return await super().add_spans(spans)


class _Slow(InMemoryLightningStore):
    """Takes no span before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    async def add_spans(self, spans: Sequence[Span]) -> int:
        self.asked.set()
        await asyncio.to_thread(self.go_on.wait, LIMIT)
        return await super().add_spans(spans)


def _rewards(spans: Sequence[SpanLike]) -> list[float | None]:
    return [get_reward_value(span) for span in find_reward_spans(spans)]


async def _stored_rewards(store: InMemoryLightningStore, rollout: AttemptedRollout) -> list[float | None]:
    return _rewards(await store.query_spans(rollout.rollout_id, rollout.attempt.attempt_id))


def _ids(rollout: AttemptedRollout) -> dict[str, str]:
    return {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}


class TracerConformance:
    """Inherit it and override the fixture ``tracer``; pytest checks the tracer.

    Needs pytest-asyncio in auto mode, or ``pytestmark = pytest.mark.asyncio``.

    Example:
        ::

            class TestLogs(TracerConformance):
                @pytest.fixture
                def tracer(self):
                    return LogsTracer()
    """

    @pytest.fixture
    def tracer(self) -> BaseTracer:
        """A new tracer that nobody has set up."""
        raise NotImplementedError("override the fixture tracer")

    @pytest.fixture
    def ready(self, tracer: BaseTracer) -> Iterator[BaseTracer]:
        """The tracer, set up as a runner does it, and torn down afterwards."""
        tracer.init()
        tracer.init_worker(0)
        yield tracer
        tracer.teardown_worker(0)
        tracer.teardown()

    @pytest.fixture
    async def store(self) -> AsyncIterator[InMemoryLightningStore]:
        """An empty store."""
        store = InMemoryLightningStore()
        yield store
        await store.close()

    # What is recorded

    async def test_what_is_emitted_is_stored_when_the_block_ends(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Trap 13: in the order in which they ended; rewards, messages, objects, exceptions and operations."""
        rollout = await store.start_rollout("task")
        async with ready.trace_context("test", store=store, **_ids(rollout)) as processor:
            with operation("think"):
                emit_message("hello")
            emit_object({"a": [1]})
            emit_exception(ValueError("no"))
            emit_reward(0.5)
        stored = await store.query_spans(rollout.rollout_id, rollout.attempt.attempt_id)
        wanted = [SpanNames.MESSAGE, "think", SpanNames.OBJECT, SpanNames.EXCEPTION, SpanNames.REWARD]
        assert [span.name for span in stored if span.name in wanted] == wanted
        numbers = [span.sequence_id for span in stored]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > 0
        assert [span.span_id for span in stored] == [_span_id(span) for span in processor.spans]

    async def test_a_plain_with_block_stores_too(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Also in a thread that has no event loop, and in a coroutine."""
        for number, in_thread in enumerate((True, False)):
            rollout = await store.start_rollout("task")

            def trace(rollout: AttemptedRollout = rollout, number: int = number) -> None:
                with ready.trace_context("test", store=store, **_ids(rollout)):
                    emit_reward(number)

            if in_thread:
                await asyncio.to_thread(trace)
            else:
                trace()
            assert await _stored_rewards(store, rollout) == [number]

    def test_without_a_store_the_spans_are_kept(self, ready: BaseTracer) -> None:
        """``get_last_trace`` returns them, inside the block and after it."""
        with ready.trace_context("test") as processor:
            emit_reward(1)
            assert _rewards(ready.get_last_trace()) == [1.0]
        assert _rewards(ready.get_last_trace()) == _rewards(processor.spans) == [1.0]

    async def test_what_is_emitted_outside_belongs_to_no_trace(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Neither before nor after it."""
        rollout = await store.start_rollout("task")
        emit_reward(1)
        async with ready.trace_context("test", store=store, **_ids(rollout)):
            emit_reward(2)
        emit_reward(3)
        assert await _stored_rewards(store, rollout) == [2.0]
        assert _rewards(ready.get_last_trace()) == [2.0]

    def test_trace_run_traces_a_function(self, ready: BaseTracer) -> None:
        """And returns its result."""

        def double(number: int) -> int:
            emit_reward(number)
            return 2 * number

        assert ready.trace_run(double, 2) == 4
        assert _rewards(ready.get_last_trace()) == [2.0]

    # Concurrency

    async def test_concurrent_tasks_keep_their_own_spans(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Trap 11: each with sub-tasks, and each sees its own trace as the last one."""
        rollouts = [await store.start_rollout(n) for n in range(MANY)]
        together = asyncio.Barrier(MANY)

        async def part(value: float) -> None:
            await asyncio.sleep(0)
            emit_reward(value)

        async def run(n: int, rollout: AttemptedRollout) -> None:
            async with ready.trace_context(f"test {n}", store=store, **_ids(rollout)):
                await together.wait()
                await asyncio.gather(*(part(n + k / 10) for k in range(5)))
                await together.wait()
            await together.wait()
            assert _rewards(ready.get_last_trace()) == [n + k / 10 for k in range(5)]

        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*(run(n, rollout) for n, rollout in enumerate(rollouts)))
        for n, rollout in enumerate(rollouts):
            assert await _stored_rewards(store, rollout) == [n + k / 10 for k in range(5)]

    async def test_concurrent_threads_keep_their_own_spans(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Trap 11: each trace in a thread, with one more thread inside that is given its context."""
        rollouts = [await store.start_rollout(n) for n in range(MANY)]
        together = threading.Barrier(MANY, timeout=LIMIT)

        def run(n: int, rollout: AttemptedRollout) -> None:
            with ready.trace_context(f"test {n}", store=store, **_ids(rollout)):
                together.wait()
                emit_reward(n)
                inner = threading.Thread(target=copy_context().run, args=(emit_reward, n + 0.5))
                inner.start()
                inner.join()
                together.wait()
                emit_reward(n + 0.75)

        await _in_threads(run, list(enumerate(rollouts)))
        for n, rollout in enumerate(rollouts):
            assert await _stored_rewards(store, rollout) == [n, n + 0.5, n + 0.75]

    async def test_generators_keep_their_own_spans(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Trap 11: plain generators that take turns, each in its own context; async ones within a trace."""
        rollouts = [await store.start_rollout(n) for n in range(MANY)]

        def steps(n: int, rollout: AttemptedRollout) -> Iterator[None]:
            with ready.trace_context(f"test {n}", store=store, **_ids(rollout)):
                for k in range(3):
                    emit_reward(n + k / 10)
                    yield

        running = [(copy_context(), steps(n, rollout)) for n, rollout in enumerate(rollouts)]
        for _ in range(4):
            for context, generator in running:
                context.run(next, generator, None)
        for n, rollout in enumerate(rollouts):
            assert await _stored_rewards(store, rollout) == [n, n + 0.1, n + 0.2]

        async def parts() -> AsyncIterator[float]:
            for k in range(3):
                with operation("part"):
                    emit_reward(k)
                yield k
                await asyncio.sleep(0)

        rollout = await store.start_rollout("async")
        async with ready.trace_context("test", store=store, **_ids(rollout)):
            assert [k async for k in parts()] == [0, 1, 2]
        assert await _stored_rewards(store, rollout) == [0, 1, 2]

    async def test_a_trace_inside_a_trace_is_one_of_its_own(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """The outer one goes on after it."""
        outer, inner = await store.start_rollout("outer"), await store.start_rollout("inner")
        async with ready.trace_context("outer", store=store, **_ids(outer)):
            emit_reward(1)
            async with ready.trace_context("inner", store=store, **_ids(inner)):
                emit_reward(2)
            emit_reward(3)
        assert await _stored_rewards(store, outer) == [1, 3]
        assert await _stored_rewards(store, inner) == [2]
        spans = await store.query_spans(outer.rollout_id)
        others = await store.query_spans(inner.rollout_id)
        assert not {span.trace_id for span in spans} & {span.trace_id for span in others}

    # Trouble

    async def test_an_error_passes_and_the_spans_are_stored(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """The block's own exception, not another."""
        rollout = await store.start_rollout("task")

        async def fail() -> None:
            async with ready.trace_context("test", store=store, **_ids(rollout)):
                emit_reward(1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await _stored_rewards(store, rollout) == [1]

    async def test_a_cancellation_passes_and_the_spans_are_stored(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Cancelled in the block."""
        rollout = await store.start_rollout("task")
        inside = asyncio.Event()

        async def run() -> None:
            async with ready.trace_context("test", store=store, **_ids(rollout)):
                emit_reward(1)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(run())
        async with asyncio.timeout(LIMIT):
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await _stored_rewards(store, rollout) == [1]

    async def test_a_store_that_refuses_is_an_error_and_the_spans_are_kept(self, ready: BaseTracer) -> None:
        """Written once it is willing again, and once only."""
        store = _Unwilling()
        rollout = await store.start_rollout("task")
        context = ready.trace_context("test", store=store, **_ids(rollout))
        processor = await context.__aenter__()
        emit_reward(1)
        with pytest.raises(TraceError, match="the disk is full"):
            await context.__aexit__(None, None, None)
        assert _rewards(ready.get_last_trace()) == [1]
        store.refuses = False
        await processor.flush()
        await processor.flush()
        assert await _stored_rewards(store, rollout) == [1]
        await store.close()

    async def test_a_slow_store_does_not_hold_up_the_agent(self, ready: BaseTracer) -> None:
        """Trap 14: spans are written in the background, and all of them are there at the end."""
        store = _Slow()
        rollout = await store.start_rollout("task")
        count = FLUSH_SPANS + 10
        async with (
            asyncio.timeout(LIMIT),
            ready.trace_context("test", store=store, **_ids(rollout)),
        ):
            for n in range(count):
                emit_reward(n)
            # The store has been asked and has not answered, and the agent goes on.
            assert await asyncio.to_thread(store.asked.wait, LIMIT)
            assert not store.go_on.is_set()
            emit_reward(count)
            store.go_on.set()
        assert await _stored_rewards(store, rollout) == list(range(count + 1))
        await store.close()

    async def test_a_store_needs_to_know_whose_spans_they_are(
        self, ready: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Without a rollout and an attempt there is nowhere to put them."""
        with pytest.raises(TraceError, match="attempt_id"):
            ready.trace_context("test", store=store, rollout_id="somebody's")

    # Set-up

    async def test_it_can_be_set_up_again(self, tracer: BaseTracer, store: InMemoryLightningStore) -> None:
        """Trap 33: for a second fit in the same process, and for several workers at once."""
        for n in range(3):
            tracer.init()
            for worker in range(2):
                tracer.init_worker(worker)
            tracer.teardown_worker(1)
            rollout = await store.start_rollout(n)
            async with tracer.trace_context("test", store=store, **_ids(rollout)):
                emit_reward(n)
            tracer.teardown_worker(0)
            tracer.teardown()
            assert await _stored_rewards(store, rollout) == [n]

    async def test_one_of_two_users_may_end_first(
        self, tracer: BaseTracer, store: InMemoryLightningStore
    ) -> None:
        """Several runners of a process share a tracer, and each sets it up and tears it down for itself."""
        for worker in range(2):
            tracer.init()
            tracer.init_worker(worker)
        tracer.teardown_worker(1)
        tracer.teardown()
        rollout = await store.start_rollout("task")
        async with tracer.trace_context("test", store=store, **_ids(rollout)):
            emit_reward(0.5)
        tracer.teardown_worker(0)
        tracer.teardown()
        assert await _stored_rewards(store, rollout) == [0.5]

    def test_the_global_provider_stays_what_it_is(self, tracer: BaseTracer) -> None:
        """Trap 16: its processors too."""
        before, processors = trace_api.get_tracer_provider(), _processors()
        tracer.init()
        tracer.init_worker(0)
        with tracer.trace_context("test"):
            assert trace_api.get_tracer_provider() is before
        tracer.teardown_worker(0)
        tracer.teardown()
        assert trace_api.get_tracer_provider() is before
        assert _processors() == processors


def _span_id(span: SpanLike) -> str:
    context = span.context
    if isinstance(span, Span) or context is None:
        raise AssertionError("a processor keeps the spans of the SDK, each with a context")
    return f"{context.span_id:016x}"


def _processors() -> Any:
    multi = getattr(trace_api.get_tracer_provider(), "_active_span_processor", None)
    return getattr(multi, "_span_processors", None)


async def _in_threads(run: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run in threads that all live at once, and raise what they raised."""
    errors: list[BaseException] = []

    def guarded(*each: Any) -> None:
        try:
            run(*each)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=each, daemon=True) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, LIMIT)
    if errors:
        raise errors[0]
