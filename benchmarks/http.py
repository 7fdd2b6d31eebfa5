"""The HTTP store: acknowledged spans per second, latency of an enqueue under load, and cost and memory at growing size.

``python -m benchmarks http``. Every figure is set against a raw limit measured in the same run: a bare SQLite insert
loop with the same rows and durability, and a bare echo of the same bytes through the same server and client libraries.
The server and every client are processes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import table
from benchmarks.sqlite import bare
from lightning_core.store.base import EnqueueRequest
from lightning_core.store.encoding import encode_span
from lightning_core.types import Span

TOKEN = "benchmark"
CLIENTS = 4
SECONDS = 5.0
BATCH = 200
TARGET = 8_000
"""Spans per second that all clients together are to get acknowledged."""
_spawn = multiprocessing.get_context("spawn")


def make_batch(rollout_id: str, attempt_id: str, size: int = BATCH) -> list[Span]:
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


def _serve(spec: str, link: Connection) -> None:
    """Serve a store, or echo for the empty specification, until the other end hangs up."""
    if spec:
        from lightning_store_http import LightningStoreServer

        from lightning_core.execution.garbage import rare_collections
        from lightning_core.plugin import resolve

        # As `lightning-core store serve` does.
        with rare_collections(), LightningStoreServer(resolve("store", spec), token=TOKEN) as server:
            link.send(server.url)
            _until_hang_up(link)
        return
    import threading

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def echo(request: Request) -> Response:
        return Response(str(len(await request.body())))

    config = uvicorn.Config(
        Starlette(routes=[Route("/", echo, methods=["POST"])]), port=0, log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        threading.Event().wait(0.01)
    link.send(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    _until_hang_up(link)
    server.should_exit = True


def _until_hang_up(link: Connection) -> None:
    try:
        link.recv()
    except EOFError:
        return


@contextmanager
def serving(spec: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of the store in a process of its own: its URL and the process."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(spec, there))
    process.start()
    there.close()
    try:
        yield here.recv(), psutil.Process(process.pid)
    finally:
        here.close()
        process.join()


def _client(url: str) -> Any:
    from lightning_store_http import LightningStoreClient

    return LightningStoreClient(url, token=TOKEN)


def _write(url: str, link: Connection, rate: float = 0.0) -> None:
    """Write batches of spans for some seconds; sends how many were acknowledged and how long that took.

    ``rate`` is in spans per second; 0 is as fast as they are acknowledged.
    """

    async def write() -> tuple[int, float]:
        client = _client(url)
        rollout = await client.start_rollout({"task": 1})
        names = (rollout.rollout_id, rollout.attempt.attempt_id)
        # In a burst where nobody waits for it, else one by one: the clients share the cores with the server.
        many = 1 if rate else 40
        batches = [make_batch(*names) for _ in range(many)]
        await client.add_spans(batches.pop())
        link.send("ready")
        link.recv()
        if rate:
            # Clients that know nothing of each other do not write in step.
            await asyncio.sleep(random.uniform(0, BATCH / rate))
        number, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            batches = batches or [make_batch(*names) for _ in range(many)]
            number += 1
            await client.add_spans(batches.pop())
            if rate:
                await asyncio.sleep(begin + number * BATCH / rate - time.perf_counter())
        seconds = time.perf_counter() - begin
        await client.close()
        return number * BATCH, seconds

    link.send(asyncio.run(write()))


def _echo(url: str, link: Connection) -> None:
    """The same bytes to the echo server."""
    import aiohttp

    body = "".join(encode_span(span).body for span in make_batch("ro-1", "at-1")).encode()

    async def write() -> tuple[int, float]:
        async with aiohttp.ClientSession() as session:
            link.send("ready")
            link.recv()
            number, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < SECONDS:
                async with session.post(url, data=body) as answer:
                    await answer.read()
                number += 1
        return number * 200, time.perf_counter() - begin

    link.send(asyncio.run(write()))


def _write_steadily(url: str, link: Connection) -> None:
    """Write a client's share of the target, and no more."""
    _write(url, link, TARGET / CLIENTS)


def _enqueue(url: str, link: Connection) -> None:
    """Enqueue one rollout after the other, with pauses, and send the seconds that each took."""

    async def enqueue() -> list[float]:
        client = _client(url)
        await client.statistics()
        link.send("ready")
        link.recv()
        taken: list[float] = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            begin = time.perf_counter()
            await client.enqueue_rollout({"task": 1})
            taken.append(time.perf_counter() - begin)
            await asyncio.sleep(0.01)
        await client.close()
        return taken

    link.send(asyncio.run(enqueue()))


def together(*works: tuple[Any, str]) -> list[Any]:
    """Run each function with its URL in a process of its own, all beginning at once, and return what they send."""
    links, processes = [], []
    for work, url in works:
        here, there = _spawn.Pipe()
        process = _spawn.Process(target=work, args=(url, there))
        process.start()
        there.close()
        links.append(here)
        processes.append(process)
    for link in links:
        link.recv()
    for link in links:
        link.send("go")
    results = [link.recv() for link in links]
    for process in processes:
        process.join()
    return results


