"""``Trainer.check``: runs one rollout with the trainer's own parts, and reports what training on it would miss."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any, Final

from lightning_core import bridge
from lightning_core.errors import UnserializableValueError
from lightning_core.execution.shared_memory import SharedMemoryExecutionStrategy
from lightning_core.store.base import LightningStore, StoreCapabilities
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.trainer.arguments import check_agent
from lightning_core.trainer.bundles import serve_worker
from lightning_core.trainer.check.evidence import Evidence
from lightning_core.trainer.check.points import Seen, check_points
from lightning_core.trainer.check.report import CheckPoint, CheckReport
from lightning_core.trainer.check.watch import Watch
from lightning_core.trainer.proxied import behind_proxy
from lightning_core.types import LLM, NamedResources, RolloutConfig

if TYPE_CHECKING:
    from lightning_core.algorithm.base import Need
    from lightning_core.execution.base import ExecutionEvent
    from lightning_core.litagent.agent import LitAgent
    from lightning_core.trainer.trainer import Trainer

__all__ = ["run_check"]

logger = logging.getLogger(__name__)

_DEFAULT_NEEDS: Final[frozenset[Need]] = frozenset({"rewards"})
"""What an algorithm is taken to need as long as none is chosen."""


class _TrialStore(InMemoryLightningStore):
    """The store of one check, as choosy about what it keeps as the trainer's own."""


class _JsonTrialStore(_TrialStore):
    capabilities = StoreCapabilities()


def run_check(
    trainer: Trainer, agent: LitAgent[Any], task: Any, *, timeout_seconds: float | None = None
) -> CheckReport:
    """Run one rollout and report; see ``Trainer.check``."""
    check_agent(agent)
    return _Check(trainer, agent, task, timeout_seconds).run()


class _Check:
    def __init__(
        self, trainer: Trainer, agent: LitAgent[Any], task: Any, timeout_seconds: float | None
    ) -> None:
        self._trainer = trainer
        self._agent = agent
        self._task = task
        # What breaks is to be seen, not tried again.
        self._config = RolloutConfig(timeout_seconds=timeout_seconds, max_losses=0)
        self._label: str = getattr(agent, "__name__", type(agent).__name__)
        values = trainer.store.capabilities.python_values
        self._store: LightningStore = _TrialStore() if values else _JsonTrialStore()
        self._watch = Watch()
        self._resources: NamedResources = {}
        self._rollout_id: str | None = None
        self._started_proxy = False

    def run(self) -> CheckReport:
        trainer = self._trainer
        self._agent.set_trainer(trainer)
        failure: Exception | None = None
        try:
            for hook in trainer.hooks:
                hook.init()
            with behind_proxy(trainer.llm_proxy, trainer.start_engine(), self._store) as resources:
                self._resources = self._latest_resources() if resources is None else resources
                self._start_proxy()
                with self._watch.around():
                    strategy = SharedMemoryExecutionStrategy(1, graceful_seconds=1.0, cancel_seconds=1.0)
                    strategy.execute(self._put, self._serve, self._store)
                    # So that coroutines which nobody awaits are found before nobody listens.
                    gc.collect()
        except Exception as error:
            failure = error
        finally:
            if self._started_proxy:
                trainer.llm_proxy.stop()
            if trainer.engine is not None:
                trainer.engine.stop()
            trainer.tear_down_hooks()
        points = [] if failure is None else [self._failed(failure)]
        return bridge.run_sync(self._report(points))

    def _latest_resources(self) -> NamedResources:
        """Return what ``fit`` would find in the store."""
        latest = bridge.run_sync(self._trainer.store.get_latest_resources())
        return latest.resources if latest is not None else {}

    def _start_proxy(self) -> None:
        """Have the agent's calls go through the LLM proxy, which an algorithm would start."""
        proxy = self._trainer.llm_proxy
        if proxy is None or getattr(proxy, "running", False):
            return
        if hasattr(proxy, "set_store"):
            proxy.set_store(self._store)
        self._started_proxy = True
        resource = proxy.start()
        if isinstance(resource, LLM):
            self._resources = {**self._resources, "main_llm": resource}
        else:
            self._watch.idle.append(
                "llm_proxy: it knows no model by name, so no call of this check goes through it; give it a model_list"
            )

    async def _put(self, store: LightningStore, event: ExecutionEvent) -> None:
        """Stand in for an algorithm, with one task."""
        await store.add_resources(self._resources)
        rollout = await store.enqueue_rollout(self._task, mode="train", config=self._config)
        self._rollout_id = rollout.rollout_id
        await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id])

    async def _serve(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        trainer = self._trainer
        runner = trainer.runner if trainer.n_runners == 1 else trainer.make_runner()
        hooks = [*trainer.hooks, self._watch]
        await serve_worker(runner, self._agent, hooks, store, worker_id, event)

    def _failed(self, error: Exception) -> CheckPoint:
        if isinstance(error, UnserializableValueError):
            return CheckPoint(
                name="store",
                level="problem",
                text=f"the store {self._trainer.store.location} cannot keep the task: {error}",
                fix='make tasks of JSON values, or use Trainer(store="memory")',
            )
        logger.debug("the check failed", exc_info=error)
        return CheckPoint(
            name="set-up",
            level="problem",
            text=f"the rollout could not be run: {type(error).__name__}: {error}",
            fix="see the message; what fails here would fail in fit as well",
        )

    async def _report(self, points: list[CheckPoint]) -> CheckReport:
        store, trainer = self._store, self._trainer
        rollout = await store.get_rollout_by_id(self._rollout_id) if self._rollout_id is not None else None
        if rollout is None:
            return CheckReport(agent=self._label, points=points)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        spans = await store.query_spans(rollout.rollout_id, "latest")
        seen = Seen(
            agent=self._agent,
            rollout=rollout,
            attempt=attempt,
            evidence=Evidence.of(spans),
            watch=self._watch,
            resources=self._resources,
            tracer=trainer.tracer_name,
            adapter=trainer.adapter,
            needs=_DEFAULT_NEEDS if trainer.algorithm is None else trainer.algorithm.needs,
            chosen=trainer.algorithm is not None,
        )
        return CheckReport(
            agent=self._label,
            status=rollout.status,
            reason=attempt.reason if attempt is not None else None,
            reward=seen.evidence.final_reward,
            points=[*points, *check_points(seen)],
            spans=spans,
        )
