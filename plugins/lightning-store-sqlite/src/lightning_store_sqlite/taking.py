"""One call of ``dequeue_rollouts``: taking, waiting for work, and giving back what nobody will get."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from lightning_core.errors import StoreClosedError
from lightning_core.store.waiting import wait_for_work
from lightning_core.types import AttemptedRollout

from . import rollouts
from .engine import Engine
from .writer import Transaction

__all__ = ["Taking"]


class Taking:
    """A call that takes rollouts out of the queue.

    Args:
        engine: The open store.
        limit: The most to take.
        worker_id: Who will run them.
        run_id: Take only rollouts of this run.
        request_id: A name of the request that stays the same when it is repeated.
    """

    def __init__(
        self, engine: Engine, limit: int, worker_id: str | None, run_id: str | None, request_id: str | None
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._request = (worker_id, request_id) if worker_id is not None and request_id is not None else None
        self._dequeue = rollouts.dequeue(limit, worker_id, run_id, request_id)
        self._taken: list[AttemptedRollout] = []

    async def take(self, wait: float) -> list[AttemptedRollout]:
        """Take what there is; while that is nothing, wait for work, at most so many seconds."""
        return await wait_for_work(
            self._take,
            wait,
            self._engine.room,
            self._engine.enter,
            run_id=self._run_id,
            request=self._request,
        )

    async def _take(self) -> list[AttemptedRollout]:
        try:
            return await self._engine.write(self._operation)
        except (asyncio.CancelledError, GeneratorExit):
            # The caller is cancelled, and the operation may be done or yet to come. Operations keep their order, so
            # this one follows it, and goes before whatever is asked for from now on.
            with suppress(StoreClosedError):
                self._engine.write_soon(self._give_back)
            raise

    def _operation(self, tx: Transaction) -> list[AttemptedRollout]:
        self._taken = self._dequeue(tx)
        if self._request is not None:
            self._engine.requests[self._request] = self
        return self._taken

    def _give_back(self, tx: Transaction) -> None:
        # A repetition of the request may have been given the same meanwhile.
        if self._request is None or self._engine.requests.get(self._request) is self:
            rollouts.give_back(tx, self._taken)
