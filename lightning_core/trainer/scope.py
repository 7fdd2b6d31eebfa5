"""A view of a store that puts everything under one run, and finds again what the run has made before."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lightning_core.errors import ResumeError
from lightning_core.store.base import EnqueueRequest, LightningStore, StoreStatistics
from lightning_core.trainer.keys import RunKeys, successor
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    NamedResources,
    ResourcesUpdate,
    RolloutConfig,
    RolloutMode,
    RolloutV2,
    TaskInput,
)

__all__ = ["RunStore", "run_store"]

R = TypeVar("R", bound=RolloutV2)

_ENDED_BY_A_CRASH = frozenset({"unresponsive", "infrastructure", "cancelled"})


class _Delegation:
    """An attribute that is the inner store's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return getattr(instance.inner, self._name)


def run_store(
    inner: LightningStore, run_id: str, saved: Mapping[str, Any] | None = None, *, resumed: bool = False
) -> RunStore:
    """Return a view of ``inner`` that puts every rollout it creates under ``run_id``, and takes no others' work.

    Reading and reporting go straight through. In a durable store, a rollout that is enqueued gets an idempotency key
    made of what is asked for (see ``lightning_core.trainer.keys``), so that an algorithm that runs again gets the
    rollouts which it has had already.

    Args:
        inner: The store.
        run_id: The run.
        saved: What the store keeps as the run's state.
        resumed: Whether the run goes on after an end; then rollouts which that end has taken along run again.
    """
    make: Any = RunStore
    return make(inner, run_id, saved or {}, resumed)


