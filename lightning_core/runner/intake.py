"""How a runner gets its rollouts: one request for all free slots, asked again when the answer is lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

from lightning_core.errors import LightningError, NoResourcesError
from lightning_core.runner.outage import LAST_SECONDS, Outage, is_transient, pauses
from lightning_core.store.base import LightningStore
from lightning_core.types import AttemptedRollout, NamedResources, ResourcesUpdate

if TYPE_CHECKING:
    from lightning_core.execution.base import ExecutionEvent

__all__ = ["BatchResources", "Intake", "Stop"]

logger = logging.getLogger(__name__)


class Stop:
    """What ends a runner: its event, or a store which says that the run is over."""

    def __init__(self, event: ExecutionEvent | None, store: LightningStore) -> None:
        self._event = event
        self._store = store
        self._waiting = asyncio.create_task(_wait_for(event)) if event is not None else None

    @property
    def asked(self) -> bool:
        """Whether no more work is to be taken."""
        return (self._event is not None and self._event.is_set()) or is_over(self._store)

    async def wait(self, *others: asyncio.Future[Any], seconds: float | None = None) -> None:
        """Wait until the event is set, one of ``others`` is done, or so many seconds have passed."""
        waited = [*others] if self._waiting is None else [self._waiting, *others]
        if waited:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        elif seconds is not None:
            await asyncio.sleep(seconds)

    def close(self) -> None:
        """Stop waiting for the event."""
        if self._waiting is not None:
            self._waiting.cancel()


def is_over(store: LightningStore) -> bool:
    """Whether the store says that the run is over. The client of a remote one learns it with every answer."""
    return bool(getattr(store, "run_over", False))


async def _wait_for(event: ExecutionEvent) -> None:
    """Wait until the event is set."""
    wait_async = getattr(event, "wait_async", None)
    if wait_async is not None:
        await wait_async()
        return
    # An event of another make, such as multiprocessing's, can only be asked.
    while not event.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


class Intake:
    """Dequeues for one worker.

    Args:
        store: Whose queue.
        worker_id: Who asks.
        run_id: Take only rollouts of this run.
        poll_interval: The longest that the store may wait for work, in seconds.
        outage: Notes whether the store answers.
    """

    def __init__(
        self, store: LightningStore, worker_id: str, run_id: str | None, poll_interval: float, outage: Outage
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._run_id = run_id
        self._poll_interval = poll_interval
        self._outage = outage
        self._pauses = pauses()
        # The same until there is an answer: what an answer that was lost had handed out is handed out again.
        self._request_id = secrets.token_hex(6)

    async def take(self, limit: int, stop: Stop) -> list[AttemptedRollout]:
        """Dequeue up to ``limit`` rollouts, waiting for work or for the stop.

        Returns:
            The rollouts; none also after a failure, and a pause.

        Raises:
            LightningError: If the store is closed, or refuses for another reason than that it is away.
        """
        asking = asyncio.create_task(
            self._store.dequeue_rollouts(
                limit, self._worker_id, self._poll_interval, run_id=self._run_id, request_id=self._request_id
            )
        )
        try:
            await stop.wait(asking)
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking})
        except asyncio.CancelledError:
            await self._end_late(asking)
            raise
        if asking.cancelled():
            return []
        try:
            rollouts = asking.result()
        except Exception as error:
            if isinstance(error, LightningError) and not is_transient(error):
                raise
            self._outage.failed(error)
            await stop.wait(seconds=min(next(self._pauses), self._poll_interval))
            return []
        self._outage.answered()
        self._pauses = pauses()
        self._request_id = secrets.token_hex(6)
        return rollouts

    async def _end_late(self, asking: asyncio.Task[list[AttemptedRollout]]) -> None:
        """End the rollouts that were handed out just when this runner was cancelled."""
        asking.cancel()
        await asyncio.wait({asking})
        if asking.cancelled() or asking.exception() is not None:
            return
        try:
            async with asyncio.timeout(LAST_SECONDS):
                for rollout in asking.result():
                    await self._store.update_attempt(
                        rollout.rollout_id,
                        rollout.attempt.attempt_id,
                        status="cancelled",
                        reason="cancelled",
                        metadata={"error": "cancelled before it began"},
                    )
        except Exception as error:
            logger.warning(
                "%s: rollouts were taken and not begun; their leases will expire: %s", self._worker_id, error
            )


class BatchResources:
    """The resources of rollouts that were taken together, each read once, after they were taken.

    Args:
        store: Where they are.
        outage: Has reading outlast a store that is away.
        shared: Whether there are several rollouts, each of which needs resources of its own to change.
    """

    def __init__(self, store: LightningStore, outage: Outage, *, shared: bool) -> None:
        self._store = store
        self._outage = outage
        self._shared = shared
        self._reading: dict[str | None, asyncio.Task[ResourcesUpdate | None]] = {}
        self._waiting = 0

    async def of(self, rollout: AttemptedRollout) -> NamedResources:
        """Return the rollout's resources, or the latest if it names none; the caller may change them.

        Raises:
            NoResourcesError: If there are none.
        """
        resources_id = rollout.resources_id
        reading = self._reading.get(resources_id)
        if reading is None:
            reading = self._reading[resources_id] = asyncio.create_task(self._read(resources_id))
        self._waiting += 1
        try:
            # Shielded, for others wait for the same.
            update = await asyncio.shield(reading)
        finally:
            self._waiting -= 1
            if not self._waiting and not reading.done():
                del self._reading[resources_id]
                reading.cancel()
        if update is None:
            if resources_id is None:
                raise NoResourcesError(
                    f"rollout {rollout.rollout_id!r} needs resources and the store has none: give "
                    "Trainer(initial_resources=...), let the algorithm add some, or call store.add_resources"
                )
            raise NoResourcesError(
                f"rollout {rollout.rollout_id!r} asks for resources {resources_id!r}, which are not in the store"
            )
        if self._shared:
            return {name: resource.model_copy(deep=True) for name, resource in update.resources.items()}
        return update.resources

    async def _read(self, resources_id: str | None) -> ResourcesUpdate | None:
        if resources_id is None:
            return await self._outage.outlast(self._store.get_latest_resources)
        return await self._outage.outlast(lambda: self._store.get_resources_by_id(resources_id))
