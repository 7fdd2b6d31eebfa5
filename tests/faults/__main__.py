"""The fault campaign: ``python -m tests.faults --store sqlite --rollouts 4000 --seed 1``.

Thousands of rollouts pass through a server over a durable store, while runners are killed and paused, the server is
killed and started again, connections are cut and delayed, the disk fills up, clocks jump, and rollouts are cancelled.
Afterwards the store is read: everything that was acknowledged must be there once, and every rollout must have ended
once. The same seed injects the same faults in the same order. Exits with 1 if anything was lost or is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from lightning_store_http import LightningStoreClient

from lightning_core import LLM
from lightning_core.errors import FinalRolloutError, LightningError
from lightning_core.plugin import resolve
from lightning_core.store.base import EnqueueRequest
from lightning_core.testing.network import FaultyProxy
from lightning_core.types import RolloutConfig

from .verify import verify

TOKEN = "campaign"
RUNNERS = 3
INJECTORS = 3
STRANGER = "stranger-"
CONFIG = RolloutConfig(max_attempts=1_000, unresponsive_seconds=4.0)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Child:
    """A process of the campaign, started as a module of this package."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self._reading = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Child:
        """Start it, and wait for its first line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"tests.faults.{module}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        child = cls(process)
        if not await child.line():
            await process.wait()
            await child._reading
            raise RuntimeError(f"{module} did not start:\n{''.join(child.log)}")
        return child

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log = [*self.log[-200:], line.decode()]

    async def line(self) -> str:
        """The next line of its output; nothing if it has ended."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode()

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return the answer; nothing if it has ended."""
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            await self.process.stdin.drain()
            return json.loads(await self.line() or "{}")
        return {}

    async def kill(self) -> None:
        """End it with SIGKILL."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def end(self) -> None:
        """End it in an orderly way, and wait for that."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await self.process.wait()
        except TimeoutError:
            self.log.append("it had to be killed\n")
            self.process.kill()
            await self.process.wait()
        await self._reading


class Campaign:
    """One store, its server, its runners, and what is done to them."""

    def __init__(
        self, spec: str, folder: Path, seed: int, rollouts: int, restart_database: Callable[[], None] | None
    ) -> None:
        self.spec = spec
        self.restart_database = restart_database
        self.folder = folder
        self.seed = seed
        self.random = random.Random(seed)
        self.number = rollouts
        self.injected: Counter[str] = Counter()
        self.enqueued: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.begun: dict[str, str | None] = {}
        self.runners: list[Child] = []
        self.journals: list[Path] = []
        self.leaks: Counter[str] = Counter({"processes": 0, "files": 0, "threads": 0})
        self.baseline: dict[str, Any] = {}
        # One fault at a time for each: a server that is being started cannot be asked for a full disk.
        self._server_lock = asyncio.Lock()
        self._runner_locks = [asyncio.Lock() for _ in range(RUNNERS)]

    async def run(self) -> None:
        """Run everything to the end; whatever happens, no process outlives it."""
        try:
            await self._run()
        finally:
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if "tests.faults" in " ".join(child.cmdline()):
                        child.kill()

    async def _run(self) -> None:
        self.port = free_port()
        self.server = await self._start_server()
        self.baseline = await self.server.ask({"count": True})
        async with FaultyProxy("127.0.0.1", self.port) as self.proxy:
            self.url = f"http://127.0.0.1:{self.proxy.port}"
            self.client = LightningStoreClient(self.url, token=TOKEN, retry_seconds=120.0)
            await self.client.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")})
            for _ in range(RUNNERS):
                self.runners.append(await self._start_runner(self.random))
            feeding = asyncio.create_task(self._feed())
            async with asyncio.TaskGroup() as group:
                for number in range(INJECTORS):
                    group.create_task(self._harm(random.Random(f"{self.seed} {number}"), feeding))
            await feeding
            await self.client.close()
            await self._end_processes()

    async def _end_processes(self) -> None:
        for runner in self.runners:
            await runner.kill()
        self.proxy.cut()
        after = await self.server.ask({"count": True})
        # Connections that have just been cut are still being closed.
        for _ in range(50):
            if after["files"] <= self.baseline["files"] + 20:
                break
            await asyncio.sleep(0.1)
            after = await self.server.ask({"count": True})
        self.leaks["files"] = max(0, after["files"] - self.baseline["files"] - 20)
        self.leaks["threads"] = max(0, after["threads"] - self.baseline["threads"] - 20)
        await self.server.end()
        self.leaks["processes"] = sum(
            "tests.faults" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)
        )

    async def _start_server(self) -> Child:
        return await Child.start("serve", self.spec, str(self.port), TOKEN)

    async def _start_runner(self, source: random.Random) -> Child:
        number = len(self.journals)
        journal = self.folder / f"journal-{number}"
        self.journals.append(journal)
        journal.touch()
        skew = source.choice([0, 0, -3600, 3600, 7])
        if skew:
            self.injected["runner with a wrong clock"] += 1
        return await Child.start("work", self.url, TOKEN, str(journal), str(skew), str(number))

    # The algorithm's side

    async def _feed(self) -> None:
        room = asyncio.Semaphore(8)

        async def one_batch(numbers: range) -> None:
            try:
                requests = [
                    EnqueueRequest(
                        input={"number": number, "spans": number % 7, "pause": 0.5, "failures": 0.05},
                        config=CONFIG,
                        idempotency_key=f"task-{number}",
                    )
                    for number in numbers
                ]
                rollouts = await self._insist(lambda: self.client.enqueue_rollouts(requests))
                for rollout, number in zip(rollouts, numbers, strict=True):
                    self.enqueued[rollout.rollout_id] = number
                names = [rollout.rollout_id for rollout in rollouts]
                while len(done := await self._insist(lambda: self._wait(names))) < len(names):
                    self._see(done)
                self._see(done)
            finally:
                room.release()

        size = 50
        async with asyncio.TaskGroup() as group:
            for start in range(0, self.number, size):
                await room.acquire()
                group.create_task(one_batch(range(start, min(start + size, self.number))))

    async def _wait(self, names: list[str]) -> list[Any]:
        return await self.client.wait_for_rollouts(rollout_ids=names, timeout=2.0)

    async def _insist(
        self, call: Callable[[], Awaitable[Any]], final: type[LightningError] | tuple[()] = ()
    ) -> Any:
        """Repeat a call that the store refused, as for a full disk, until it is taken, or refused with ``final``."""
        while True:
            try:
                return await call()
            except final:
                raise
            except LightningError as error:
                self.injected[f"calls refused with {type(error).__name__}"] += 1
                await asyncio.sleep(0.2)

    def _see(self, rollouts: list[Any]) -> None:
        for rollout in rollouts:
            self.ended.setdefault(rollout.rollout_id, rollout.status)

    # The faults

    async def _harm(self, source: random.Random, feeding: asyncio.Task[None]) -> None:
        faults: list[tuple[Callable[[random.Random], Awaitable[None]], int]] = [
            (self._kill_runner, 4),
            (self._pause_runner, 2),
            (self._restart_server, 3),
            (self._cut, 6),
            (self._delay, 2),
            (self._lose_answers, 6),
            (self._fill_disk, 0 if self.restart_database else 3),
            (self._crash_database, 3 if self.restart_database else 0),
            (self._move_clock, 3),
            (self._begin_again, 4),
            (self._cancel, 6),
        ]
        kinds, weights = zip(*faults, strict=True)
        while not feeding.done():
            await asyncio.wait([feeding], timeout=source.uniform(0.0, 1.0))
            (fault,) = source.choices(kinds, weights)
            # What follows from one seed must not depend on how long the machine takes for it.
            await fault(random.Random(source.random()))
            self.injected[(fault.__doc__ or "").strip().rstrip(".")] += 1

    async def _kill_runner(self, source: random.Random) -> None:
        """Runner killed with SIGKILL."""
        index = source.randrange(RUNNERS)
        async with self._runner_locks[index]:
            await self.runners[index].kill()
            self.runners[index] = await self._start_runner(source)

    async def _pause_runner(self, source: random.Random) -> None:
        """Runner stopped for longer than its leases."""
        index = source.randrange(RUNNERS)
        async with self._runner_locks[index]:
            self.runners[index].process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(5.0)
            self.runners[index].process.send_signal(signal.SIGCONT)

    async def _restart_server(self, source: random.Random) -> None:
        """Server killed with SIGKILL and started again."""
        async with self._server_lock:
            await self.server.kill()
            await asyncio.sleep(source.uniform(0, 1.0))
            self.server = await self._start_server()

    async def _cut(self, source: random.Random) -> None:
        """Every connection cut."""
        self.proxy.cut()

    async def _delay(self, source: random.Random) -> None:
        """Connections delayed by up to a second."""
        self.proxy.delay = source.uniform(0.1, 1.0)
        await asyncio.sleep(1.0)
        self.proxy.delay = 0.0

    async def _lose_answers(self, source: random.Random) -> None:
        """Answers lost after the request was served."""
        self.proxy.lose_answers(source.randint(1, 5))

    async def _fill_disk(self, source: random.Random) -> None:
        """Disk full for a second."""
        async with self._server_lock:
            await self.server.ask({"disk": "full"})
            await asyncio.sleep(1.0)
            await self.server.ask({"disk": "free"})

    async def _crash_database(self, source: random.Random) -> None:
        """Database killed with SIGKILL and started again."""
        assert self.restart_database is not None
        async with self._server_lock:
            await asyncio.to_thread(self.restart_database)

    async def _move_clock(self, source: random.Random) -> None:
        """Clock of the server moved."""
        async with self._server_lock:
            await self.server.ask({"clock": source.choice([-600, -30, 0, 2, 30, 600])})

    async def _begin_again(self, source: random.Random) -> None:
        """Attempt begun in place of another, and left alone."""
        if (name := self._open_rollout(source)) is None:
            return
        worker = f"{STRANGER}{len(self.begun)}"
        self.begun[worker] = None
        with suppress(FinalRolloutError):
            begun = await self._insist(
                lambda: self.client.start_attempt(name, worker, request_id=worker),
                final=FinalRolloutError,
            )
            self.begun[worker] = begun.attempt.attempt_id

    async def _cancel(self, source: random.Random) -> None:
        """Rollout cancelled."""
        if (name := self._open_rollout(source)) is not None:
            self.cancelled.add(name)
            await self._insist(lambda: self.client.update_rollout(name, status="cancelled"))

    def _open_rollout(self, source: random.Random) -> str | None:
        open_ = [name for name in self.enqueued if name not in self.ended]
        return source.choice(open_) if open_ else None


def report(title: str, counts: Counter[str]) -> None:
    """Print counts, one a line."""
    print(f"\n{title}")
    for what, number in sorted(counts.items()):
        print(f"  {number:>6,}  {what}")


async def run(store: str, seed: int, rollouts: int) -> bool:
    """Run the campaign on one kind of store, print what happened, and return whether nothing was lost."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        restart_database: Callable[[], None] | None = None
        if store == "postgres":
            from lightning_store_postgres.testing import PostgresServer

            database = stack.enter_context(PostgresServer())
            spec = database.url

            def kill_and_start() -> None:
                database.kill()
                database.start()

            restart_database = kill_and_start
        else:
            spec = f"sqlite:///{folder / 'runs.db'}"
        campaign = Campaign(spec, folder, seed, rollouts, restart_database)
        begin = time.monotonic()
        await campaign.run()
        seconds = time.monotonic() - begin
        opened = resolve("store", spec)
        statistics = await opened.statistics()
        losses = await verify(
            opened,
            enqueued=campaign.enqueued,
            ended=campaign.ended,
            cancelled=campaign.cancelled,
            begun=campaign.begun,
            journals=campaign.journals,
        )
        await opened.close()
    print(f"\n# {store}, seed {seed}: {rollouts:,} rollouts in {seconds:.0f} s")
    print(
        f"{statistics.attempts:,} attempts, {statistics.spans:,} spans, rollouts {dict(statistics.rollouts)}"
    )
    report("faults injected", campaign.injected)
    report("losses", losses)
    report("left behind", campaign.leaks)
    return not any(losses.values()) and not any(campaign.leaks.values())


def main() -> None:
    """Run the campaign on the chosen stores."""
    parser = argparse.ArgumentParser(description="Run the fault campaign.")
    parser.add_argument("--store", action="append", choices=["sqlite", "postgres"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=4_000, help="on each store")
    given = parser.parse_args()
    # The children find this package from where it is.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    clean = [
        asyncio.run(run(store, given.seed, given.rollouts)) for store in given.store or ["sqlite", "postgres"]
    ]
    print("\nnothing lost, nothing left behind" if all(clean) else "\nLOST OR LEFT BEHIND: see above")
    sys.exit(not all(clean))


if __name__ == "__main__":
    main()
