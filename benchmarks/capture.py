"""Capture: CPU microseconds that tracing adds to a call of the ``openai`` client, and who takes them."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import table
from lightning_core.store.memory import InMemoryLightningStore

CALLS = 100
ROUNDS = 15
WORDS = "Answer in one word, and think about it for as long as you need before you do so. " * 3

# Answers at once, without reading more than the length, so that the client is what is measured.
SERVER = """
import asyncio, json, sys

ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes, of course."}}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35},
}).encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"

class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\\r\\n\\r\\n")
        if found and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0]):
            self.data = b""
            self.transport.write(HEAD % len(ANSWER) + ANSWER)

async def main():
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()

asyncio.run(main())
"""


@contextmanager
def instant_server() -> Iterator[str]:
    """A server in a process of its own that answers every request at once; yields its base URL."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.stdin.close()


@dataclass
class Case:
    """A prompt of so many messages, and the three ways to send it."""

    client: Any
    tracer: Any
    messages: int

    async def calls(self) -> float:
        """CPU seconds of a call of the client, instrumented or not."""
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": WORDS} for number in range(self.messages)
        ]
        begin = time.process_time()
        for _ in range(CALLS):
            await self.client.chat.completions.create(model="m", messages=messages, temperature=0.5)
        return (time.process_time() - begin) / CALLS

    async def instrumented(self) -> float:
        """The same with the instrumentation on a provider of OpenTelemetry's SDK that keeps nothing."""
        from openinference.instrumentation.openai import OpenAIInstrumentor
        from opentelemetry.sdk.trace import TracerProvider

        instrumentor = OpenAIInstrumentor()
        instrumentor.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
        try:
            return await self.calls()
        finally:
            instrumentor.uninstrument()

    async def traced(self) -> float:
        """The same in a trace of the otel tracer, with the opening of the trace and the storing of its spans."""
        store = InMemoryLightningStore()
        rollout = await store.start_rollout("task")
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        self.tracer.init_worker(0)
        try:
            begin = time.process_time()
            async with self.tracer.trace_context("rollout", store=store, **ids):
                await self.calls()
            seconds = (time.process_time() - begin) / CALLS
        finally:
            self.tracer.teardown_worker(0)
        assert len(await store.query_spans(rollout.rollout_id)) == CALLS + 1
        return seconds


async def in_turns(works: list[Callable[[], Awaitable[float]]]) -> list[list[float]]:
    """The results of several measurements that are made in turns, after one round that does not count."""
    results: list[list[float]] = [[] for _ in works]
    for number in range(ROUNDS + 1):
        for work, each in zip(works, results, strict=True):
            seconds = await work()
            if number:
                each.append(seconds)
    return results


def difference(one: list[float], other: list[float]) -> float:
    """The median of what the one takes longer than the other in the same round, in microseconds."""
    return statistics.median(a - b for a, b in zip(one, other, strict=True)) * 1e6


async def measure(endpoint: str) -> list[list[Any]]:
    """The rows of the table."""
    import openai
    from lightning_tracer_otel import OtelTracer

    rows: list[list[Any]] = []
    tracer = OtelTracer(instrument=["openai"])
    async with openai.AsyncOpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        for messages in (2, 20):
            case = Case(client, tracer, messages)
            bare, instrumented, traced = await in_turns([case.calls, case.instrumented, case.traced])
            rows.append(
                [
                    str(messages),
                    statistics.median(bare) * 1e6,
                    difference(instrumented, bare),
                    difference(traced, bare),
                    difference(traced, instrumented),
                ]
            )
    return rows


def main() -> None:
    """Print the table."""
    with instant_server() as endpoint:
        rows = asyncio.run(measure(endpoint))
    table(
        [
            "messages",
            "bare client, µs",
            "added by the instrumentation",
            "added by the otel tracer, with it",
            "beyond the instrumentation",
        ],
        rows,
    )
