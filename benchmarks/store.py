"""The memory store: whole cycles and single spans at 1,000, 10,000 and 100,000 stored rollouts."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.measure import table
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.capture import private_provider

SIZES = [1_000, 10_000, 100_000]


async def fill(store: LightningStore, size: int) -> None:
    """Bring the store to ``size`` finished rollouts, as many more as it lacks."""
    missing = size - sum((await store.statistics()).rollouts.values())
    while missing > 0:
        number = min(missing, 1_000)
        await store.enqueue_rollouts([EnqueueRequest(input={"question": "1 + 1"}) for _ in range(number)])
        for rollout in await store.dequeue_rollouts(number):
            await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        missing -= number


async def cycles(store: LightningStore, number: int) -> float:
    """CPU seconds per enqueue, dequeue, span and update."""
    tracer = private_provider().get_tracer("benchmark")
    spans = []
    for _ in range(number):
        span = tracer.start_span("call", attributes={"model": "m", "tokens": 7})
        span.end()
        spans.append(span)
    begin = time.process_time()
    for index in range(number):
        await store.enqueue_rollout({"question": "1 + 1", "index": index})
        rollout = await store.dequeue_rollout("worker")
        assert rollout is not None
        attempt_id = rollout.attempt.attempt_id
        await store.add_otel_span(rollout.rollout_id, attempt_id, spans[index])
        await store.update_attempt(rollout.rollout_id, attempt_id, status="succeeded")
    return (time.process_time() - begin) / number


async def spans(store: LightningStore, number: int) -> float:
    """CPU seconds per ``add_otel_span``."""
    tracer = private_provider().get_tracer("benchmark")
    ended = []
    for _ in range(number):
        span = tracer.start_span("call", attributes={"model": "m", "tokens": 7})
        span.end()
        ended.append(span)
    rollout = await store.start_rollout({"question": "1 + 1"})
    begin = time.process_time()
    for span in ended:
        await store.add_otel_span(rollout.rollout_id, rollout.attempt.attempt_id, span)
    seconds = (time.process_time() - begin) / number
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    return seconds


async def waiting() -> float:
    """Seconds that waiting for 10,000 rollouts takes with ``timeout=0.2``."""
    store = InMemoryLightningStore()
    rollouts = await store.enqueue_rollouts([EnqueueRequest(input=index) for index in range(10_000)])
    names = [rollout.rollout_id for rollout in rollouts]
    begin = time.perf_counter()
    await store.wait_for_rollouts(rollout_ids=names, timeout=0.2)
    return time.perf_counter() - begin


async def measure() -> None:
    """Measure all sizes in turns, on one store each, and print the table."""
    stores = {size: InMemoryLightningStore() for size in SIZES}
    for size, store in stores.items():
        await fill(store, size)
    whole: dict[int, list[float]] = {size: [] for size in SIZES}
    single: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(8):
        for size, store in stores.items():
            one, other = await cycles(store, 500), await spans(store, 1_000)
            if number:
                whole[size].append(one)
                single[size].append(other)
    first_whole, first_single = (statistics.median(each[SIZES[0]]) for each in (whole, single))
    rows = []
    for size in SIZES:
        one, other = statistics.median(whole[size]), statistics.median(single[size])
        rows.append(
            [f"{size:,}", 1 / one, f"{one / first_whole:.2f}", 1 / other, f"{other / first_single:.2f}"]
        )
    table(["stored rollouts", "cycles/s", "cost, relative", "add_otel_span/s", "cost, relative"], rows)
    took = statistics.median([await waiting() for _ in range(5)])
    print(f"\nwait_for_rollouts on 10,000 ids with timeout=0.2 returned after {took:.3f} s")


def main() -> None:
    """Run the benchmark."""
    asyncio.run(measure())
