"""Follows the workers of a fit, and its algorithm if there is one, to their end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

from lightning_core.errors import ExecutionError
from lightning_core.execution.worker import Worker

from .workers import WorkerPart

__all__ = ["GRACEFUL_SECONDS", "Crew"]

logger = logging.getLogger(__name__)

GRACEFUL_SECONDS = 5.0
"""How long workers may take to finish the task in hand once the algorithm has ended, or Ctrl+C was pressed."""
CANCEL_SECONDS = 5.0
"""How long they may take to drop it after that, and to be gone when they are killed."""


class Crew:
    """Runs workers until none is left, or, with an algorithm, until that has ended.

    A worker that dies is logged, and the others go on: the server hands its task out again. Stopping escalates: workers
    finish what they have in hand; then they drop it; then those in processes of their own are killed. Each further
    Ctrl+C goes one step on at once.

    Args:
        workers: The workers.
        algorithm: The algorithm.
        ended: Set by each of them when it ends.
    """

    def __init__(
        self, workers: Sequence[WorkerPart], algorithm: Worker | None, ended: threading.Event
    ) -> None:
        self._workers = workers
        self._algorithm = algorithm
        self._ended = ended
        self._reported: set[int] = set()

    def run(self) -> None:
        """Run everything to the end.

        Raises:
            KeyboardInterrupt: After Ctrl+C, once all have stopped.
            ExecutionError: If no worker ended as it should. An error of the algorithm is raised as it is.
        """
        begun: list[WorkerPart] = []
        interrupt: KeyboardInterrupt | None = None
        try:
            for worker in self._workers:
                begun.append(worker)
                worker.start()
            if self._algorithm is not None:
                self._algorithm.start()
            self._watch()
        except KeyboardInterrupt as error:
            interrupt = error
            logger.warning(
                "interrupted; tasks in hand have %g s to end, and are dropped then, or at the next Ctrl+C",
                GRACEFUL_SECONDS,
            )
        finally:
            pressed = self._end(begun)
        interrupt = interrupt or pressed
        if interrupt is not None:
            raise interrupt
        self._raise_errors()

    def _watch(self) -> None:
        """Wait until the algorithm has ended or can get nothing done any more, or without one the workers."""
        algorithm = self._algorithm
        while True:
            self._ended.wait()
            self._ended.clear()
            self._report_deaths()
            if algorithm is not None and algorithm.finished:
                return
            if not all(worker.finished for worker in self._workers):
                continue
            if algorithm is not None and any(worker.error is None for worker in self._workers):
                # They have reached max_tasks, or there are no more tasks. What the algorithm waits for may not come.
                algorithm.join(GRACEFUL_SECONDS)
                if not algorithm.finished:
                    logger.warning("all workers are done; ending the algorithm")
            return

    def _report_deaths(self) -> None:
        for worker in self._workers:
            if worker.finished and worker.error is not None and id(worker) not in self._reported:
                self._reported.add(id(worker))
                logger.error(
                    "%s has failed, and the others go on; the server hands its task out again: %s",
                    *(worker.name, worker.error),
                )

    def _end(self, workers: Sequence[WorkerPart]) -> KeyboardInterrupt | None:
        """Stop what still runs, a little less politely with each step; return the last Ctrl+C that came meanwhile."""
        interrupt: KeyboardInterrupt | None = None
        for step, seconds in (
            ("stop", GRACEFUL_SECONDS),
            ("cancel", CANCEL_SECONDS),
            ("kill", CANCEL_SECONDS),
        ):
            try:
                self._step(step, [worker for worker in workers if not worker.finished], seconds)
            except KeyboardInterrupt as error:
                interrupt = error
        for worker in workers:
            if not worker.finished:
                logger.error("%s does not stop; it is left behind", worker.name)
        if self._algorithm is not None and self._algorithm.is_alive():
            logger.error("the algorithm does not stop; it is left behind")
        self._report_deaths()
        return interrupt

    def _step(self, step: str, workers: Sequence[WorkerPart], seconds: float) -> None:
        algorithm = self._algorithm
        give_up = time.monotonic() + seconds
        if algorithm is not None and algorithm.is_alive():
            algorithm.cancel()
        for worker in workers:
            getattr(worker, step)()
        for worker in workers:
            worker.join(max(0.0, give_up - time.monotonic()))
        if algorithm is not None and algorithm.ident is not None:
            algorithm.join(max(0.0, give_up - time.monotonic()))

    def _raise_errors(self) -> None:
        error = self._algorithm.error if self._algorithm is not None else None
        if isinstance(error, asyncio.CancelledError):
            raise ExecutionError("the algorithm awaited something that was cancelled, and ended") from error
        if error is not None:
            raise error
        failed = [worker for worker in self._workers if worker.error is not None]
        if len(failed) == len(self._workers):
            error = failed[0].error
            raise ExecutionError(f"{failed[0].name} has failed, and none is left: {error}") from error
