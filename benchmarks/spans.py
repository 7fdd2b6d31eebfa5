"""Span capture: CPU microseconds of a span, from its start until it is stored in memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks.measure import table
from lightning_core.plugin import resolve
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.capture import current_trace, private_provider

NUMBER = 2_000


def bare() -> float:
    """CPU seconds of a span that OpenTelemetry's SDK records and nobody keeps."""
    tracer = private_provider().get_tracer("benchmark")
    begin = time.process_time()
    for _ in range(NUMBER):
        tracer.start_span("call", attributes={"model": "m", "tokens": 7}).end()
    return (time.process_time() - begin) / NUMBER


async def captured(tracer: Any) -> float:
    """CPU seconds of a span in a trace that is stored at its end."""
    store = InMemoryLightningStore()
    rollout = await store.start_rollout("task")
    begin = time.process_time()
    async with tracer.trace_context(
        "trace", store=store, rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id
    ):
        processor = current_trace()
        assert processor is not None
        assert processor.tracer is not None
        for _ in range(NUMBER):
            processor.tracer.start_span("call", attributes={"model": "m", "tokens": 7}).end()
    seconds = (time.process_time() - begin) / NUMBER
    assert len(await store.query_spans(rollout.rollout_id)) >= NUMBER
    return seconds


async def measure() -> None:
    """Print the table."""
    rows = []
    for name in ("dummy", "otel"):
        try:
            tracer = resolve("tracer", name)
        except LookupError as error:
            print(f"{name}: {error}")
            continue
        tracer.init()
        tracer.init_worker(0)
        raw, ours = [], []
        for number in range(8):
            one, other = bare(), await captured(tracer)
            if number:
                raw.append(one)
                ours.append(other)
        rows.append(
            [
                name,
                statistics.median(ours) * 1e6,
                statistics.median(raw) * 1e6,
                f"{statistics.median(b / a for a, b in zip(raw, ours, strict=True)):.2f}",
            ]
        )
        tracer.teardown_worker(0)
        tracer.teardown()
    table(["tracer", "µs per stored span", "µs per bare span of the SDK", "ratio"], rows)


def main() -> None:
    """Run the benchmark."""
    asyncio.run(measure())
