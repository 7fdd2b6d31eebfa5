"""``Trainer``: puts the parts together by name and runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, TypeAlias, TypeVar

# Names of these two are imported when they are used, which keeps `from lightning_core import Trainer` light.
from lightning_core import bridge, plugin
from lightning_core.errors import ConfigurationError
from lightning_core.execution.garbage import rare_collections
from lightning_core.litagent.agent import LitAgent
from lightning_core.trainer.arguments import (
    check_agent,
    check_count,
    check_dataset,
    check_dry_run,
    check_needs,
    check_resources,
    deprecated,
    describe,
    refuse_unknown,
    renamed,
    resolve_hooks,
)
from lightning_core.trainer.bundles import AlgorithmBundle, RunnerBundle, RunnerSpecs
from lightning_core.trainer.legacy import import_legacy, is_v0_1
from lightning_core.trainer.result import TrainingResult
from lightning_core.types import Dataset, Hook, NamedResources, ParallelWorkerBase, RunStatus

if TYPE_CHECKING:
    from lightning_core.adapter.base import TraceAdapter
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.engine.base import BaseEngine
    from lightning_core.execution.base import ExecutionStrategy
    from lightning_core.runner.base import BaseRunner
    from lightning_core.store.base import LightningStore
    from lightning_core.tracer.base import BaseTracer
    from lightning_core.trainer.check import CheckReport

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

Spec: TypeAlias = T | type[T] | Callable[..., T] | str | Mapping[str, Any] | None
"""How a part may be given."""


class Trainer(ParallelWorkerBase):
    """Runs an agent on tasks, so that an algorithm can improve its resources.

    Every part is given as a specification: an instance, a class, a factory, an installed name (``"otel"``), a URL
    (``"sqlite:///runs.db"``), an import path (``"pkg.mod:Class"``), or ``{"type": any of these, **settings}``. ``None``
    stands for the default, which ``lightning-core doctor`` prints.

    Args:
        dev: Dry run: the algorithm must be a ``FastAlgorithm``, ``baseline`` unless another is given.
        n_runners: How many runners work in parallel.
        max_rollouts: How many rollouts each runner runs at most; ``None`` for no limit.
        initial_resources: The resources to start from, by name.
        tracer: Records what agents do.
        adapter: Turns spans into training data.
        store: Where rollouts, spans and results are kept.
        runner: Runs the rollouts.
        strategy: Where algorithm and runners execute.
        algorithm: What learns.
        llm_proxy: Proxy between agents and models. One such as ``gateway`` is put in front of the models that a run
            starts from, the engine's and those of ``initial_resources``: agents call them through it.
        n_workers: Deprecated, use ``n_runners``.
        max_tasks: Deprecated, use ``max_rollouts``.
        daemon: Deprecated. Whether the worker processes of a v0.1 server are daemonic, as they are by default; without
            effect on other runs.
        triplet_exporter: Deprecated, use ``adapter``.
        hooks: Follow the lifecycle of each rollout: a list of hooks or specifications.
        engine: Serves a model while the run lasts; agents find it as the resource ``main_llm``.
        unknown: Anything else is refused.

    Raises:
        ConfigurationError: If arguments do not fit together, or a keyword does not exist.
        PluginError: If a part cannot be found or its settings are wrong.
    """

    def __init__(
        self,
        *,
        dev: bool = False,
        n_runners: int | None = None,
        max_rollouts: int | None = None,
        initial_resources: NamedResources | None = None,
        tracer: Spec[BaseTracer] = None,
        adapter: Spec[TraceAdapter[Any]] = None,
        store: Spec[LightningStore] = None,
        runner: Spec[BaseRunner[Any]] = None,
        strategy: Spec[ExecutionStrategy] = None,
        algorithm: Spec[BaseAlgorithm] = None,
        llm_proxy: Spec[Any] = None,
        n_workers: int | None = None,
        max_tasks: int | None = None,
        daemon: bool | None = None,
        triplet_exporter: Spec[TraceAdapter[Any]] = None,
        hooks: Sequence[Spec[Hook]] | Spec[Hook] = None,
        engine: Spec[BaseEngine] = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(unknown, Trainer.__init__)
        if daemon is not None:
            deprecated("daemon", "nothing; it has no effect but on the workers of a v0.1 server")
        n_runners = renamed("n_workers", n_workers, "n_runners", n_runners)
        max_rollouts = renamed("max_tasks", max_tasks, "max_rollouts", max_rollouts)
        adapter = renamed("triplet_exporter", triplet_exporter, "adapter", adapter)
        check_count("n_runners", n_runners, least=1)
        check_count("max_rollouts", max_rollouts, least=0)
        self.is_dev = dev
        self._daemon = daemon is not False
        self._legacy_fit: Any = None
        self.max_rollouts = max_rollouts
        self.initial_resources = check_resources(initial_resources)
        self.adapter: TraceAdapter[Any] | None = plugin.resolve("adapter", adapter)
        self.algorithm: BaseAlgorithm | None = self._resolve_algorithm(algorithm)
        self.tracer: BaseTracer = plugin.resolve("tracer", tracer)
        self.hooks: list[Hook] = resolve_hooks(hooks)
        plugin.collect_hooks(self.hooks)
        strategy_defaults = {} if n_runners is None else {"n_runners": n_runners}
        self.strategy: ExecutionStrategy = plugin.resolve("strategy", strategy, **strategy_defaults)
        if n_runners is not None and self.strategy.n_runners != n_runners:
            raise ConfigurationError(
                f"Trainer(n_runners={n_runners}) and its strategy, which has {self.strategy.n_runners}, disagree"
            )
        self.n_runners = self.strategy.n_runners
        self.runner_specs = RunnerSpecs(runner, tracer, hooks, max_rollouts)
        if self.n_runners > 1 and not isinstance(runner, str | Mapping | type) and hasattr(runner, "iter"):
            raise ConfigurationError(
                f"Trainer(runner=<instance>) cannot serve {self.n_runners} workers, each of which needs its own; "
                "give a name, a class or {'type': ..., **settings}"
            )
        # Made here once, so that a wrong setting is found before anything starts.
        self.runner: BaseRunner[Any] = self.make_runner()
        self.engine: BaseEngine | None = plugin.resolve("engine", engine)
        self.store: LightningStore = self.strategy.remote_store() or plugin.resolve("store", store)
        self.llm_proxy: Any = plugin.resolve("llm_proxy", llm_proxy)
        self.tracer_name = describe(tracer, self.tracer) or type(self.tracer).__name__
        self._settings = {
            "tracer": self.tracer_name,
            "store": self.store.location,
            "runner": describe(runner, self.runner),
            "strategy": describe(strategy, self.strategy),
            "n_runners": self.n_runners,
            "adapter": describe(adapter, self.adapter),
            "algorithm": describe(algorithm, self.algorithm),
            "engine": describe(engine, self.engine),
            "llm_proxy": describe(llm_proxy, self.llm_proxy),
            "hooks": [type(hook).__name__ for hook in self.hooks],
        }

    def fit(
        self,
        agent: LitAgent[Any],
        train_data: Any = None,
        *,
        val_data: Any = None,
        dev_data: Any = None,
        dev_backend: Any = None,
        resume: bool | str | None = None,
    ) -> TrainingResult:
        """Train the agent on a dataset.

        A run in a durable store can be resumed after a crash, an error or Ctrl+C. The algorithm then starts from its
        last checkpoint, or else from its beginning, and gets back what it asks for again: rollouts that have ended are
        not run again, except for those that were cancelled, whose worker fell silent or whose surroundings broke.
        Metrics and best resources go on from the checkpoint. Give the same agent, data and settings as before.

        Args:
            agent: The agent, for instance a function under ``@rollout``.
            train_data: Tasks to learn from: anything with a length and item access. Or a v0.1 server that hands them
                out, as its URL or an ``AgentLightningClient``; without an algorithm, workers then take tasks from it
                until they are interrupted, each at most ``max_rollouts``.
            val_data: Held-out tasks. A v0.1 server hands them out among the others.
            dev_data: Tasks for a dry run, or a ``DevTaskLoader`` or server that has them; used in place of the other
                two with ``Trainer(dev=True)``.
            dev_backend: Deprecated, use ``dev_data``.
            resume: The id of a run in the trainer's store; ``True`` for the newest that has not succeeded; or
                ``"auto"``, for programs that something starts again, to go on with the algorithm's newest run if that
                has not succeeded and else to begin one. ``None`` asks the environment variable
                ``LIGHTNING_CORE_RESUME`` (``1``, ``auto`` or an id), which holds for the first run of a process.

        Returns:
            Best resources, metrics, counts by final status, and where the run is stored.

        Raises:
            DatasetError: If a dataset is empty, or has no length or item access.
            ConfigurationError: If there is no algorithm, or a store that forgets is asked to resume.
            CaptureError: If the first rollouts succeed and their traces lack what the algorithm needs; see
                :meth:`check`.
            ResumeError: If the run cannot be resumed: there is none, it has succeeded, another algorithm has begun
                it, or another process is at work on it.
            ImportError: If data are a server's URL or a client, or the algorithm has a client of its own, and
                ``lightning-legacy`` is not installed.
        """
        if dev_backend is not None:
            deprecated("dev_backend", "dev_data")
            dev_data = dev_backend if dev_data is None else dev_data
        used = (dev_data, None) if self.is_dev and dev_data is not None else (train_data, val_data)
        if not is_v0_1(self.algorithm, *used):
            return self.fit_v2(agent, used[0], val_dataset=used[1], resume=resume)
        if resume:
            raise ConfigurationError(f"fit(resume={resume!r}): a run on a v0.1 server cannot be resumed")
        legacy = import_legacy("training", "a server's URL or a client as data")
        self._legacy_fit = legacy.LegacyFit(self, agent, train_data, val_data=val_data, dev_data=dev_data)
        return self._legacy_fit.run(daemon=self._daemon)

    def fit_v2(
        self,
        agent: LitAgent[T_co],
        train_dataset: Dataset[T_co] | None = None,
        *,
        val_dataset: Dataset[T_co] | None = None,
        resume: bool | str | None = None,
    ) -> TrainingResult:
        """Train the agent on datasets; see :meth:`fit`."""
        if self.strategy.role == "runner":
            return self._serve(agent)
        algorithm = self.algorithm
        if algorithm is None:
            raise ConfigurationError(
                "Trainer has no algorithm: give algorithm='baseline' to run each task once, 'search' to find the best "
                "prompt, or one of your own"
            )
        if self.is_dev:
            check_dry_run(algorithm)
        return self._fit(agent, algorithm, train_dataset, val_dataset, resume)

    def dev(
        self,
        agent: LitAgent[T_co],
        train_dataset: Dataset[T_co] | None = None,
        *,
        val_dataset: Dataset[T_co] | None = None,
        resume: bool | str | None = None,
    ) -> TrainingResult:
        """Try everything out with a ``FastAlgorithm`` and the real runner; see :meth:`fit`.

        Uses the trainer's algorithm, or ``baseline`` if there is none.

        Raises:
            ConfigurationError: If the trainer's algorithm is no ``FastAlgorithm``.
        """
        if self.strategy.role == "runner":
            return self._serve(agent)
        algorithm = self.algorithm if self.algorithm is not None else plugin.resolve("algorithm", "baseline")
        from lightning_core.algorithm.base import FastAlgorithm

        if not isinstance(algorithm, FastAlgorithm):
            raise ConfigurationError(
                f"Trainer.dev needs a FastAlgorithm, and {type(algorithm).__name__} is none; "
                "use Trainer(algorithm='baseline').dev(...)"
            )
        return self._fit(agent, algorithm, train_dataset, val_dataset, resume)

    def check(
        self, agent: LitAgent[T_co], task: T_co, *, timeout_seconds: float | None = None
    ) -> CheckReport:
        """Run one rollout, and report what training on it would miss: calls, token ids, the reward, spans, settings.

        It runs in this process with the trainer's tracer, runner, hooks, adapter, engine, proxy and resources. The
        trainer's store gets nothing. What the trainer's algorithm needs and the rollout lacks is a problem; without an
        algorithm, a missing reward is one.

        Args:
            agent: The agent.
            task: What it is to do, such as an item of the training set.
            timeout_seconds: How long it may take, in seconds; ``None`` for no limit.

        Returns:
            The report. It tells of an agent that fails as well; ``print`` shows all of it.

        Raises:
            ConfigurationError: If ``agent`` is no agent.
        """
        from lightning_core.trainer.check import run_check

        return run_check(self, agent, task, timeout_seconds=timeout_seconds)

    def client(self) -> Any:
        """Return the v0.1 client from which :meth:`fit` takes tasks, or took them last.

        Raises:
            ConfigurationError: If there was no such ``fit``.
            ImportError: If ``lightning-legacy`` is not installed.
        """
        import_legacy("client", "Trainer.client")
        if self._legacy_fit is None:
            raise ConfigurationError(
                "Trainer.client is the client of a v0.1 server, and fit was given none; give its URL as train_data"
            )
        return self._legacy_fit.client

    # Deprecated names

    @property
    def n_workers(self) -> int:
        """Deprecated: ``n_runners``."""
        return self.n_runners

    @property
    def max_tasks(self) -> int | None:
        """Deprecated: ``max_rollouts``."""
        return self.max_rollouts

    @property
    def triplet_exporter(self) -> TraceAdapter[Any] | None:
        """Deprecated: ``adapter``."""
        return self.adapter

    @property
    def daemon(self) -> bool:
        """Deprecated: whether the worker processes of a v0.1 server are daemonic."""
        return self._daemon

    @staticmethod
    def kill_orphaned_processes() -> None:
        """End processes that earlier runs left behind, when the process that had started them was killed.

        Runners notice that by themselves and leave; this is for one that is stuck. Only processes that a strategy of
        this project has started for this user are ended, and only if the process that started them is gone.
        """
        from lightning_core.execution.orphans import end_orphans

        end_orphans()

    # The inside

    def _resolve_algorithm(self, spec: Any) -> BaseAlgorithm | None:
        if spec is None and self.is_dev:
            spec = "baseline"
        return plugin.resolve("algorithm", spec)

    def make_runner(self) -> BaseRunner[Any]:
        """Make a runner as this trainer was told to; each worker has one of its own."""
        return self.runner_specs.make_runner(self.tracer)

    def _fit(
        self,
        agent: LitAgent[Any],
        algorithm: BaseAlgorithm,
        train_dataset: Dataset[Any] | None,
        val_dataset: Dataset[Any] | None,
        resume: bool | str | None,
    ) -> TrainingResult:
        check_agent(agent)
        check_dataset("train", train_dataset)
        check_dataset("val", val_dataset)
        check_needs(algorithm)
        bundle = AlgorithmBundle(algorithm, train_dataset, val_dataset, self.tracer_name)
        with self.strategy.prepared():
            return self._execute(agent, algorithm, bundle, resume)

    def _execute(
        self,
        agent: LitAgent[Any],
        algorithm: BaseAlgorithm,
        bundle: AlgorithmBundle,
        resume: bool | str | None,
    ) -> TrainingResult:
        from lightning_core.trainer.proxied import behind_proxy
        from lightning_core.trainer.resumption import wanted_run
        from lightning_core.trainer.session import RunSession

        agent.set_trainer(self)
        algorithm.reset()
        algorithm.set_trainer(self)
        algorithm.set_adapter(self.adapter)
        algorithm.set_llm_proxy(self.llm_proxy)
        opening = RunSession.open(self.store, algorithm, self._settings, wanted_run(resume))
        session = bridge.run_sync(opening)
        status: RunStatus = "failed"
        error: str | None = None
        interrupted = False
        result: TrainingResult | None = None
        try:
            for hook in self.hooks:
                hook.init()
            with behind_proxy(self.llm_proxy, self.start_engine(), session.scope) as resources:
                algorithm.set_initial_resources(resources)
                bridge.run_sync(session.begin(algorithm, resources))
                with rare_collections():
                    self.strategy.execute(bundle, RunnerBundle(self, agent, session.run_id), session.scope)
            if bundle.completed:
                status = "succeeded"
            else:
                status, error = "cancelled", "the runners were done (max_rollouts) before the algorithm was"
        except KeyboardInterrupt:
            status, error, interrupted = "cancelled", "interrupted", True
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            if session.resumable:
                failure.add_note(f"to go on from there: resume={session.run_id!r}")
            raise
        finally:
            try:
                result = bridge.run_sync(session.finish(algorithm, status, error))
            except Exception:
                if status != "failed":
                    raise
                # The error that ended the run is the one to raise.
                logger.exception("the end of run %s could not be stored", session.run_id)
            finally:
                if self.engine is not None:
                    self.engine.stop()
                self.tear_down_hooks()
        assert result is not None
        if interrupted:
            hint = f"; to go on from there: resume={result.run_id!r}" if session.resumable else ""
            logger.warning("interrupted; run %s is stored in %s%s", result.run_id, result.store, hint)
            # SystemExit rather than KeyboardInterrupt: it ends a script with the customary code and no traceback.
            raise SystemExit(130)
        return result

    def _serve(self, agent: LitAgent[Any]) -> TrainingResult:
        """Run the agent for a run that is executed elsewhere, and return that run's result as far as it is known."""
        check_agent(agent)
        start = time.time()
        try:
            with rare_collections():
                run, statistics = self.strategy.execute_runners(RunnerBundle(self, agent, None))
        except KeyboardInterrupt:
            logger.warning("interrupted; the runners have stopped")
            raise SystemExit(130) from None
        known = TrainingResult(
            run_id=run.run_id if run is not None else "unknown",
            status=run.status if run is not None else "running",
            rollouts=statistics.rollouts,
            store=self.store.location,
            start_time=run.start_time if run is not None else start,
            end_time=time.time(),
            settings=self._settings,
        )
        if run is None or run.result is None:
            return known
        return TrainingResult.model_validate({**run.result, "store": known.store})

    def tear_down_hooks(self) -> None:
        """End the life of the hooks in this process."""
        for hook in self.hooks:
            try:
                hook.teardown()
            except Exception:
                logger.exception("hook %s failed in teardown", type(hook).__name__)

    def start_engine(self) -> NamedResources | None:
        """Start the engine, if there is one, and return the resources that a run starts from."""
        if self.engine is None:
            return self.initial_resources
        served = {"main_llm": self.engine.start()}
        return {**served, **(self.initial_resources or {})}
