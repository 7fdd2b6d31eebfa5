"""The parts of an execution: the algorithm and the runners, each a thread here or a process."""

from __future__ import annotations

import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from lightning_core.errors import ExecutionError
from lightning_core.execution.pickling import unpickle_value
from lightning_core.execution.worker import Worker

from .child import Assignment
from .processes import Child, News, StartMethod

__all__ = ["Part", "ProcessPart", "Restarts", "ThreadPart"]

logger = logging.getLogger(__name__)

_WINDOW_SECONDS = 600.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0


class Part(ABC):
    """The algorithm or one runner, while it executes."""

    name: str
    finished: bool = False
    """Whether it has ended for good."""
    error: BaseException | None = None
    """What it ended with, if that was no regular end."""

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to finish what it has in hand, and end."""

    @abstractmethod
    def interrupt(self) -> None:
        """Cancel what it does."""

    def terminate(self) -> None:  # noqa: B027 - a thread cannot be ended
        """End it from outside."""

    def kill(self) -> None:  # noqa: B027
        """End it by force."""

    def due(self) -> float | None:
        """When :meth:`tick` has something to do, on the monotonic clock."""
        return None

    def tick(self) -> None:  # noqa: B027
        """Do what is due."""


class ThreadPart(Part):
    """A part that runs in a thread of this process.

    Args:
        name: Its name.
        work: Makes what is to be awaited.
        wake: Called when it has ended.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], wake: Callable[[], None]) -> None:
        self.name = name
        self._wake = wake
        self._worker = Worker(name, work, self._ended)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def _ended(self) -> None:
        self.error = self._worker.error
        self.finished = True
        self._wake()

    def stop(self) -> None:
        """Nothing: the thread shares the event that is set."""

    def interrupt(self) -> None:
        """Cancel the coroutine."""
        if self._worker.ident is not None:
            self._worker.cancel()

    def kill(self) -> None:
        """Say that it cannot be ended."""
        logger.error("%s does not stop; it is left behind", self.name)


