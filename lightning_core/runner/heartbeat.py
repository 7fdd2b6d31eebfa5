"""The sign of life of a runner and of the rollouts that it has in hand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from lightning_core.bridge import bridge_loop
from lightning_core.errors import StoreClosedError
from lightning_core.runner.identity import ProcessVitals
from lightning_core.runner.outage import Outage, is_transient
from lightning_core.store.base import LightningStore
from lightning_core.store.lifecycle import DEFAULT_LEASE_SECONDS, WORKER_SILENCE_SECONDS
from lightning_core.types import AttemptedRollout

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)

STATS_SECONDS = WORKER_SILENCE_SECONDS / 3
"""Time between reports of CPU and memory. Renewing leases is a sign of life of the worker too, so this is enough."""
FAREWELL_SECONDS = 2.0
"""How long the last report may take."""


class Heartbeat:
    """Renews the leases of a runner's rollouts, and cancels those that lost theirs; tells how the worker is doing.

    It works on the bridge's thread, so it goes on while an agent keeps the runner's own event loop from running.

    Args:
        store: Where the worker is known.
        worker_id: Its id.
        interval: Seconds between renewals; shorter where a lease asks for it.
        outage: Notes whether the store answers.
        describe: What else to tell of the worker.
    """

    def __init__(
        self,
        store: LightningStore,
        worker_id: str,
        interval: float,
        outage: Outage,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._interval = interval
        self._outage = outage
        self._describe = describe
        self._loop = asyncio.get_running_loop()
        # A rollout that is being reported has no task: its lease is renewed, and nothing is left to cancel.
        self._active: dict[tuple[str, str], asyncio.Task[Any] | None] = {}
        self._beating: Future[None] | None = None
        self._wake: asyncio.Event | None = None
        self._life: asyncio.Task[Any] | None = None
        self._stopping = False
        self._leaving = False
        self._introduced = False
        self._vitals: ProcessVitals | None = None
        self._stats_due = 0.0

    def start(self) -> None:
        """Register the worker, and begin to beat, also while it has nothing to do."""
        self._introduced = True
        self._begin()

    def _begin(self) -> None:
        if self._beating is None:
            self._beating = asyncio.run_coroutine_threadsafe(self._live(), bridge_loop())

    def watch(self, rollout: AttemptedRollout, task: asyncio.Task[Any]) -> None:
        """Renew this rollout's lease from now on."""
        key = rollout.rollout_id, rollout.attempt.attempt_id
        self._active[key] = task
        # However it ends: a lease that was renewed for ever would never expire.
        task.add_done_callback(lambda _: self._active.pop(key, None))
        self._begin()
        lease = rollout.config.unresponsive_seconds or DEFAULT_LEASE_SECONDS
        if lease / 3 < self._interval:
            self._interval = lease / 3
            bridge_loop().call_soon_threadsafe(self._rouse)

    @property
    def watched(self) -> list[tuple[str, str]]:
        """Rollout and attempt ids of the leases that are renewed."""
        return list(self._active)

    def reporting(self, rollout: AttemptedRollout) -> None:
        """Go on renewing the lease, but cancel nothing any more: the attempt's own report is about to end it."""
        key = rollout.rollout_id, rollout.attempt.attempt_id
        if key in self._active:
            self._active[key] = None

    async def stop(self) -> None:
        """End the heartbeat; a worker that was registered is reported to have ended."""
        if self._beating is not None:
            self._stopping = True
            bridge_loop().call_soon_threadsafe(self._interrupt)
            with suppress(asyncio.CancelledError):
                await asyncio.wrap_future(self._beating)

    # On the bridge's thread

    def _rouse(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _interrupt(self) -> None:
        if self._life is not None and not self._leaving:
            self._life.cancel()

    async def _live(self) -> None:
        self._life = asyncio.current_task()
        wake = self._wake = asyncio.Event()
        try:
            if self._introduced and not self._stopping:
                await self._beat()
            while not self._stopping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await wake.wait()
                wake.clear()
                await self._beat()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        self._leaving = True
        if self._introduced and not self._outage.seconds:
            # Whoever does not hear of it sees a worker that has fallen silent.
            with suppress(Exception):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._tell(ended=True)

    async def _beat(self) -> None:
        # Leases first: work is lost with them.
        active = dict(self._active)
        if active and not await self._reaches_store(self._renew(list(active))):
            return
        if time.monotonic() >= self._stats_due and await self._reaches_store(self._tell()):
            self._stats_due = time.monotonic() + STATS_SECONDS

    async def _reaches_store(self, call: Coroutine[Any, Any, None]) -> bool:
        try:
            await call
        except StoreClosedError:
            # The runner will notice, too.
            return False
        except Exception as error:
            if is_transient(error):
                self._outage.failed(error)
            else:
                logger.exception("%s: the heartbeat failed", self._worker_id)
            return False
        self._outage.answered()
        return True

    async def _renew(self, active: list[tuple[str, str]]) -> None:
        lost = set(await self._store.renew_leases(self._worker_id, active))
        for key in active:
            if key[1] in lost:
                with suppress(RuntimeError):  # the runner's loop was closed
                    self._loop.call_soon_threadsafe(self._drop, *key)

    async def _tell(self, *, ended: bool = False) -> None:
        if self._vitals is None:
            self._vitals = ProcessVitals()
        stats = {**self._vitals.read(), **self._describe(), "active": len(self._active), "ended": ended}
        await self._store.update_worker(self._worker_id, heartbeat_stats=stats)

    # On the runner's loop

    def _drop(self, rollout_id: str, attempt_id: str) -> None:
        """Cancel a task whose attempt is not live any more, unless it has reported the end itself meanwhile."""
        task = self._active.get((rollout_id, attempt_id))
        if task is not None and not task.done():
            logger.warning(
                "rollout %s was cancelled or given to another worker; dropping attempt %s",
                rollout_id,
                attempt_id,
            )
            task.cancel()
