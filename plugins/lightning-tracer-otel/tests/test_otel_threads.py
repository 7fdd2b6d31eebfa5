"""Threads and pools: work that an agent hands over belongs to its trace, and to no other."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from lightning_tracer_otel import OtelTracer

from lightning_core.emitter import emit_message, emit_reward, get_reward_value

PLAIN = (threading.Thread.start, ThreadPoolExecutor.submit)


def is_plain() -> bool:
    return (threading.Thread.start, ThreadPoolExecutor.submit) == PLAIN


@pytest.fixture
def tracer():
    tracer = OtelTracer(instrument=[])
    tracer.init_worker(0)
    assert not is_plain()
    yield tracer
    tracer.teardown_worker(0)
    assert is_plain()


class Worker(threading.Thread):
    """Overrides ``run``, as many do."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def run(self):
        emit_reward(self.value)


def rewards(trace) -> list[float | None]:
    return [get_reward_value(span) for span in trace.spans if span.name == "lightning.reward"]


def run_thread(thread: threading.Thread) -> None:
    thread.start()
    thread.join()


def test_threads_of_an_agent_belong_to_its_trace(tracer):
    """Trap 11."""
    with tracer.trace_context() as trace:
        run_thread(threading.Thread(target=emit_reward, args=(1,)))
        run_thread(threading.Timer(0, emit_reward, (2,)))
        run_thread(Worker(3))
        run_thread(threading.Thread(target=lambda: run_thread(Worker(4))))
    assert rewards(trace) == [1, 2, 3, 4]
    run_thread(Worker(5))
    assert rewards(trace) == [1, 2, 3, 4]


def test_work_in_a_pool_belongs_to_the_trace_that_submits_it(tracer):
    """Trap 11."""
    with ThreadPoolExecutor(2) as pool:
        pool.submit(emit_message, "outside").result()
        for _ in range(2):
            with tracer.trace_context() as trace:
                pool.submit(emit_reward, 3).result()
                assert [span.attributes["reward"] for span in pool.map(emit_reward, [4, 5])] == [4.0, 5.0]
            assert sorted(rewards(trace)) == [3, 4, 5]
        pool.submit(emit_message, "outside").result()
        assert len(trace.spans) == 4


def test_the_workers_of_a_pool_belong_to_nobody_even_after_the_tracer():
    tracer = OtelTracer(instrument=[])
    tracer.init_worker(0)
    with ThreadPoolExecutor(1) as pool:
        with tracer.trace_context() as trace:
            pool.submit(emit_reward, 1).result()
        tracer.teardown_worker(0)
        assert is_plain()
        pool.submit(emit_reward, 2).result()
    assert rewards(trace) == [1]


async def test_a_shared_pool_serves_concurrent_rollouts(tracer):
    count = 50
    together = asyncio.Barrier(count)
    with ThreadPoolExecutor(8) as pool:

        async def run(n):
            async with tracer.trace_context() as trace:
                await together.wait()
                loop = asyncio.get_running_loop()
                await asyncio.gather(*(loop.run_in_executor(pool, emit_reward, n) for _ in range(4)))
            return rewards(trace)

        assert await asyncio.gather(*(run(n) for n in range(count))) == [[n] * 4 for n in range(count)]


def test_a_thread_made_before_and_started_after_the_set_up_runs():
    before = Worker(1)
    tracer = OtelTracer(instrument=[])
    with tracer.trace_context() as trace:
        run_thread(before)
    tracer.teardown()
    assert rewards(trace) == [1]
    late = Worker(2)
    tracer.init_worker(0)
    tracer.teardown_worker(0)
    run_thread(late)
    assert rewards(trace) == [1]


def test_a_finished_thread_does_not_keep_its_trace(tracer):
    thread = Worker(1)
    with tracer.trace_context() as trace:
        run_thread(thread)
    assert "run" not in vars(thread)
    gone = weakref.ref(trace)
    del trace
    with tracer.trace_context():
        pass
    gc.collect()
    assert gone() is None


def test_an_error_in_a_pool_is_its_own(tracer):
    def fail():
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool, tracer.trace_context(), pytest.raises(ZeroDivisionError):
        pool.submit(fail).result()
    with pytest.raises(RuntimeError, match="after shutdown"), tracer.trace_context():
        pool.submit(fail)


def test_what_another_library_wraps_around_it_stays_and_it_is_never_doubled(monkeypatch):
    started = []
    tracer = OtelTracer(instrument=[])
    tracer.init_worker(0)
    ours = threading.Thread.start

    def others(self):
        started.append(self)
        ours(self)

    others.__wrapped__ = ours
    threading.Thread.start = others
    try:
        tracer.teardown_worker(0)
        assert threading.Thread.start is others
        with tracer.trace_context() as trace:
            assert threading.Thread.start is others
            run_thread(Worker(1))
        assert rewards(trace) == [1]
        tracer.teardown()
        run_thread(Worker(2))
        assert len(started) == 2
        assert rewards(trace) == [1]
    finally:
        threading.Thread.start = ours
        tracer.init_worker(0)
        tracer.teardown_worker(0)
    assert is_plain()


def test_threads_are_left_alone_if_asked():
    tracer = OtelTracer(instrument=[], propagate_threads=False)
    tracer.init_worker(0)
    assert is_plain()
    with tracer.trace_context() as trace:
        run_thread(Worker(1))
    assert [span.name for span in trace.spans] == ["trace"]
    tracer.teardown_worker(0)
