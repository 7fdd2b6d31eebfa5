"""The runner interface."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from lightning_core.store.base import LightningStore
from lightning_core.types import Hook, NamedResources, ParallelWorkerBase, RolloutMode, RolloutV2

if TYPE_CHECKING:
    from lightning_core.execution.base import ExecutionEvent
    from lightning_core.litagent import LitAgent

__all__ = ["BaseRunner"]

T_task = TypeVar("T_task")


class BaseRunner(ParallelWorkerBase, Generic[T_task]):
    """Runs rollouts: continuously with :meth:`iter`, or one with :meth:`step`.

    ``init`` and ``init_worker`` come first, ``teardown_worker`` and ``teardown`` last; :meth:`run_context` does all
    four.
    """

    def init(self, agent: LitAgent[T_task], **kwargs: Any) -> None:
        """Set the agent to run.

        Args:
            agent: The agent.
            kwargs: What else the runner takes, such as ``hooks``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement init")

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Set the worker's number and its store, in the thread or process that will run the rollouts."""
        raise NotImplementedError(f"{type(self).__name__} does not implement init_worker")

    async def iter(self, *, event: ExecutionEvent | None = None) -> None:
        """Take rollouts from the store and run them, until ``event`` is set. Errors of rollouts are recorded."""
        raise NotImplementedError(f"{type(self).__name__} does not implement iter")

    async def step(
        self,
        input: T_task,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: ExecutionEvent | None = None,
    ) -> RolloutV2:
        """Run one task now, without the queue, and return its rollout. Errors are raised.

        Args:
            input: The task.
            resources: Resources for this task alone, stored as new ones; ``None`` for the store's latest.
            mode: Why it runs.
            event: Asks the runner to stop.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement step")

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for runners.

        Raises:
            RuntimeError: Always; use :meth:`iter` or :meth:`step`.
        """
        raise RuntimeError("a runner has no run(): use `await runner.iter()` or `await runner.step(task)`")

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Clean up in the worker."""
        raise NotImplementedError(f"{type(self).__name__} does not implement teardown_worker")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Forget the agent."""
        raise NotImplementedError(f"{type(self).__name__} does not implement teardown")

    @contextmanager
    def run_context(
        self, *, agent: LitAgent[T_task], store: LightningStore, hooks: Sequence[Hook] | None = None
    ) -> Generator[Self]:
        """Set the runner up for a ``with`` block, to try an agent without a trainer.

        Args:
            agent: The agent to run.
            store: The store; ``InMemoryLightningStore()`` will do.
            hooks: Lifecycle hooks.
        """
        self.init(agent, hooks=hooks)
        try:
            self.init_worker(0, store)
            try:
                yield self
            finally:
                self.teardown_worker(0)
        finally:
            self.teardown()
