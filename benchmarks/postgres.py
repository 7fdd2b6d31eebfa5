"""The PostgreSQL store: acknowledged writes against bare psycopg with the same rows and durability, at growing size."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.measure import table
from benchmarks.store import fill
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.store.encoding import encode_span
from lightning_core.types import Span

BATCH = 200
ROUNDS = 20
CLIENTS = 8
SPANS = 11


def batch(rollout_id: str, attempt_id: str, size: int, characters: int) -> list[Span]:
    """Spans as a model call leaves them, of about so many characters and some 500 more."""
    return [
        Span.from_attributes(
            name="ChatCompletion",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            attributes={
                "llm.model_name": "m",
                "input.value": "".join(chr(97 + (index * 7919 + n * n) % 26) for n in range(characters)),
            },
        )
        for index in range(size)
    ]


async def bare(url: str, rows: list[list[tuple[str, str, int, str]]], *, copy: bool) -> float:
    """Rows per second of COPY or ``executemany``, one commit a batch, into a table without any index."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS bare (attempt text, id text, sequence int8, body text)"
        )
        await connection.commit()
        begin = time.perf_counter()
        async with connection.cursor() as cursor:
            for part in rows:
                if copy:
                    async with cursor.copy("COPY bare FROM STDIN") as stream:
                        for row in part:
                            await stream.write_row(row)
                else:
                    await cursor.executemany("INSERT INTO bare VALUES (%s, %s, %s, %s)", part)
                await connection.commit()
        return len(rows) * BATCH / (time.perf_counter() - begin)


async def ours(store: LightningStore, batches: list[list[Span]]) -> float:
    """Acknowledged spans per second of ``add_spans``, one batch after the other."""
    begin = time.perf_counter()
    for part in batches:
        await store.add_spans(part)
    return len(batches) * BATCH / (time.perf_counter() - begin)


async def at_once(store: LightningStore, batches: list[list[Span]]) -> float:
    """The same by several clients, encoded already, as a server gets them."""
    encoded = [[encode_span(span) for span in part] for part in batches]

    async def client(number: int) -> None:
        for part in encoded[number::CLIENTS]:
            await store.add_encoded_spans(part)

    begin = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return len(batches) * BATCH / (time.perf_counter() - begin)


async def rollouts(store: LightningStore, number: int, slots: int) -> float:
    """Whole rollouts per second, each with some spans of 4 kB in two batches, read back at the end."""
    requests = [EnqueueRequest(input={"index": index}) for index in range(number)]
    spans = [encode_span(span) for span in batch("r", "a", SPANS, 3_500)]
    begin = time.perf_counter()
    created = await store.enqueue_rollouts(requests)

    async def slot(name: str) -> None:
        while taken := await store.dequeue_rollouts(1, name):
            rollout = taken[0]
            key = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
            own = [span._replace(**key) for span in spans]
            await store.add_encoded_spans(own[: SPANS // 2])
            await store.add_encoded_spans(own[SPANS // 2 :])
            await store.update_attempt(*key.values(), status="succeeded")

    async def algorithm() -> None:
        names = [rollout.rollout_id for rollout in created]
        for part in (names[start : start + 100] for start in range(0, number, 100)):
            await store.wait_for_rollouts(rollout_ids=part)
            for found in await asyncio.gather(*map(store.query_encoded_spans, part)):
                assert len(found) == SPANS

    await asyncio.gather(algorithm(), *(slot(f"slot-{n}") for n in range(slots)))
    return number / (time.perf_counter() - begin)


async def cycles(store: LightningStore, number: int) -> float:
    """Seconds per enqueue, dequeue, span and update, one after the other, each acknowledged."""
    begin = time.perf_counter()
    for index in range(number):
        await store.enqueue_rollout({"index": index})
        rollout = await store.dequeue_rollout("worker")
        assert rollout is not None
        await store.add_spans(batch(rollout.rollout_id, rollout.attempt.attempt_id, 1, 400))
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    return (time.perf_counter() - begin) / number


async def measure(url: str) -> None:
    """Print all tables."""
    from lightning_store_postgres import PostgresLightningStore

    store = PostgresLightningStore(url, schema="benchmark_spans")
    for characters in (400, 3_500):
        single, many, copied, inserted = [], [], [], []
        for number in range(3):
            rollout = await store.start_rollout({"task": number})
            names = (rollout.rollout_id, rollout.attempt.attempt_id)
            batches = [batch(*names, BATCH, characters) for _ in range(2 * ROUNDS)]
            rows = [
                [
                    (span.attempt_id, span.span_id, index, encode_span(span).body)
                    for index, span in enumerate(part)
                ]
                for part in batches[:ROUNDS]
            ]
            copied.append(await bare(url, rows, copy=True))
            inserted.append(await bare(url, rows, copy=False))
            single.append(await ours(store, batches[:ROUNDS]))
            many.append(await at_once(store, batches[ROUNDS:]))
        raw = statistics.median(copied)
        print(f"\nspans of {characters + 500:,} characters\n")
        table(
            ["", "rows/s, acknowledged", "ratio to COPY"],
            [
                ["bare COPY with commit", raw, "1.00"],
                [
                    "bare executemany with commit",
                    statistics.median(inserted),
                    f"{statistics.median(inserted) / raw:.2f}",
                ],
                [
                    "add_spans, one caller",
                    statistics.median(single),
                    f"{statistics.median(single) / raw:.2f}",
                ],
                [
                    f"add_encoded_spans, {CLIENTS} callers",
                    statistics.median(many),
                    f"{statistics.median(many) / raw:.2f}",
                ],
            ],
        )
    print()
    speed = statistics.median([await rollouts(store, 1_000, 64) for _ in range(3)])
    table([f"rollouts/s with {SPANS} spans of 4 kB", "spans/s"], [[speed, speed * SPANS]])
    await store.close()
    print()
    rows = []
    first = None
    store = PostgresLightningStore(url, schema="benchmark_cycles")
    for size in (1_000, 10_000):
        await fill(store, size)
        seconds = statistics.median([await cycles(store, 50) for _ in range(5)])
        first = first or seconds
        rows.append([f"{size:,}", 1 / seconds, f"{seconds / first:.2f}"])
    table(["stored rollouts", "cycles/s, acknowledged one by one", "cost, relative"], rows)
    await store.close()


def main() -> None:
    """Run the benchmark on a server of its own."""
    from lightning_store_postgres.testing import PostgresServer

    with PostgresServer() as server:
        asyncio.run(measure(server.url))
