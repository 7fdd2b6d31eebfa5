"""The client of a process that the strategy has started: it tells who works here, and notices the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_core.errors import StoreClosedError, StoreUnavailableError
from lightning_core.execution.event import StopEvent
from lightning_core.types import AttemptedRollout

from .client import LightningStoreClient

__all__ = ["WatchedClient"]


class WatchedClient(LightningStoreClient):
    """A ``LightningStoreClient`` that ends its runner when the run is over or the server stays away.

    Attributes:
        gone: What was said when the server had stayed away for ``retry_seconds``.
    """

    gone: StoreUnavailableError | None = None
    _stop: StopEvent | None = None
    _on_worker: Callable[[str], None] | None = None
    _workers: frozenset[str] = frozenset()

    def watch(self, stop: StopEvent, on_worker: Callable[[str], None]) -> None:
        """Set the event that ends the runner, and who is told each new worker id."""
        self._stop = stop
        self._on_worker = on_worker

    async def dequeue_rollouts(
        self, limit: int = 1, worker_id: str | None = None, wait: float = 0.0, **others: Any
    ) -> list[AttemptedRollout]:
        """Take queued rollouts; see :meth:`LightningStore.dequeue_rollouts`.

        Raises:
            StoreClosedError: If the server stays away.
        """
        if worker_id is not None and worker_id not in self._workers:
            self._workers |= {worker_id}
            if self._on_worker is not None:
                self._on_worker(worker_id)
        try:
            rollouts = await super().dequeue_rollouts(limit, worker_id, wait, **others)
        except StoreUnavailableError as error:
            self.gone = error
            raise StoreClosedError(str(error)) from error
        if self.run_over and self._stop is not None:
            self._stop.set()
        return rollouts
