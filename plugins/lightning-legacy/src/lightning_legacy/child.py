"""What runs in a worker's own process."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lightning_core.execution.event import StopEvent
from lightning_core.execution.interrupts import leave_interrupts_to_parent
from lightning_core.execution.orphans import is_alive
from lightning_core.execution.pickling import Packed
from lightning_core.execution.spawning import LogSettings
from lightning_core.execution.worker import Worker
from lightning_core.runner.ending import describe

if TYPE_CHECKING:
    from .runner import AgentRunner
    from .workers import Work

__all__ = ["Assignment", "enter"]

_LOOK_SECONDS = 2.0
"""How often a process looks whether the one that has started it still runs; the pipe between them tells at once, but
another process may hold its end open."""
_LEAVE_SECONDS = 5.0
"""How long it may take to leave once that one is gone."""
_GONE = 75
"""The exit code of a process that leaves because nobody is there to work for (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Assignment:
    """What a process is told when it starts.

    Attributes:
        number: The worker's number.
        work: A ``Work``, packed.
        parent: Process id and start mark of the process that starts it.
        log: That one's logging.
    """

    number: int
    work: Packed
    parent: tuple[int, str | None]
    log: LogSettings


def enter(assignment: Assignment, pipe: Connection) -> None:
    """Work; the first function of the process.

    Args:
        assignment: What to do.
        pipe: Commands come in, news go out; its end is the end of the parent.
    """
    leave_interrupts_to_parent()
    assignment.log.apply()
    sys.exit(_Child(assignment, pipe).run())


class _Child:
    """The work of this process, and the thread that listens to the parent."""

    def __init__(self, assignment: Assignment, pipe: Connection) -> None:
        self._assignment = assignment
        self._pipe = pipe
        self._stop = StopEvent()
        self._runner: AgentRunner | None = None
        self._worker = Worker(f"lightning-worker-{assignment.number}", self._iterate, lambda: None)

    def run(self) -> int:
        """Work to the end, and return the exit code."""
        threading.Thread(target=self._listen, name="lightning-parent", daemon=True).start()
        try:
            work: Work = self._assignment.work.unpack()
            self._runner = work.make_runner(self._assignment.number)
        except Exception as error:
            return self._failed(error)
        # In this very thread, the main one.
        self._worker.run()
        error = self._worker.error
        if error is not None:
            return self._failed(error)
        self._tell("done", None)
        return 0

    async def _iterate(self) -> None:
        runner = self._runner
        assert runner is not None
        runner.on_posted = lambda: self._tell("rollouts", dict(runner.rollouts))
        await runner.iter_async(event=self._stop)

    def _failed(self, error: BaseException) -> int:
        self._tell("failed", describe(error))
        traceback.print_exception(error)
        return 1

    def _tell(self, what: str, value: Any) -> None:
        with suppress(OSError):
            self._pipe.send((what, value))

    def _listen(self) -> None:
        """Follow the parent's commands, and notice when it is gone."""
        while True:
            try:
                if not self._pipe.poll(_LOOK_SECONDS):
                    if is_alive(*self._assignment.parent):
                        continue
                    break
                command = self._pipe.recv()
            except (EOFError, OSError):
                break
            self._stop.set()
            if command == "cancel":
                self._worker.cancel()
        self._stop.set()
        self._worker.cancel()
        threading.Event().wait(_LEAVE_SECONDS)
        # An agent that is stuck keeps it no longer.
        os._exit(_GONE)
