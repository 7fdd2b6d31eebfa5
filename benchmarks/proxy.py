"""The LLM proxy: requests per second, and what it adds to a call, beside a bare pass-through on the same HTTP stack.

``python -m benchmarks proxy``. The upstream answers at once. Upstream, proxy, pass-through and client are processes of
their own, and their CPU times are those of one core. The proxy records every call in a store.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil

from benchmarks.measure import table

_spawn = multiprocessing.get_context("spawn")

STREAMS = 16
CHUNKS = 20
TOKENS = 32
SECONDS = 5.0
ROUNDS = 3
MESSAGES = [{"role": "user", "content": "Tell me about the sea. " * 20}]


def _answer() -> bytes:
    """An answer of TOKENS tokens as vLLM gives it with ids and log-probabilities."""
    content = [
        {"token": "word", "logprob": -0.5, "bytes": [119, 111, 114, 100], "top_logprobs": []}
        for _ in range(TOKENS)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "word" * TOKENS},
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "token_ids": list(range(TOKENS)),
    }
    usage = {"prompt_tokens": 120, "completion_tokens": TOKENS, "total_tokens": 120 + TOKENS}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
            "prompt_token_ids": list(range(120)),
        }
    ).encode()


def _chunk(number: int) -> bytes:
    entry = {"token": "word", "logprob": -0.5, "bytes": [119, 111, 114, 100], "top_logprobs": []}
    choice = {
        "index": 0,
        "delta": {"content": "word"},
        "logprobs": {"content": [entry]},
        "finish_reason": None,
        "token_ids": [number],
    }
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _run(serve: Callable[[], Any]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())


async def _until_hang_up(link: Connection) -> None:
    await asyncio.to_thread(_wait, link)


def _wait(link: Connection) -> None:
    try:
        link.recv()
    except EOFError:
        return


def _upstream(link: Connection) -> None:
    """Answers at once; a stream has one chunk after another, with a pause between them."""
    from aiohttp import web

    whole, chunks = _answer(), [_chunk(number) for number in range(CHUNKS)]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if b'"stream":true' not in body:
            return web.Response(body=whole, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.005)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(
            web.Server(answer, access_log=None), "127.0.0.1", 0
        )
        link.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await _until_hang_up(link)

    _run(serve)


def _bare(link: Connection) -> None:
    """Passes requests on, and reads nothing of them."""
    import aiohttp
    from aiohttp import web

    upstream = link.recv()

    async def serve() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

            async def answer(request: web.BaseRequest) -> web.StreamResponse:
                body = await request.read()
                headers = {"Content-Type": "application/json"}
                async with session.post(
                    upstream + "/chat/completions", data=body, headers=headers
                ) as response:
                    if response.content_type != "text/event-stream":
                        data = await response.read()
                        return web.Response(body=data, content_type="application/json")
                    passed = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                    await passed.prepare(request)
                    async for data in response.content.iter_any():
                        await passed.write(data)
                    await passed.write_eof()
                    return passed

            server = await asyncio.get_running_loop().create_server(
                web.Server(answer, access_log=None), "127.0.0.1", 0
            )
            link.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            await _until_hang_up(link)

    _run(serve)


def _proxy(link: Connection) -> None:
    """The proxy, with the store that it is told."""
    from lightning_llm_proxy import LLMProxy

    from lightning_core.execution.garbage import rare_collections
    from lightning_core.plugin import resolve

    upstream, spec = link.recv()

    async def serve() -> None:
        store = resolve("store", spec)
        rollout = await store.start_rollout({"task": 1})
        begin = time.perf_counter()
        models = [{"name": "m", "base_url": upstream, "engine": "vllm"}]
        # As in a run, and in `lightning-core proxy serve`.
        with rare_collections(), LLMProxy(models, store) as proxy:
            started = time.perf_counter() - begin
            url = proxy.as_resource().get_base_url(rollout.rollout_id, rollout.attempt.attempt_id)
            link.send((url, started))
            await _until_hang_up(link)
            await proxy.flush()
            link.send((proxy.written, proxy.lost))
        await store.close()

    asyncio.run(serve())


def _client(link: Connection) -> None:
    """Calls an address as often as it can, or as streams, and sends what each took."""
    import aiohttp

    body = {"model": "m", "messages": MESSAGES}

    async def throughput(session: aiohttp.ClientSession, url: str) -> tuple[int, float]:
        data = json.dumps(body, separators=(",", ":"))
        end = time.perf_counter() + SECONDS
        begin, count = time.perf_counter(), 0

        async def call() -> None:
            nonlocal count
            while time.perf_counter() < end:
                async with session.post(
                    url, data=data, headers={"Content-Type": "application/json"}
                ) as answer:
                    assert answer.status == 200
                    await answer.read()
                count += 1

        await asyncio.gather(*[call() for _ in range(STREAMS)])
        return count, time.perf_counter() - begin

    async def streams(session: aiohttp.ClientSession, url: str) -> tuple[list[float], list[float]]:
        data = json.dumps({**body, "stream": True}, separators=(",", ":"))
        first: list[float] = []
        whole: list[float] = []
        end = time.perf_counter() + SECONDS

        async def call(number: int) -> None:
            # Not all at the same moment, which no client does.
            await asyncio.sleep(number * 0.007)
            while time.perf_counter() < end:
                begin = time.perf_counter()
                async with session.post(
                    url, data=data, headers={"Content-Type": "application/json"}
                ) as answer:
                    await answer.content.readany()
                    first.append(time.perf_counter() - begin)
                    await answer.read()
                whole.append(time.perf_counter() - begin)

        await asyncio.gather(*[call(number) for number in range(STREAMS)])
        return first, whole

    async def work() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                try:
                    kind, url = await asyncio.to_thread(link.recv)
                except EOFError:
                    return
                call = throughput if kind == "throughput" else streams
                link.send(await call(session, f"{url}/chat/completions"))

    _run(work)


@contextmanager
def started(
    work: Callable[[Connection], None], *messages: Any
) -> Iterator[tuple[Connection, psutil.Process]]:
    """A process, and the way to talk to it."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=work, args=(there,))
    process.start()
    there.close()
    try:
        for message in messages:
            here.send(message)
        yield here, psutil.Process(process.pid)
    finally:
        here.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def measure(folder: str, spec: str) -> None:
    """One table for one store."""
    spec = spec.format(folder=folder)
    with (
        started(_upstream) as (up, _),
        started(_client) as (client, _),
    ):
        upstream = up.recv()
        with (
            started(_bare, upstream) as (bare, bare_process),
            started(_proxy, (upstream, spec)) as (ours, process),
        ):
            bare_url = bare.recv()
            url, start_seconds = ours.recv()
            ways = {
                "direct": (upstream, None),
                "bare pass-through": (bare_url, bare_process),
                "gateway": (url, process),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            cpus: dict[str, list[float]] = {name: [] for name in ways}
            firsts: dict[str, list[float]] = {name: [] for name in ways}
            wholes: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS + 1):
                for name, (address, server) in ways.items():
                    before = _cpu(server) if server is not None else 0.0
                    client.send(("throughput", address))
                    count, seconds = client.recv()
                    cpu = (_cpu(server) - before) / count if server is not None else 0.0
                    client.send(("streams", address))
                    first, whole = client.recv()
                    if number:
                        rates[name].append(count / seconds)
                        cpus[name].append(cpu)
                        firsts[name] += first
                        wholes[name] += whole
            ours.send("end")
            written, lost = ours.recv()
    bare_cpu = statistics.median(cpus["bare pass-through"])
    rows: list[list[Any]] = []
    for name in ways:
        cpu = statistics.median(cpus[name])
        row: list[Any] = [name, statistics.median(rates[name])]
        row += [f"{1 / cpu:,.0f}", f"{bare_cpu / cpu:.2f}"] if cpu else ["", ""]
        for values, direct in ((firsts[name], firsts["direct"]), (wholes[name], wholes["direct"])):
            row += [_added(values, direct, 0.5), _added(values, direct, 0.99)]
        rows.append(row)
    print(
        f"store {spec.partition(':')[0]}; {STREAMS} at once; {written} spans written, {lost} lost; ", end=""
    )
    print(f"started in {start_seconds * 1000:.0f} ms\n")
    table(
        [
            "way",
            "requests/s",
            "per s of its CPU",
            "of bare",
            "first chunk +ms, median",
            "p99",
            "whole stream +ms, median",
            "p99",
        ],
        rows,
    )
    print()


def _added(values: list[float], direct: list[float], share: float) -> str:
    def at(numbers: list[float]) -> float:
        return sorted(numbers)[min(len(numbers) - 1, int(len(numbers) * share))]

    return f"{(at(values) - at(direct)) * 1000:.2f}"


def main() -> None:
    """Run the benchmark; ``--full`` for a SQLite store too."""
    print(f"{os.cpu_count()} cores\n")
    specs = ["memory", "sqlite:///{folder}/spans.db"] if "--full" in sys.argv else ["memory"]
    for spec in specs:
        with tempfile.TemporaryDirectory() as folder:
            measure(folder, spec)


if __name__ == "__main__":
    main()
