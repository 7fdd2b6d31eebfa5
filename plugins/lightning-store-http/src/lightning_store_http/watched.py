"""The client of a process that the strategy has started: it tells who works here, and notices the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning_core.errors import StoreUnavailableError
from lightning_core.execution.event import StopEvent
from lightning_core.types import AttemptedRollout

from .channel import Call
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
    _on_gone: Callable[[], None] | None = None
    _workers: frozenset[str] = frozenset()

    def watch(self, stop: StopEvent, on_worker: Callable[[str], None], on_gone: Callable[[], None]) -> None:
        """Begin to watch.

        Args:
            stop: Set when the run is over.
            on_worker: Called with each new worker id, before it asks for work.
            on_gone: Called when the server has not answered anything for ``retry_seconds``.
        """
        self._stop = stop
        self._on_worker = on_worker
        self._on_gone = on_gone
        self._peer.answered = time.monotonic()

    async def dequeue_rollouts(
        self, limit: int = 1, worker_id: str | None = None, wait: float = 0.0, **others: Any
    ) -> list[AttemptedRollout]:
        """Take queued rollouts; see :meth:`LightningStore.dequeue_rollouts`."""
        if worker_id is not None and worker_id not in self._workers:
            self._workers |= {worker_id}
            if self._on_worker is not None:
                self._on_worker(worker_id)
        rollouts = await super().dequeue_rollouts(limit, worker_id, wait, **others)
        if self.run_over and self._stop is not None:
            self._stop.set()
        return rollouts

    async def follow(self, follower: str, *, leaves: bool = False) -> str | None:
        """Have the server stay until somebody has seen how its run has ended.

        Args:
            follower: Random name of who wants to see that.
            leaves: They do not want to any more.

        Returns:
            The id of the run that the server serves, or ``None`` if it does not serve a single one.
        """
        channel = await self._channel()
        return await channel.call(
            Call.write("follow", {"follower": follower, "leaves": leaves}, writes=False)
        )

    async def _call(self, name: str, **arguments: Any) -> Any:
        try:
            return await super()._call(name, **arguments)
        except StoreUnavailableError as error:
            self._missed(error)
            raise

    async def _call_alone(self, name: str, **arguments: Any) -> Any:
        try:
            return await super()._call_alone(name, **arguments)
        except StoreUnavailableError as error:
            self._missed(error)
            raise

    def _missed(self, error: StoreUnavailableError) -> None:
        # A server that answers, and whose store is unavailable, is not gone.
        if time.monotonic() - self._peer.answered < self._retry_seconds or self._stop is None:
            return
        self.gone = error
        self._stop.set()
        if self._on_gone is not None:
            self._on_gone()
