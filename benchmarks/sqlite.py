"""The SQLite store: acknowledged writes against bare SQLite with the same rows and durability, at growing size."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import table
from benchmarks.store import fill
from lightning_core.store import SqliteLightningStore
from lightning_core.store.base import LightningStore
from lightning_core.types import Span

BATCH = 200
ROUNDS = 30


def batch(rollout_id: str, attempt_id: str, size: int = BATCH) -> list[Span]:
    """Spans as a model call leaves them, about 1 kB each."""
    return [
        Span.from_attributes(
            name="ChatCompletion",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            attributes={"llm.model_name": "m", "input.value": "x" * 200, "output.value": "y" * 200},
        )
        for _ in range(size)
    ]


def bare(path: Path, rows: list[list[tuple[str, str, int, str]]]) -> float:
    """Rows per second of ``executemany`` in one transaction a batch, into a table without any index."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS span (attempt TEXT, id TEXT, sequence INTEGER, body TEXT)")
    begin = time.perf_counter()
    for part in rows:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO span VALUES (?, ?, ?, ?)", part)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - begin
    connection.close()
    return len(rows) * BATCH / seconds


async def ours(store: LightningStore, batches: list[list[Span]]) -> float:
    """Acknowledged spans per second of ``add_spans``, one batch after the other."""
    begin = time.perf_counter()
    for part in batches:
        await store.add_spans(part)
    return len(batches) * BATCH / (time.perf_counter() - begin)


async def cycles(store: LightningStore, number: int) -> float:
    """Seconds per enqueue, dequeue, span and update, one after the other, each acknowledged."""
    begin = time.perf_counter()
    for index in range(number):
        await store.enqueue_rollout({"index": index})
        rollout = await store.dequeue_rollout("worker")
        assert rollout is not None
        await store.add_spans(batch(rollout.rollout_id, rollout.attempt.attempt_id, 1))
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    return (time.perf_counter() - begin) / number


async def measure() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteLightningStore(str(Path(folder, "spans.db")))
        raw, stored = [], []
        for number in range(5):
            rollout = await store.start_rollout({"task": number})
            names = (rollout.rollout_id, rollout.attempt.attempt_id)
            batches = [batch(*names) for _ in range(ROUNDS)]
            rows = [
                [
                    (span.attempt_id, span.span_id, index, span.model_dump_json())
                    for index, span in enumerate(part)
                ]
                for part in batches
            ]
            raw.append(bare(Path(folder, "bare.db"), rows))
            stored.append(await ours(store, batches))
        ratio = statistics.median(one / other for one, other in zip(stored, raw, strict=True))
        table(
            ["spans/s, acknowledged", "bare executemany, rows/s", "ratio"],
            [[statistics.median(stored), statistics.median(raw), f"{ratio:.2f}"]],
        )
        await store.close()
        print()
        rows = []
        first = None
        store = SqliteLightningStore(str(Path(folder, "cycles.db")))
        for size in (1_000, 10_000, 100_000):
            await fill(store, size)
            seconds = statistics.median([await cycles(store, 50) for _ in range(5)])
            first = first or seconds
            rows.append([f"{size:,}", 1 / seconds, f"{seconds / first:.2f}"])
        table(["stored rollouts", "cycles/s, acknowledged one by one", "cost, relative"], rows)
        await store.close()


def main() -> None:
    """Run the benchmark."""
    asyncio.run(measure())
