"""What the trainer gives to a strategy: the algorithm, and the runner of one worker."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from lightning_core.runner.threads import AgentThreads

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.execution.base import ExecutionEvent
    from lightning_core.litagent import LitAgent
    from lightning_core.store.base import LightningStore
    from lightning_core.trainer.trainer import Trainer
    from lightning_core.types import Dataset

__all__ = ["AlgorithmBundle", "RunnerBundle"]


class AlgorithmBundle:
    """Runs the algorithm; a sync one in a thread of its own, so that waiting for it blocks no event loop."""

    def __init__(
        self, algorithm: BaseAlgorithm, train: Dataset[Any] | None, val: Dataset[Any] | None
    ) -> None:
        self._algorithm = algorithm
        self._datasets = (train, val)
        self.completed = False
        """Whether the algorithm came to its own end."""

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> None:
        """Run the algorithm to its end."""
        self._algorithm.set_store(store)
        if self._algorithm.is_async():
            running = self._algorithm.run(*self._datasets)
        else:
            # Not asyncio.to_thread: an algorithm that is stuck would keep the process from ending on Ctrl+C.
            threads = AgentThreads()
            running = await threads.run(lambda: self._algorithm.run(*self._datasets))
            threads.close()
        if inspect.isawaitable(running):
            await running
        self.completed = True


class RunnerBundle:
    """Sets up one runner in its worker, runs it, and tears it down."""

    def __init__(self, trainer: Trainer, agent: LitAgent[Any], run_id: str) -> None:
        self._trainer = trainer
        self._agent = agent
        self._run_id = run_id

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Run rollouts until the event is set."""
        trainer = self._trainer
        runner = trainer.runner if trainer.n_runners == 1 else trainer.make_runner()
        runner.init(self._agent, hooks=trainer.hooks)
        try:
            runner.init_worker(worker_id, store, run_id=self._run_id)
            try:
                for hook in trainer.hooks:
                    hook.init_worker(worker_id)
                await runner.iter(event=event)
            finally:
                for hook in trainer.hooks:
                    hook.teardown_worker(worker_id)
                runner.teardown_worker(worker_id)
        finally:
            runner.teardown()
