"""The strategy that runs everything in one process: the algorithm and each runner in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable

from lightning_core.errors import ConfigurationError, ExecutionError
from lightning_core.execution.base import AlgorithmBundle, ExecutionStrategy, RunnerBundle
from lightning_core.execution.event import StopEvent
from lightning_core.execution.worker import Worker, join_workers
from lightning_core.store.base import LightningStore

__all__ = ["SharedMemoryExecutionStrategy"]

logger = logging.getLogger(__name__)


class SharedMemoryExecutionStrategy(ExecutionStrategy):
    """Runs the algorithm and the runners as threads of this process, with the store object in common.

    Stopping escalates: the stop event, which lets running rollouts finish; then cancellation, which ends them
    ``cancelled``; a thread that heeds neither is left behind (it does not keep the process alive) and named in the log.

    Args:
        n_runners: How many runners.
        graceful_seconds: How long runners may take to finish their rollouts once the algorithm has ended or Ctrl+C
            was pressed.
        cancel_seconds: How long they may take after they are cancelled.
    """

    def __init__(
        self, n_runners: int = 1, *, graceful_seconds: float = 5.0, cancel_seconds: float = 5.0
    ) -> None:
        if n_runners < 1:
            raise ConfigurationError(f"n_runners must be at least 1, not {n_runners}")
        self.n_runners = n_runners
        self.graceful_seconds = graceful_seconds
        self.cancel_seconds = cancel_seconds

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run everything to the end; see :meth:`ExecutionStrategy.execute`."""
        stop = StopEvent()
        ended = threading.Event()
        main = Worker("lightning-algorithm", lambda: algorithm(store, stop), ended.set)
        runners = [
            Worker(f"lightning-runner-{number}", _bind(runner, store, number, stop), ended.set)
            for number in range(self.n_runners)
        ]
        interrupt: KeyboardInterrupt | None = None
        for worker in (*runners, main):
            worker.start()
        try:
            self._watch(main, runners, ended)
        except KeyboardInterrupt as error:
            interrupt = error
        stop.set()
        try:
            if interrupt is not None:
                main.cancel()
            self._end([main, *runners])
        except KeyboardInterrupt as error:
            # Pressed once more: no more patience.
            interrupt = error
            for worker in (main, *runners):
                worker.cancel()
        if interrupt is not None:
            raise interrupt
        if isinstance(main.error, asyncio.CancelledError):
            raise ExecutionError(
                "the algorithm awaited something that was cancelled, and ended"
            ) from main.error
        if main.error is not None:
            raise main.error
        failed = [worker for worker in runners if worker.error is not None]
        for worker in failed[1:]:
            logger.error("%s failed too", worker.name, exc_info=worker.error)
        if failed:
            error = failed[0].error
            raise ExecutionError(f"{failed[0].name} ended with {type(error).__name__}: {error}") from error

    def _watch(self, main: Worker, runners: list[Worker], ended: threading.Event) -> None:
        """Wait until the algorithm has ended, or cannot go on because a runner failed or none is left."""
        while True:
            ended.wait()
            ended.clear()
            if main.finished:
                return
            failed = next((worker for worker in runners if worker.error is not None), None)
            if failed is not None:
                logger.error("%s failed; stopping the run", failed.name)
                main.cancel()
                return
            if all(worker.finished for worker in runners):
                # They have reached max_rollouts. What the algorithm still waits for will not come.
                main.join(self.graceful_seconds)
                if not main.finished:
                    logger.warning("all runners have reached max_rollouts; ending the algorithm")
                    main.cancel()
                return

    def _end(self, workers: list[Worker]) -> None:
        if not join_workers(workers, self.graceful_seconds):
            return
        for worker in workers:
            if worker.is_alive():
                worker.cancel()
        for worker in join_workers(workers, self.cancel_seconds):
            logger.error("%s does not stop; it is left behind", worker.name)


def _bind(
    runner: RunnerBundle, store: LightningStore, number: int, stop: StopEvent
) -> Callable[[], Awaitable[None]]:
    return lambda: runner(store, number, stop)
