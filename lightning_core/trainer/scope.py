"""A view of a store that puts everything under one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_core.store.base import EnqueueRequest, LightningStore, StoreStatistics
from lightning_core.types import AttemptedRollout, RolloutConfig, RolloutMode, RolloutV2, TaskInput

__all__ = ["run_store"]


class _Delegation:
    """An attribute that is the inner store's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return getattr(instance.inner, self._name)


def run_store(inner: LightningStore, run_id: str) -> LightningStore:
    """Return a view of ``inner`` that puts every rollout it creates under ``run_id``, and takes no others' work.

    Reading and reporting go straight through.
    """
    make: Any = _RunStore
    return make(inner, run_id)


class _RunStore(LightningStore):
    """See :func:`run_store`. What it does not name is made to delegate below."""

    def __init__(self, inner: LightningStore, run_id: str) -> None:
        self.inner = inner
        self.run_id = run_id

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
    ) -> AttemptedRollout:
        """Create a rollout of this run and its first attempt."""
        return await self.inner.start_rollout(
            input, mode, resources_id, config, metadata, run_id=run_id or self.run_id, worker_id=worker_id
        )

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put rollouts of this run at the end of the queue."""
        return await self.inner.enqueue_rollouts(
            [request.replace(run_id=request.run_id or self.run_id) for request in requests]
        )

    async def dequeue_rollouts(
        self, limit: int = 1, worker_id: str | None = None, wait: float = 0.0, *, run_id: str | None = None
    ) -> list[AttemptedRollout]:
        """Take queued rollouts of this run."""
        return await self.inner.dequeue_rollouts(limit, worker_id, wait, run_id=run_id or self.run_id)

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store, rollouts of this run only."""
        return await self.inner.statistics(run_id=run_id or self.run_id)


_OWN = set(vars(_RunStore)) | {"enqueue_rollout", "dequeue_rollout"}
for _name in vars(LightningStore):
    if not _name.startswith("_") and _name not in _OWN:
        _delegation = _Delegation()
        _delegation.__set_name__(_RunStore, _name)
        setattr(_RunStore, _name, _delegation)
_RunStore.__abstractmethods__ = frozenset()