def _rate(results: list[tuple[int, float]]) -> float:
    return sum(number / seconds for number, seconds in results)


def throughput(folder: Path, stores: dict[str, str]) -> None:
    """Spans per second and latency, beside the raw limits."""
    rows: list[list[Any]] = []
    spans = make_batch("ro-1", "at-1")
    raw = [[encode_span(span) for span in spans]] * 40
    limit = 1 / statistics.median(bare(folder / f"bare-{number}.db", raw)[0] for number in range(3))
    with serving("") as (url, _):
        echo = _rate(together(*[(_echo, url)] * CLIENTS))
    for (name, spec), write in itertools.product(stores.items(), (_write, _write_steadily)):
        with serving(spec) as (url, process):
            before = sum(process.cpu_times()[:2])
            *written, taken = together(*[(write, url)] * CLIENTS, (_enqueue, url))
            cpu = sum(process.cpu_times()[:2]) - before
            memory = process.memory_info().rss
        rate = _rate(written)
        number = sum(one for one, _ in written)
        taken.sort()
        rows.append(
            [
                name,
                "all they can" if write is _write else f"{TARGET:,}/s",
                rate,
                f"{rate / limit:.2f}",
                f"{rate / echo:.2f}",
                cpu / number * 1e6,
                statistics.median(taken) * 1000,
                taken[int(len(taken) * 0.99)] * 1000,
                memory / 2**20,
            ]
        )
    print(f"{CLIENTS} clients, batches of {len(spans)} spans of about 1 kB; bare SQLite {limit:,.0f} rows/s,")
    print(f"bare echo of the same bytes {echo:,.0f} spans/s\n")
    table(
        [
            "store",
            "clients write",
            "spans/s",
            "of bare SQLite",
            "of bare echo",
            "server CPU, µs/span",
            "enqueue meanwhile, median ms",
            "p99 ms",
            "server's memory, MiB",
        ],
        rows,
    )


async def _steps(url: str, number: int) -> float:
    """Seconds of one step: enqueue, dequeue, 10 spans, report and read back, eight at a time."""
    client = _client(url)

    async def one() -> None:
        await client.enqueue_rollout({"task": 1})
        rollout = await client.dequeue_rollout("worker")
        assert rollout is not None
        await client.add_spans(make_batch(rollout.rollout_id, rollout.attempt.attempt_id, 10))
        await client.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        await client.query_spans(rollout.rollout_id)

    async def several(times: int) -> None:
        for _ in range(times):
            await one()

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(several(number // 8))
    seconds = (time.perf_counter() - begin) / number
    await client.close()
    return seconds


async def _fill(spec: str, spans: int) -> None:
    """Bring a store to so many spans, ten for each rollout."""
    from lightning_core.plugin import resolve

    store = resolve("store", spec)
    missing = (spans - (await store.statistics()).spans) // 10
    for start in range(0, missing, 500):
        number = min(500, missing - start)
        await store.enqueue_rollouts([EnqueueRequest(input={"task": 1})] * number)
        taken = await store.dequeue_rollouts(number, "filler")
        await store.add_spans(
            [
                Span.from_attributes(
                    name="call",
                    rollout_id=one.rollout_id,
                    attempt_id=one.attempt.attempt_id,
                    attributes={"text": "x" * 200},
                )
                for one in taken
                for _ in range(10)
            ]
        )
        async with asyncio.TaskGroup() as group:
            for one in taken:
                group.create_task(
                    store.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded")
                )
    await store.close()


def growth(spec: str, sizes: list[int]) -> None:
    """Cost of a step and the server's memory as the store grows."""
    rows: list[list[Any]] = []
    first = 0.0
    for size in sizes:
        asyncio.run(_fill(spec, size))
        with serving(spec) as (url, process):
            asyncio.run(_steps(url, 80))
            begin = sum(process.cpu_times()[:2])
            measured = [asyncio.run(_steps(url, 160)) for _ in range(5)]
            cpu = (sum(process.cpu_times()[:2]) - begin) / (5 * 160)
            memory = process.memory_info().rss
        seconds = statistics.median(measured)
        first = first or cpu
        rows.append([f"{size:,}", 1 / seconds, cpu * 1000, f"{cpu / first:.2f}", memory / 2**20])
    table(["stored spans", "steps/s", "server CPU, ms/step", "cost, relative", "server's memory, MiB"], rows)


def main() -> None:
    """Run the benchmark; ``--full`` for the million spans, ``--postgres`` for that store too."""
    print(f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {"memory": "memory", "sqlite": f"sqlite:///{folder / 'spans.db'}"}
        if "--postgres" in sys.argv:
            from lightning_store_postgres.testing import PostgresServer

            with PostgresServer() as postgres:
                throughput(folder, stores | {"postgres": postgres.url})
        else:
            throughput(folder, stores)
        print()
        growth(
            f"sqlite:///{folder / 'grown.db'}",
            [10_000, 1_000_000] if "--full" in sys.argv else [10_000, 100_000],
        )


if __name__ == "__main__":
    main()
