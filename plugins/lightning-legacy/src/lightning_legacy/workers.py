"""The workers of a fit: threads of this process, or processes of their own, that pull tasks until they are stopped."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Protocol

from lightning_core.errors import ExecutionError
from lightning_core.execution.event import StopEvent
from lightning_core.execution.interrupts import interrupts_held_back
from lightning_core.execution.orphans import note_end, note_start, start_mark
from lightning_core.execution.pickling import pack
from lightning_core.execution.spawning import LogSettings, script_left_alone
from lightning_core.execution.worker import Worker
from lightning_core.litagent import LitAgent

from .child import Assignment, enter
from .runner import AgentRunner

__all__ = ["ProcessPart", "ThreadPart", "Work", "WorkerPart"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What each worker is to do.

    Attributes:
        agent: The agent.
        client: Where tasks come from.
        tracer: The tracer: this process's own, or for other processes how the user gave it.
        adapter: Makes triplets of spans.
        max_tasks: How many tasks each worker runs; ``None`` for no limit.
    """

    agent: LitAgent[Any]
    client: Any
    tracer: Any
    adapter: Any
    max_tasks: int | None

    def parts(self) -> dict[str, Any]:
        """Return what goes to another process, by the names of the user's arguments."""
        return {
            "tracer": self.tracer,
            "triplet_exporter": self.adapter,
            "the agent": self.agent,
            "the client": self.client,
        }

    def make_runner(self, worker_id: int) -> AgentRunner:
        """Make the runner of one worker."""
        return AgentRunner(self.agent, self.client, self.tracer, self.adapter, worker_id, self.max_tasks)


class WorkerPart(Protocol):
    """One worker."""

    name: str

    @property
    def error(self) -> BaseException | None:
        """Why it has ended, if not as it should."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        ...

    @property
    def rollouts(self) -> Counter[Any]:
        """How many rollouts it has posted, by how they ended."""
        ...

    def start(self) -> None:
        """Start it."""
        ...

    def stop(self) -> None:
        """Have it end after the task in hand."""
        ...

    def cancel(self) -> None:
        """Have it drop the task in hand, which the server will hand out again."""
        ...

    def kill(self) -> None:
        """End it, if that can be done."""
        ...


class ThreadPart:
    """A worker in a thread of this process, with an event loop of its own."""

    def __init__(self, number: int, work: Work, on_end: Callable[[], object]) -> None:
        self.name = f"worker {number}"
        self._runner = work.make_runner(number)
        self._stop = StopEvent()
        self._worker = Worker(f"lightning-worker-{number}", self._run, on_end)

    async def _run(self) -> None:
        await self._runner.iter_async(event=self._stop)

    @property
    def error(self) -> BaseException | None:
        """Why it has ended, if not as it should."""
        return self._worker.error

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self._worker.finished

    @property
    def rollouts(self) -> Counter[Any]:
        """How many rollouts it has posted, by how they ended."""
        return self._runner.rollouts

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self) -> None:
        """Have it end after the task in hand."""
        self._stop.set()

    def cancel(self) -> None:
        """Have it drop the task in hand. A sync agent goes on in its thread, and its result is not posted."""
        self._worker.cancel()

    def kill(self) -> None:
        """Threads cannot be killed."""


class ProcessPart:
    """A worker in a process of its own, which is started with ``spawn``.

    Not with ``fork``: the copies of a process that has threads, as this one does, may hang. And a process that begins
    empty is the same on every system.

    Args:
        number: The worker's number.
        work: What it does.
        daemon: Whether it is a daemonic process, which may have no children of its own by ``multiprocessing``.
        on_end: Called when it has ended.

    Raises:
        ConfigurationError: If something cannot be sent to another process; names the argument.
    """

    def __init__(self, number: int, work: Work, daemon: bool, on_end: Callable[[], object]) -> None:
        self.name = f"worker {number}"
        self.error: BaseException | None = None
        self.finished = False
        self.rollouts: Counter[Any] = Counter()
        self._on_end = on_end
        self._done = False
        context = multiprocessing.get_context("spawn")
        self._pipe, self._its_pipe = context.Pipe()
        self._process = context.Process(
            target=enter,
            name=f"lightning-worker-{number}",
            daemon=daemon,
            args=(
                Assignment(
                    number, pack(work), (os.getpid(), start_mark(os.getpid())), LogSettings.of_this_process()
                ),
                self._its_pipe,
            ),
        )
        self._thread = threading.Thread(target=self._follow, name=f"{self.name}-news", daemon=True)

    def start(self) -> None:
        """Start the process."""
        if hasattr(signal, "pthread_sigmask"):
            # It would be started along with the first process, and let SIGINT through to that.
            resource_tracker.ensure_running()
        try:
            with interrupts_held_back(), script_left_alone():
                self._process.start()
        except BaseException:
            self._pipe.close()
            raise
        finally:
            self._its_pipe.close()
        assert self._process.pid is not None
        note_start(self._process.pid)
        self._thread.start()

    def stop(self) -> None:
        """Have it end after the task in hand."""
        self._send("stop")

    def cancel(self) -> None:
        """Have it drop the task in hand."""
        self._send("cancel")

    def kill(self) -> None:
        """End it with SIGKILL."""
        with suppress(ValueError):
            self._process.kill()

    def _send(self, command: str) -> None:
        with suppress(OSError, ValueError):
            self._pipe.send(command)

    def _follow(self) -> None:
        """Listen to it until it has ended."""
        pipe, process = self._pipe, self._process
        pid = process.pid
        assert pid is not None
        # Whatever the agent has started may hold the other end of the pipe open.
        while pipe in multiprocessing.connection.wait([pipe, process.sentinel]):
            try:
                what, value = pipe.recv()
            except (EOFError, OSError):
                break
            if what == "rollouts":
                self.rollouts = Counter(value)
            elif what == "failed":
                self.error = ExecutionError(value)
            elif what == "done":
                self._done = True
        process.join()
        note_end(pid)
        if self.error is None and not self._done:
            self.error = ExecutionError(_how_it_ended(process.exitcode))
        process.close()
        pipe.close()
        self.finished = True
        self._on_end()


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
