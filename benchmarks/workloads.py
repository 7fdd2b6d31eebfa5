"""Six workloads through the client-server strategy: tasks per second against the ceiling that their sleeps set.

``python -m benchmarks.workloads [NAME ...] --store sqlite``. An agent draws a number of rounds; a round is
one span with two nested ones, each of which sleeps and carries random attributes, and often a reward. The algorithm
enqueues, waits, reads every rollout's spans and checks that its task and its final reward are there. Every rollout,
span and check goes over HTTP to a server with the given store, the algorithm's excepted, which holds the store itself.
The limit that is found in the same run is a bare asyncio loop of the same agents: what it would do with every core.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from benchmarks.measure import table
from lightning_core import LLM, Trainer, algo, rollout
from lightning_core.emitter import emit_reward, find_final_reward, operation
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.types import Span


class Workload(NamedTuple):
    """One workload: how many rollouts run at once, how long each may be, and how the algorithm feeds them.

    ``longest_sleep`` is in seconds, ``target`` in tasks per second. The algorithm keeps ``in_flight`` tasks enqueued,
    and hands them over in batches of ``batch``.
    """

    slots: int
    rounds: int
    longest_sleep: float
    batch: int
    in_flight: int
    tasks: int
    target: float

    @property
    def ceiling(self) -> float:
        """Tasks per second if nothing took time but the sleeps."""
        if not self.longest_sleep:
            return math.inf
        sleeps = (1 + self.rounds) / 2 * 2 + 1
        return self.slots / (sleeps * self.longest_sleep / 2)


WORKLOADS = {
    "minimal": Workload(32, 6, 0.5, 256, 512, 4_096, 15),
    "medium": Workload(100, 10, 0.1, 1_000, 2_000, 10_000, 140),
    "mid-high": Workload(300, 6, 0.1, 2_048, 4_096, 20_000, 400),
    "large": Workload(1_000, 3, 0.1, 8_192, 16_384, 50_000, 600),
    "long-queue": Workload(256, 4, 0.1, 64, 1_024, 50_000, 500),
    "heavy-trace": Workload(512, 20, 1.0, 64, 1_024, 10_000, 44),
    # Agents that do nothing: meant for --processes 4 --tracer otel.
    "no-op": Workload(256, 0, 0.0, 256, 2_048, 20_000, 800),
}

# How many rollouts the algorithm waits for at a time: it reads the first of a batch while the others still run.
_WAVE = 64

_LETTERS = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz .,", k=1 << 16))


def _draw_attributes(draw: Callable[[], float]) -> dict[str, str]:
    keys = [""]
    for _ in range(1 + int(draw() * 3)):
        keys = [f"{key}.k{number}" for key in keys for number in range(2 + int(draw() * 5))]
    attributes: dict[str, str] = {}
    for key in keys:
        begin = int(draw() * (len(_LETTERS) - 300))
        attributes[key[1:]] = _LETTERS[begin : begin + 5 + int(draw() * 296)]
    return attributes


@functools.cache
def _attributes() -> list[dict[str, str]]:
    """A thousand flattened nested dictionaries: depth 1 to 3, 2 to 6 keys a level, values of 5 to 300 characters.

    They are drawn once in each process, or making them would cost a tenth of a runner's time.
    """
    draw = random.Random(os.getpid()).random
    return [_draw_attributes(draw) for _ in range(1_000)]


async def _call(source: random.Random, longest: float) -> None:
    with operation("call", source.choice(_attributes())):
        await asyncio.sleep(source.uniform(0, longest))


async def solve(task: dict[str, Any]) -> float:
    """Sleep in spans, reward some of them, and end with a reward between 1 and 2."""
    if not task["rounds"]:
        return 1.0
    source = random.Random()
    longest = task["longest_sleep"]
    for number in range(source.randint(1, task["rounds"])):
        with operation("round", {"task": task["number"], "round": number}):
            await _call(source, longest)
            await _call(source, longest)
        if source.random() < 0.5:
            emit_reward(source.random())
    with operation("task", {"task": task["number"]}):
        await _call(source, longest)
    return 1 + source.random()


@rollout
async def agent(task: dict[str, Any], llm: LLM) -> float:
    """Do the task."""
    return await solve(task)


def bare(workload: Workload) -> float:
    """CPU seconds per task of the agent alone: a bare asyncio loop, with spans that nobody keeps and no sleeps."""

    async def some() -> None:
        await asyncio.gather(
            *(solve({"number": n, "rounds": workload.rounds, "longest_sleep": 0.0}) for n in range(100))
        )

    costs: list[float] = []
    for _ in range(7):
        begin = time.process_time()
        asyncio.run(some())
        costs.append((time.process_time() - begin) / 100)
    return median(costs)


def check(number: int, spans: list[Span], *, idle: bool) -> None:
    """Refuse spans that lack the final reward or, unless the agent is idle, the task, or are out of order."""
    reward = find_final_reward(spans)
    tasks = {span.attributes["task"] for span in spans if span.name == "task"}
    if reward is None or not 1 <= reward <= 2 or tasks != (set() if idle else {number}):
        raise AssertionError(f"task {number}: final reward {reward}, task spans {tasks}")
    order = [span.sequence_id for span in spans]
    if order != sorted(set(order)):
        raise AssertionError(f"task {number}: spans out of order: {order}")


def feeder(workload: Workload, tasks: int, figures: dict[str, Any]) -> Any:
    """The algorithm: keeps enough tasks enqueued, and reads and checks each as soon as its batch has ended."""

    @algo
    async def feed(*, store: LightningStore) -> None:
        room = asyncio.Semaphore(max(1, workload.in_flight // workload.batch))
        waits: list[float] = figures.setdefault("enqueue", [])
        spans_read = 0

        async def one_batch(numbers: range) -> None:
            nonlocal spans_read
            try:
                requests = [
                    EnqueueRequest(
                        input={
                            "number": number,
                            "rounds": workload.rounds,
                            "longest_sleep": workload.longest_sleep,
                        },
                        mode="train",
                    )
                    for number in numbers
                ]
                begin = time.perf_counter()
                enqueued = await store.enqueue_rollouts(requests)
                waits.append(time.perf_counter() - begin)
                left = {one.rollout_id: number for one, number in zip(enqueued, numbers, strict=True)}
                ids = list(left)
                for first in range(0, len(ids), _WAVE):
                    done = await store.wait_for_rollouts(rollout_ids=ids[first : first + _WAVE])
                    traces = await asyncio.gather(*(store.query_spans(one.rollout_id) for one in done))
                    for one, spans in zip(done, traces, strict=True):
                        if one.status != "succeeded":
                            raise AssertionError(f"{one.rollout_id} {one.status}")
                        check(left.pop(one.rollout_id), spans, idle=not workload.rounds)
                        spans_read += len(spans)
                if left:
                    raise AssertionError(f"{len(left)} rollouts never ended")
            finally:
                room.release()

        # The processes are started, and have run their first tasks, before the clock is.
        idle = [EnqueueRequest(input={"number": -1, "rounds": 1, "longest_sleep": 0.0})] * workload.slots
        first = await store.enqueue_rollouts(idle)
        await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in first])
        begin = time.perf_counter()
        cores = psutil.cpu_times()
        async with asyncio.TaskGroup() as group:
            for start in range(0, tasks, workload.batch):
                await room.acquire()
                group.create_task(one_batch(range(start, min(start + workload.batch, tasks))))
        figures["seconds"] = time.perf_counter() - begin
        spent = [now - then for now, then in zip(psutil.cpu_times(), cores, strict=True)]
        figures["cores"] = dict(zip(cores._fields, (part / sum(spent) for part in spent), strict=True))
        figures["spans"] = spans_read

    return feed


@contextmanager
def open_store(name: str) -> Iterator[Any]:
    """A specification of an empty store."""
    with ExitStack() as stack:
        if name == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            yield f"sqlite:///{Path(folder, 'runs.db')}"
        elif name == "postgres":
            from lightning_store_postgres.testing import PostgresServer

            yield stack.enter_context(PostgresServer()).url
        else:
            yield name


def _cpu(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds of the process, and of its children that have ended."""
    times = process.cpu_times()
    return times.user + times.system, times.children_user + times.children_system