class Restarts:
    """How often processes may die before that is an error: a budget for all of them, that renews itself.

    Args:
        limit: How many deaths within ``_WINDOW_SECONDS`` are made good.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._deaths: list[float] = []

    def spend(self) -> bool:
        """Count a death, and return whether it is within the budget."""
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < _WINDOW_SECONDS] + [now]
        return len(self._deaths) <= self.limit


class ProcessPart(Part):
    """A part that runs in a process of its own, and in another one if that dies.

    Its methods are called on the thread that executes the strategy; news are queued for :meth:`handle`.

    Args:
        name: Its name.
        method: How processes are started.
        assignment: What it does.
        startup_seconds: How long a process may take until it works.
        restarts: The budget of new starts; ``None`` for a part that is not started again.
        leaves_with_server: Whether a server that does not answer any more is the end, and no accident.
        post: Queues a piece of news.
        siblings: The living processes of all parts.
        on_death: Called with the worker ids of a process that ended without having finished what it had in hand, and
            what there is to say about it, and whether it was told to stop.
    """

    def __init__(
        self,
        name: str,
        *,
        method: StartMethod,
        assignment: Assignment,
        startup_seconds: float,
        restarts: Restarts | None,
        leaves_with_server: bool,
        post: Callable[[ProcessPart, Child, News], None],
        siblings: Callable[[], list[Child]],
        on_death: Callable[[set[str], str, bool], None],
    ) -> None:
        self.name = name
        self._method: StartMethod = method
        self._assignment = assignment
        self._startup_seconds = startup_seconds
        self._restarts = restarts
        self._leaves_with_server = leaves_with_server
        self._post = post
        self._siblings = siblings
        self._on_death = on_death
        self._stopping = False
        self._ready = False
        self._failure: tuple[bytes | None, str, str] | None = None
        self._regular = False
        self._gone = False
        self._due: float | None = None
        self._deaths = 0
        self.child: Child | None = None
        """The process, while it lives."""
        self.outcome: Any = None
        """What the work came to, if it says so."""
        self.run_over = False
        """Whether the server has told it that the run is over."""

    def start(self) -> None:
        """Start a process."""
        self._ready = self._regular = False
        self._failure = None
        child = Child(
            self.name, self._method, self._assignment, lambda child, news: self._post(self, child, news)
        )
        child.start(self._siblings())
        self.child = child
        self._due = time.monotonic() + self._startup_seconds

    def stop(self) -> None:
        """Tell the process to finish; start none any more."""
        self._end("stop")

    def interrupt(self) -> None:
        """Tell the process to cancel what it does."""
        self._end("interrupt")

    def _end(self, command: Literal["stop", "interrupt"]) -> None:
        self._stopping = True
        if self.child is None:
            self._due = None
            self.finished = True
        else:
            self.child.send(command)

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.child is not None:
            logger.warning("%s (process %d) does not stop; ending it", self.name, self.child.pid)
            self.child.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.child is not None:
            self.child.kill()

    def due(self) -> float | None:
        """When the process must have started, or when a new one is to be started."""
        return self._due

    def tick(self) -> None:
        """Give up a process that does not start; start a new one for one that died."""
        if self._due is None or time.monotonic() < self._due:
            return
        self._due = None
        if self.child is None:
            self.start()
            return
        self.error = ExecutionError(
            f"{self.name} (process {self.child.pid}) did not start within {self._startup_seconds:g} s"
            + _quoted(self.child)
        )
        self.child.kill()

    def handle(self, child: Child, news: News) -> None:
        """Take note of a piece of news."""
        what, value = news
        if what == "ready":
            self._ready = True
            self._due = None
        elif what == "worker":
            child.workers.add(value)
        elif what == "done":
            self._regular = True
            self.outcome = unpickle_value(value)
        elif what == "failed":
            self._failure = value
        elif what == "over":
            self.run_over = True
        elif what == "gone":
            self._gone = True
        elif what == "exit":
            self._exited(child, value)

    def _exited(self, child: Child, code: int) -> None:
        child.join(5)
        self.child = None
        self._due = None
        if self._regular:
            self.finished = True
        elif self._failure is not None:
            self.finished = True
            self.error = self.error or self._translate(self._failure)
        else:
            how = _describe(code)
            self._on_death(child.workers, f"its process {child.pid} {how}", self._stopping)
            self._replace(child, how)

    def _replace(self, child: Child, how: str) -> None:
        """Start a new process in place of one that died, or give up."""
        if self._stopping or self.error is not None or (self._gone and self._leaves_with_server):
            self.finished = True
            return
        what = f"{self.name} (process {child.pid}) {how}"
        if self._restarts is None or not (self._ready or self._deaths):
            self.error = ExecutionError(
                what + ("" if self._ready else " before it began to work") + _quoted(child)
            )
        elif not self._restarts.spend():
            self.error = ExecutionError(
                f"{what}, and {self._restarts.limit} processes before it were started again (max_restarts)"
                + _quoted(child)
            )
        self.finished = self.error is not None
        if self.finished:
            return
        self._deaths = self._deaths + 1 if not self._ready else 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._deaths - 1))
        logger.warning("%s; starting it again in %.1f s", what, pause)
        self._due = time.monotonic() + pause

    def _translate(self, failure: tuple[bytes | None, str, str]) -> BaseException:
        """The error of the other process, with the traceback that it had there."""
        pickled, summary, told = failure
        error = unpickle_value(pickled)
        if not isinstance(error, BaseException):
            error = ExecutionError(f"{self.name} ended with {summary}")
        error.add_note(f"in {self.name}, another process:\n{told}".rstrip())
        return error


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _quoted(child: Child) -> str:
    return f"; the last it wrote:\n{child.last_lines}" if child.last_lines else ""
