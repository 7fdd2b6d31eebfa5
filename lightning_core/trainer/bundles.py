"""What the trainer gives to a strategy: the algorithm, and the runner of one worker. Both may go to another process."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_core import plugin
from lightning_core.runner.threads import AgentThreads
from lightning_core.trainer.arguments import resolve_hooks
from lightning_core.trainer.scope import RunStore

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.execution.base import ExecutionEvent
    from lightning_core.litagent import LitAgent
    from lightning_core.runner.base import BaseRunner
    from lightning_core.store.base import LightningStore
    from lightning_core.trainer.trainer import Trainer
    from lightning_core.types import Dataset, Hook

__all__ = ["AlgorithmBundle", "RunnerBundle", "RunnerSpecs", "serve_worker"]


class AlgorithmBundle:
    """Runs the algorithm; a sync one in a thread of its own, so that waiting for it blocks no event loop.

    Args:
        algorithm: The algorithm.
        train: The training set.
        val: The validation set.
        tracer: What the tracer is called.
    """

    def __init__(
        self,
        algorithm: BaseAlgorithm,
        train: Dataset[Any] | None,
        val: Dataset[Any] | None,
        tracer: str | None = None,
    ) -> None:
        self._algorithm = algorithm
        self._datasets = (train, val)
        self._tracer = tracer
        self._over: Callable[[LightningStore], LightningStore] | None = None
        self.completed = False
        """Whether the algorithm came to its own end."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave trainer and store behind: they belong to this process, and the other one gives a store of its own."""
        algorithm = copy.copy(self._algorithm)
        vars(algorithm).pop("_trainer_ref", None)
        scope = vars(algorithm).pop("_store", None)
        over = scope.elsewhere() if isinstance(scope, RunStore) else None
        return {**vars(self), "_algorithm": algorithm, "_over": over}

    def parts(self) -> dict[str, Any]:
        """Return what goes to another process, by the names of the user's arguments."""
        algorithm: BaseAlgorithm = self.__getstate__()["_algorithm"]
        return {
            "llm_proxy": algorithm.get_llm_proxy(),
            "adapter": getattr(algorithm, "_adapter", None),
            "algorithm": algorithm,
            "the training data": self._datasets[0],
            "the validation data": self._datasets[1],
        }

    def outcome(self) -> dict[str, Any]:
        """Return what the algorithm has come to, for :meth:`adopt` in the process that waits for it."""
        return {
            "completed": self.completed,
            "best_resources": self._algorithm.best_resources,
            "metrics": self._algorithm.metrics_history,
        }

    def adopt(self, outcome: dict[str, Any]) -> None:
        """Take over what the algorithm has come to in another process."""
        self.completed = outcome["completed"]
        self._algorithm.adopt(outcome["best_resources"], outcome["metrics"])

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> None:
        """Run the algorithm to its end.

        Raises:
            CaptureError: If the first rollouts lack what it needs.
        """
        scope = store if self._over is None else self._over(store)
        self._algorithm.set_store(scope)
        proxy = self._algorithm.get_llm_proxy()
        if hasattr(proxy, "set_store"):
            # Made without one: the store of the run is known here only, where the algorithm will start it.
            proxy.set_store(scope)
        if self._algorithm.needs and isinstance(scope, RunStore):
            from lightning_core.trainer.check.first_look import FirstLook

            async with FirstLook(self._algorithm, scope, self._tracer).beside():
                await self._run()
        else:
            await self._run()
        self.completed = True

    async def _run(self) -> None:
        if self._algorithm.is_async():
            running = self._algorithm.run(*self._datasets)
        else:
            # Not asyncio.to_thread: an algorithm that is stuck would keep the process from ending on Ctrl+C.
            threads = AgentThreads()
            running = await threads.run(lambda: self._algorithm.run(*self._datasets))
            threads.close()
        if inspect.isawaitable(running):
            await running


@dataclass(frozen=True)
class RunnerSpecs:
    """How the user gave the parts of a runner, by which another process makes them anew."""

    runner: Any = None
    tracer: Any = None
    hooks: Any = None
    max_rollouts: int | None = None

    def make_runner(self, tracer: Any) -> BaseRunner[Any]:
        """Make a runner with this tracer."""
        defaults: dict[str, Any] = {"tracer": tracer}
        if self.max_rollouts is not None:
            defaults["max_rollouts"] = self.max_rollouts
        return plugin.resolve("runner", self.runner, **defaults)


class RunnerBundle:
    """Sets up one runner in its worker, runs it, and tears it down.

    In the trainer's own process it uses the trainer's parts. A copy, which is what another process gets, has only the
    specifications of them, and makes them there.
    """

    def __init__(self, trainer: Trainer, agent: LitAgent[Any], run_id: str | None) -> None:
        self._trainer: Trainer | None = trainer
        self._specs = trainer.runner_specs
        self._agent = agent
        self._run_id = run_id

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer behind."""
        return {**vars(self), "_trainer": None}

    def parts(self) -> dict[str, Any]:
        """Return what goes to another process, by the names of the user's arguments."""
        specs = self._specs
        hooks: Any = specs.hooks
        if isinstance(hooks, Sequence) and not isinstance(hooks, str):
            named = {f"hooks[{index}]": hook for index, hook in enumerate(hooks)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - specifications may be anything
        else:
            named = {"hooks": hooks}
        return {"runner": specs.runner, "tracer": specs.tracer, **named, "the agent": self._agent}

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Run rollouts until the event is set."""
        trainer = self._trainer
        if trainer is not None:
            runner = trainer.runner if trainer.n_runners == 1 else trainer.make_runner()
            await serve_worker(
                runner, self._agent, trainer.hooks, store, worker_id, event, run_id=self._run_id
            )
            return
        runner = self._specs.make_runner(plugin.resolve("tracer", self._specs.tracer))
        hooks = resolve_hooks(self._specs.hooks)
        # These are this process's own, whose whole life is here.
        for hook in hooks:
            hook.init()
        try:
            await serve_worker(runner, self._agent, hooks, store, worker_id, event, run_id=self._run_id)
        finally:
            for hook in hooks:
                hook.teardown()


async def serve_worker(
    runner: BaseRunner[Any],
    agent: LitAgent[Any],
    hooks: list[Hook],
    store: LightningStore,
    worker_id: int,
    event: ExecutionEvent,
    *,
    run_id: str | None = None,
) -> None:
    """Set a runner up as this worker, run rollouts until the event is set, and tear it down."""
    runner.init(agent, hooks=hooks)
    try:
        runner.init_worker(worker_id, store, run_id=run_id)
        try:
            for hook in hooks:
                hook.init_worker(worker_id)
            await runner.iter(event=event)
        finally:
            for hook in hooks:
                hook.teardown_worker(worker_id)
            runner.teardown_worker(worker_id)
    finally:
        runner.teardown()