def run(workload: Workload, spec: str, processes: int, tracer: str, tasks: int) -> dict[str, Any]:
    """Run one workload and return its figures."""
    figures: dict[str, Any] = {}
    trainer = Trainer(
        store=spec,
        strategy="client-server",
        n_runners=processes,
        tracer=tracer,
        runner={"type": "agent", "concurrency": -(-workload.slots // processes)},
        algorithm=feeder(workload, tasks, figures),
        initial_resources={"llm": LLM(endpoint="http://localhost/v1", model="m")},
    )
    this = psutil.Process()
    before = _cpu(this)
    result = trainer.fit(agent)
    figures["cpu"] = [(after - then) / tasks for after, then in zip(_cpu(this), before, strict=True)]
    if result.rollouts != {"succeeded": tasks + workload.slots}:
        raise AssertionError(f"rollouts: {result.rollouts}")
    return figures


def main() -> None:
    """Run the named workloads, or all."""
    parser = argparse.ArgumentParser(description="Run the workloads.")
    parser.add_argument("names", nargs="*", choices=[*WORKLOADS, []], default=[])
    parser.add_argument("--store", action="append", choices=["sqlite", "postgres", "memory"])
    parser.add_argument("--scale", type=float, default=0.1, help="share of the full number of tasks")
    parser.add_argument("--processes", type=int, default=1, help="runner processes")
    parser.add_argument("--tracer", default="dummy")
    given, _ = parser.parse_known_args()
    rows = []
    for name in given.names or WORKLOADS:
        workload = WORKLOADS[name]
        alone = bare(workload)
        tasks = max(2 * workload.slots, int(workload.tasks * given.scale))
        for store in given.store or ["sqlite"]:
            with open_store(store) as spec:
                figures = run(workload, spec, given.processes, given.tracer, tasks)
            rate = tasks / figures["seconds"]
            enqueue = sorted(figures["enqueue"])
            rows.append(
                [
                    name,
                    store,
                    f"{tasks:,}",
                    rate,
                    workload.ceiling,
                    f"{rate / workload.ceiling:.2f}",
                    workload.target,
                    figures["spans"] / figures["seconds"],
                    figures["cpu"][0] * 1000,
                    figures["cpu"][1] * 1000,
                    alone * 1000,
                    f"{rate * alone / (os.cpu_count() or 1):.2f}",
                    enqueue[int(len(enqueue) * 0.99)] * 1000,
                    f"{figures['cores']['idle']:.2f}",
                    f"{figures['cores'].get('steal', 0.0):.2f}",
                ]
            )
            print(f"{name} on {store}: {rate:,.1f}/s", flush=True)
    print(f"\n{os.cpu_count()} cores, {given.processes} runner process(es), tracer {given.tracer}\n")
    table(
        [
            "workload",
            "store",
            "tasks",
            "tasks/s",
            "ceiling",
            "of it",
            "target",
            "spans/s",
            "CPU ms/task, server and algorithm",
            "CPU ms/task, runners",
            "CPU ms/task, bare agent",
            "of all cores with bare agents",
            "p99 of enqueueing a batch, ms",
            "of all cores idle",
            "taken by other machines",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
