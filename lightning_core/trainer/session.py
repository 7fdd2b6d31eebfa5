"""One run as its store knows it: begun or resumed, kept this process's own, and ended with its result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_core.errors import ConfigurationError, ResumeError
from lightning_core.trainer.keys import initial_resources_id
from lightning_core.trainer.owner import RunHold
from lightning_core.trainer.result import TrainingResult
from lightning_core.trainer.resumption import (
    algorithm_name,
    choose_run,
    clear_up,
    unfinished_run,
    with_endpoints,
)
from lightning_core.trainer.scope import RunStore, run_store
from lightning_core.types import NamedResources, Run, RunStatus

if TYPE_CHECKING:
    from lightning_core.algorithm.base import BaseAlgorithm
    from lightning_core.store.base import LightningStore

__all__ = ["RunSession"]

logger = logging.getLogger(__name__)


async def _begun_runs(store: LightningStore) -> list[Run]:
    """The runs of a store without the newest ones that failed before they began anything, unless all did."""
    runs = await store.query_runs()
    begun = list(runs)
    while begun and begun[-1].status == "failed":
        if (await store.statistics(run_id=begun[-1].run_id)).rollouts:
            break
        begun.pop()
    return begun or runs


class RunSession:
    """A run while a trainer executes it; :meth:`open` makes one.

    Attributes:
        run_id: The run.
        scope: The view of the store for algorithm and runners.
        resumable: Whether a later process can go on with it.
    """

    def __init__(self, store: LightningStore, run: Run, saved: Mapping[str, Any]) -> None:
        self.run_id = run.run_id
        self.scope: RunStore = run_store(store, run.run_id, saved, resumed=run.resumed > 0)
        self.resumable: bool = store.capabilities.durable
        self._store = store
        self._run = run
        self._saved = saved
        # A store that ends with this process has no run for another one.
        self._hold = RunHold(store, run, self.scope.lose) if self.resumable else None

    @classmethod
    async def open(
        cls,
        store: LightningStore,
        algorithm: BaseAlgorithm,
        settings: Mapping[str, Any],
        wanted: bool | str = False,
    ) -> RunSession:
        """Begin a run, or take up an older one, and hand it to the algorithm.

        Args:
            store: Where the run is kept.
            algorithm: Its algorithm.
            settings: Which parts are used, by name.
            wanted: The run to resume, ``True`` for the newest that has not succeeded, or ``"auto"`` for the
                algorithm's newest unless that has succeeded or there is none.

        Raises:
            ConfigurationError: If a store that forgets is asked to resume.
            ResumeError: If the run cannot be resumed.
        """
        name = algorithm_name(algorithm)
        settings = {**settings, "algorithm_class": name}
        if wanted == "auto" and store.capabilities.durable:
            wanted = unfinished_run(await _begun_runs(store), name)
        if wanted is False:
            session = cls(store, Run(settings=settings), {})
        else:
            if not store.capabilities.durable:
                raise ConfigurationError(
                    f"resume={wanted!r}: the store {store.location!r} forgets its runs with the process, so there is "
                    "none to resume; give Trainer(store='sqlite:///runs.db') or another durable one"
                )
            runs = await (_begun_runs(store) if wanted is True else store.query_runs())
            run = choose_run(runs, wanted, name, store.location)
            _compare(run, settings)
            run = run.model_copy(
                update={
                    "status": "running",
                    "resumed": run.resumed + 1,
                    "settings": settings,
                    "result": None,
                    "end_time": None,
                    "error": None,
                }
            )
            session = cls(store, run, await store.load_run_state(run.run_id) or {})
            logger.info("resuming run %s, for the %d. time", run.run_id, run.resumed)
        await session._claim()
        algorithm.set_run_id(session.run_id)
        algorithm.set_store(session.scope)
        try:
            algorithm.restore(dict(session._saved))
        except BaseException:
            await session._release()
            raise
        return session

    async def _claim(self) -> None:
        if self._hold is None:
            await self._store.save_run(self._run)
        else:
            await self._hold.claim()

    async def _release(self) -> None:
        if self._hold is not None:
            await self._hold.release()

    async def begin(self, algorithm: BaseAlgorithm, resources: NamedResources | None) -> None:
        """Put the resources in place that the run starts from, and clear up after an earlier end."""
        again: str | None = None
        if self._run.resumed:
            if algorithm.best_resources is not None:
                algorithm.best_resources = with_endpoints(algorithm.best_resources, resources or {})
            again = await clear_up(self._store, self._run, self._saved, resources)
        if resources is None and await self.scope.get_latest_resources() is None:
            # Even an empty set says that this run's agents have what they get.
            resources = {}
        if resources is not None:
            if self._hold is None:
                await self.scope.add_resources(resources)
            else:
                await self.scope.update_resources(initial_resources_id(self.run_id), resources)
        stored = None if again is None else await self._store.get_resources_by_id(again)
        if stored is not None:
            await self.scope.update_resources(stored.resources_id, stored.resources)

    async def finish(self, algorithm: BaseAlgorithm, status: RunStatus, error: str | None) -> TrainingResult:
        """Store how the run has ended, and return its result."""
        await self._release()
        statistics = await self._store.statistics(run_id=self.run_id)
        result = TrainingResult(
            run_id=self.run_id,
            status=status,
            best_resources=algorithm.best_resources,
            metrics=algorithm.metrics_history,
            rollouts=statistics.rollouts,
            store=self._store.location,
            start_time=self._run.start_time,
            end_time=time.time(),
            resumed=self._run.resumed,
            settings=self._run.settings,
        )
        if self.scope.lost is not None:
            # The run is another process's, which will store its end.
            raise ResumeError(self.scope.lost)
        changes: dict[str, Any] = {
            "status": status,
            "end_time": result.end_time,
            "result": result.without_keys().model_dump(mode="json"),
            "error": error,
            "owner": None,
        }
        await self._store.save_run(self._run.model_copy(update=changes))
        return result


def _compare(run: Run, settings: Mapping[str, Any]) -> None:
    """Warn of settings that are not those with which the run was begun."""
    names = sorted((run.settings.keys() | settings.keys()) - {"store"})
    changed = [
        f"{name} was {run.settings.get(name)!r} and is {settings.get(name)!r}"
        for name in names
        if run.settings.get(name) != settings.get(name)
    ]
    if changed:
        logger.warning("run %s is resumed with other settings: %s", run.run_id, "; ".join(changed))
