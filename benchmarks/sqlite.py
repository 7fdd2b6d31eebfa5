"""The SQLite store: acknowledged writes against bare SQLite with the same rows and durability, at growing size.

``python -m benchmarks sqlite`` stops at 100,000 stored spans, ``python -m benchmarks --full sqlite`` at 1,000,000.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import table
from lightning_core.store import SqliteLightningStore
from lightning_core.store.base import EnqueueRequest
from lightning_core.store.encoding import EncodedSpan, encode_span
from lightning_core.types import AttemptedRollout, Span

BATCH = 200
ROUNDS = 30
SPANS = 10
SIZES = (10_000, 100_000, 1_000_000)


def batch(rollout: AttemptedRollout, size: int, text: int = 200) -> list[EncodedSpan]:
    """Spans as a model call leaves them, with twice so many characters of text."""
    first = encode_span(
        Span.from_attributes(
            name="ChatCompletion",
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            attributes={"llm.model_name": "m", "input.value": "x" * text, "output.value": "y" * text},
        )
    )
    return [first._replace(span_id=os.urandom(8).hex()) for _ in range(size)]


def fsync(folder: str, number: int = 50) -> float:
    """Seconds of a bare append of 4 KiB that waits for the disk."""
    seconds: list[float] = []
    with Path(folder, "bare").open("wb", buffering=0) as file:
        for _ in range(number):
            begin = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def bare(path: Path, parts: list[list[EncodedSpan]]) -> tuple[float, float]:
    """Wall and CPU seconds a row of ``executemany`` in one transaction a batch, into a table without any index."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS span (r TEXT, a TEXT, no INTEGER, id TEXT, trace TEXT, name TEXT, body TEXT)"
    )
    begin, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO span VALUES (?, ?, ?, ?, ?, ?, ?)", part)
        connection.execute("COMMIT")
    taken = time.perf_counter() - begin, time.process_time() - cpu
    connection.close()
    rows = sum(map(len, parts))
    return taken[0] / rows, taken[1] / rows


async def stored(store: SqliteLightningStore, parts: list[list[EncodedSpan]]) -> tuple[float, float]:
    """Wall and CPU seconds a span of ``add_encoded_spans``, one batch after the other."""
    begin, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        await store.add_encoded_spans(part)
    rows = sum(map(len, parts))
    return (time.perf_counter() - begin) / rows, (time.process_time() - cpu) / rows


async def measure_spans(folder: str) -> None:
    """Print the table of batched span writes, in turns with bare SQLite."""
    store = SqliteLightningStore(str(Path(folder, "spans.db")))
    rows: list[list[str | float]] = []
    for text in (200, 2_000):
        ours: list[tuple[float, float]] = []
        raw: list[tuple[float, float]] = []
        for number in range(5):
            rollout = await store.start_rollout({"task": number})
            parts = [batch(rollout, BATCH, text) for _ in range(ROUNDS)]
            raw.append(bare(Path(folder, "bare.db"), parts))
            ours.append(await stored(store, parts))
        wall = statistics.median(b[0] / a[0] for a, b in zip(ours, raw, strict=True))
        cpu = statistics.median(a[1] / b[1] for a, b in zip(ours, raw, strict=True))
        rows.append(
            [
                f"{2 * text:,}",
                1 / statistics.median(each[0] for each in ours),
                1 / statistics.median(each[0] for each in raw),
                f"{wall:.2f}",
                1e6 * statistics.median(each[1] for each in ours),
                f"{cpu:.2f}",
            ]
        )
    await store.close()
    table(
        [
            "characters",
            "spans/s, acknowledged",
            "bare executemany, rows/s",
            "ratio",
            "CPU µs a span",
            "of bare",
        ],
        rows,
    )


async def fill(store: SqliteLightningStore, size: int) -> None:
    """Bring the store to so many spans, ten to a finished rollout, as many more as it lacks."""
    missing = size - (await store.statistics()).spans
    while missing > 0:
        number = min(missing // SPANS, 200)
        await store.enqueue_rollouts([EnqueueRequest(input={"question": "1 + 1"}, run_id="filled")] * number)
        rollouts = await store.dequeue_rollouts(number)
        await store.add_encoded_spans([span for rollout in rollouts for span in batch(rollout, SPANS)])
        await asyncio.gather(
            *(store.update_attempt(r.rollout_id, r.attempt.attempt_id, status="succeeded") for r in rollouts)
        )
        missing -= number * SPANS


async def cycle(store: SqliteLightningStore, index: int) -> None:
    """One rollout: enqueue, dequeue, ten spans, its end, and reading the spans back."""
    await store.enqueue_rollout({"index": index}, run_id="measured")
    [rollout] = await store.dequeue_rollouts(1, "worker", run_id="measured", request_id=str(index))
    await store.add_encoded_spans(batch(rollout, SPANS))
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id])
    assert len(await store.query_encoded_spans(rollout.rollout_id, "latest")) == SPANS


async def cycles(
    store: SqliteLightningStore, indices: Iterator[int], number: int = 60
) -> tuple[float, float]:
    """Wall and CPU seconds a cycle, one after the other."""
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        await cycle(store, next(indices))
    return (time.perf_counter() - begin) / number, (time.process_time() - cpu) / number


async def measure_sizes(folder: str, sizes: tuple[int, ...]) -> None:
    """Print the table of whole cycles, all sizes in turns, so that a busy machine does not look like a trend."""
    stores: dict[int, SqliteLightningStore] = {}
    for size in sizes:
        stores[size] = SqliteLightningStore(str(Path(folder, f"{size}.db")), synchronous="normal")
        await fill(stores[size], size)
        await stores[size].close()
        stores[size] = SqliteLightningStore(str(Path(folder, f"{size}.db")))
    indices = iter(range(1_000_000))
    results: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for number in range(11):
        for size in sizes:
            taken = await cycles(stores[size], indices)
            if number:
                results[size].append(taken)
    first = results[sizes[0]]
    rows: list[list[str | float]] = []
    for size in sizes:
        wall = statistics.median(one[0] / other[0] for one, other in zip(results[size], first, strict=True))
        cpu = statistics.median(one[1] / other[1] for one, other in zip(results[size], first, strict=True))
        rows.append(
            [
                f"{size:,}",
                1 / statistics.median(one[0] for one in results[size]),
                f"{wall:.2f}",
                1e6 * statistics.median(one[1] for one in results[size]),
                f"{cpu:.2f}",
            ]
        )
    table(["stored spans", "cycles/s, one by one", "time, relative", "CPU µs a cycle", "relative"], rows)
    for store in stores.values():
        await store.close()


async def measure() -> None:
    """Print both tables."""
    # The system's directory for temporary files may be in memory, where durability costs nothing.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        before = fsync(folder)
        await measure_spans(folder)
        print()
        sizes = SIZES if "--full" in sys.argv else SIZES[:2]
        await measure_sizes(folder, sizes)
        print(f"\nbare fsync of 4 KiB: {1e3 * before:.2f} ms before, {1e3 * fsync(folder):.2f} ms after")


def main() -> None:
    """Run the benchmark."""
    asyncio.run(measure())