class RunStore(LightningStore):
    """See :func:`run_store`. What it does not name is made to delegate below."""

    def __init__(self, inner: LightningStore, run_id: str, saved: Mapping[str, Any], resumed: bool) -> None:
        self.inner = inner
        self.run_id = run_id
        self.latest_resources_id: str | None = None
        """The resources that are this run's latest; other runs may have theirs in the same store."""
        self.lost: str | None = None
        """Why this process may not go on with the run, once that is so."""
        self.on_new: Callable[[Sequence[RolloutV2]], None] | None = None
        """Is told of every rollout that is put in or found again, if somebody wants to know."""
        self._saved: dict[str, Any] = {"step": 0, **saved}
        self._saving = threading.Lock()
        self._keys = RunKeys(run_id, self._saved["step"])
        self._resumed = resumed
        # An own key means the same rollout for the rest of this process, also when that fails meanwhile.
        self._settled: dict[str, str] = {}

    def elsewhere(self) -> Callable[[LightningStore], RunStore]:
        """Return what makes this view anew, over a client of this store, for an algorithm in another process.

        It names there what the algorithm asks for, so that a request may be sent twice when an answer is lost.
        """
        return partial(run_store, run_id=self.run_id, saved=self._saved, resumed=self._resumed)

    def lose(self, why: str) -> None:
        """Another process has the run: from now on, algorithm and runners of this one are refused."""
        self.lost = why

    def _check(self) -> None:
        if self.lost is not None:
            raise ResumeError(self.lost)

    # Putting work in

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        worker_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout of this run and its first attempt. Without a key it is always a new one."""
        self._check()

        async def start(keys: Sequence[str | None], _: Sequence[int]) -> list[AttemptedRollout]:
            return [
                await self.inner.start_rollout(
                    *(input, mode, resources_id, config, metadata),
                    run_id=run_id or self.run_id,
                    worker_id=worker_id,
                    idempotency_key=keys[0],
                )
            ]

        return (await self._settle([self._own(idempotency_key)], start))[0]

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put rollouts of this run at the end of the queue, or return those that it has put there before."""
        self._check()
        named = self.capabilities.durable

        async def enqueue(keys: Sequence[str | None], which: Sequence[int]) -> list[RolloutV2]:
            return await self.inner.enqueue_rollouts(
                [
                    requests[index].replace(run_id=requests[index].run_id or self.run_id, idempotency_key=key)
                    for key, index in zip(keys, which, strict=True)
                ]
            )

        keys = [
            self._own(request.idempotency_key)
            if request.idempotency_key is not None or not named
            else self._keys.rollout(request)
            for request in requests
        ]
        return await self._settle(keys, enqueue)

    def _own(self, key: str | None) -> str | None:
        return None if key is None else self._keys.own(key)

    async def _settle(
        self,
        keys: list[str | None],
        put: Callable[[Sequence[str | None], Sequence[int]], Awaitable[list[R]]],
    ) -> list[R]:
        """Put rollouts in; those that are there already, and were ended by a crash, once more under the next key."""
        rollouts = await self._put(keys, put)
        if self.on_new is not None:
            self.on_new(rollouts)
        return rollouts

    async def _put(
        self,
        keys: list[str | None],
        put: Callable[[Sequence[str | None], Sequence[int]], Awaitable[list[R]]],
    ) -> list[R]:
        actual = [key and self._settled.get(key, key) for key in keys]
        rollouts = await put(actual, range(len(keys)))
        if not self._resumed:
            return rollouts
        again = [index for index, key in enumerate(keys) if key is not None and key not in self._settled]
        while again := [index for index in again if await self._crashed(rollouts[index])]:
            for index in again:
                key = actual[index]
                assert key is not None
                actual[index] = successor(key)
            for index, rollout in zip(
                again, await put([actual[index] for index in again], again), strict=True
            ):
                rollouts[index] = rollout
        for key, found in zip(keys, actual, strict=True):
            if key is not None and found is not None and key.startswith(self._keys.own("")):
                self._settled[key] = found
        return rollouts

    async def _crashed(self, rollout: RolloutV2) -> bool:
        if rollout.status not in ("failed", "cancelled"):
            return False
        attempt: Attempt | None
        if isinstance(rollout, AttemptedRollout):
            attempt = rollout.attempt
        else:
            attempt = await self.inner.get_latest_attempt(rollout.rollout_id)
        # Who ends a rollout on purpose, with update_rollout, says nothing in the attempt about it.
        return (
            attempt is not None
            and attempt.reason in _ENDED_BY_A_CRASH
            and attempt.end_time == rollout.end_time
            and ("error" in attempt.metadata or "detail" in attempt.metadata)
        )

    # Taking work out

    async def dequeue_rollouts(
        self,
        limit: int = 1,
        worker_id: str | None = None,
        wait: float = 0.0,
        *,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> list[AttemptedRollout]:
        """Take queued rollouts of this run."""
        self._check()
        return await self.inner.dequeue_rollouts(
            limit, worker_id, wait, run_id=run_id or self.run_id, request_id=request_id
        )

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources and make them the latest of this run; the same ones as before keep their id."""
        self._check()
        if not self.capabilities.durable:
            return await self._now_latest(await self.inner.add_resources(resources))
        return await self.update_resources(self._keys.resources(resources), resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store the next version of resources, and make them the latest of this run."""
        self._check()
        return await self._now_latest(await self.inner.update_resources(resources_id, resources))

    async def _now_latest(self, update: ResourcesUpdate) -> ResourcesUpdate:
        if update.resources_id != self.latest_resources_id:
            self.latest_resources_id = update.resources_id
            if self.capabilities.durable:
                await self._save({"latest_resources_id": update.resources_id})
        return update

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that this run has added or updated last, or else the store's latest."""
        if self.latest_resources_id is None:
            return await self.inner.get_latest_resources()
        return await self.inner.get_resources_by_id(self.latest_resources_id)

    # The run

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store a checkpoint. What is enqueued from now on belongs to the next step."""
        self._check()
        if run_id != self.run_id:
            await self.inner.save_run_state(run_id, state)
            return
        if "step" in state:
            # It comes from the algorithm's own view in another process, which counts the steps.
            await self._save(state)
            return
        latest = self.latest_resources_id
        step = self._keys.step + 1
        await self._save({**state, "step": step, "resources_id": latest, "latest_resources_id": latest})
        self._keys.next_step()

    async def _save(self, changes: dict[str, Any]) -> None:
        with self._saving:
            before = self._saved
            self._saved = {**before, **changes}
        while True:
            saved = self._saved
            try:
                await self.inner.save_run_state(self.run_id, saved)
            except BaseException:
                with self._saving:
                    if self._saved is saved:
                        self._saved = before
                raise
            # What somebody else saved meanwhile may have reached the store before this.
            if saved is self._saved:
                return

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store, rollouts of this run only."""
        return await self.inner.statistics(run_id=run_id or self.run_id)


_OWN = set(vars(RunStore)) | {"enqueue_rollout", "dequeue_rollout"}
for _name in vars(LightningStore):
    if not _name.startswith("_") and _name not in _OWN:
        _delegation = _Delegation()
        _delegation.__set_name__(RunStore, _name)
        setattr(RunStore, _name, _delegation)
RunStore.__abstractmethods__ = frozenset()
