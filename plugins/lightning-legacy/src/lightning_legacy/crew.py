"""Follows the workers of a fit, and its algorithm if there is one, to their end."""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Sequence
from typing import Final

from lightning_core.errors import ExecutionError
from lightning_core.execution.interrupts import interrupts_counted
from lightning_core.execution.worker import Worker
from lightning_core.runner.ending import describe

from .workers import WorkerPart

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

GRACEFUL_SECONDS = 5.0
"""How long workers may take to finish the task in hand once the algorithm has ended, or Ctrl+C was pressed."""
CANCEL_SECONDS = 5.0
"""How long they may take to drop it after that, and to be gone when they are killed."""
_STEPS: Final = ("stop", "cancel", "kill")


class Crew:
    """Runs workers until none is left, or, with an algorithm, until that has ended.

    A worker that dies is logged, and the others go on: the server hands its task out again. Stopping escalates: workers
    finish what they have in hand; then they drop it; then those in processes of their own are killed. Each further
    Ctrl+C goes one step on at once.
    """

    def __init__(self) -> None:
        self._workers: list[WorkerPart] = []
        self._algorithm: Worker | None = None
        # A signal handler may put something in at any moment, which a threading.Event does not allow.
        self._events: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._presses = 0
        self._reported: set[int] = set()

    def wake(self) -> None:
        """Have a look at the parts; each of them calls this when it ends."""
        self._events.put(None)

    def run(self, workers: Sequence[WorkerPart], algorithm: Worker | None = None) -> None:
        """Run everything to the end.

        Args:
            workers: The workers.
            algorithm: The algorithm.

        Raises:
            KeyboardInterrupt: After Ctrl+C, once all have stopped.
            ExecutionError: If no worker ended as it should. An error of the algorithm is raised as it is.
        """
        with interrupts_counted(self._press):
            try:
                for worker in workers:
                    worker.start()
                    self._workers.append(worker)
                if algorithm is not None:
                    algorithm.start()
                    self._algorithm = algorithm
                self._watch()
            finally:
                self._end()
        if self._presses:
            raise KeyboardInterrupt
        self._raise_errors()

    def _press(self) -> None:
        self._presses += 1
        self.wake()

    def _watch(self) -> None:
        """Wait until the algorithm has ended or can get nothing done any more, or without one the workers."""
        algorithm = self._algorithm

        def over() -> bool:
            ended = algorithm is not None and algorithm.finished
            return ended or all(worker.finished for worker in self._workers)

        if not self._until(over, presses=0) or algorithm is None or algorithm.finished:
            return
        if all(worker.error is not None for worker in self._workers):
            return
        # They have reached max_tasks, or there are no more tasks. What the algorithm waits for may not come.
        if not self._until(lambda: algorithm.finished, GRACEFUL_SECONDS, presses=0):
            logger.warning("all workers are done; ending the algorithm")

    def _end(self) -> None:
        """Stop what still runs, a little less politely with each step, and at once with each further Ctrl+C."""
        presses = self._presses
        if presses:
            logger.warning(
                "interrupted; tasks in hand have %g s to end, and are dropped then, or at the next Ctrl+C",
                GRACEFUL_SECONDS,
            )
        for number, step in enumerate(_STEPS):
            if self._algorithm is not None and not self._algorithm.finished:
                self._algorithm.cancel()
            for worker in self._workers:
                if not worker.finished:
                    getattr(worker, step)()
            seconds = CANCEL_SECONDS if number else GRACEFUL_SECONDS
            if self._until(self._all_ended, seconds, presses=presses + number):
                return
        parts = [*self._workers, *([self._algorithm] if self._algorithm is not None else [])]
        for part in parts:
            if not part.finished:
                logger.error("%s does not stop; it is left behind", part.name)

    def _all_ended(self) -> bool:
        return all(worker.finished for worker in self._workers) and (
            self._algorithm is None or self._algorithm.finished
        )

    def _until(self, reached: Callable[[], bool], seconds: float | None = None, *, presses: int) -> bool:
        """Wait until it is reached, so many seconds have passed, or Ctrl+C was pressed more than so many times."""
        give_up = None if seconds is None else time.monotonic() + seconds
        while True:
            self._report_deaths()
            if reached():
                return True
            left = None if give_up is None else give_up - time.monotonic()
            if self._presses > presses or (left is not None and left <= 0):
                return False
            try:
                self._events.get(timeout=left)
            except queue.Empty:
                pass
            except KeyboardInterrupt:
                # From a handler that is not this object's.
                self._presses += 1

    def _report_deaths(self) -> None:
        for worker in self._workers:
            if worker.finished and worker.error is not None and id(worker) not in self._reported:
                self._reported.add(id(worker))
                logger.error(
                    "%s has failed; what it had in hand, the server hands out again: %s",
                    *(worker.name, describe(worker.error)),
                )

    def _raise_errors(self) -> None:
        error = self._algorithm.error if self._algorithm is not None else None
        if isinstance(error, asyncio.CancelledError):
            raise ExecutionError("the algorithm awaited something that was cancelled, and ended") from error
        if error is not None:
            raise error
        first = self._workers[0]
        if first.error is not None and all(worker.error is not None for worker in self._workers):
            raise ExecutionError(
                f"{first.name} has failed, and none is left: {describe(first.error)}"
            ) from first.error
