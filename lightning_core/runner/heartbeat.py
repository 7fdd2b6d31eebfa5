"""The sign of life of a runner and of the rollouts that it has in hand."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from lightning_core.bridge import bridge_loop
from lightning_core.store.base import LightningStore
from lightning_core.store.lifecycle import DEFAULT_LEASE_SECONDS
from lightning_core.types import AttemptedRollout

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)


class Heartbeat:
    """Renews the leases of a runner's rollouts, from the bridge's thread, and cancels those that lost theirs."""

    def __init__(self, store: LightningStore, worker_id: str, interval: float) -> None:
        self._store = store
        self._worker_id = worker_id
        self._loop = asyncio.get_running_loop()
        self._active: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._beating: Future[None] | None = None
        self._interval = interval

    def watch(self, rollout: AttemptedRollout, task: asyncio.Task[Any]) -> None:
        """Renew this rollout's lease from now on."""
        lease = rollout.config.unresponsive_seconds or DEFAULT_LEASE_SECONDS
        key = rollout.rollout_id, rollout.attempt.attempt_id
        self._active[key] = task
        # However it ends: a lease that was renewed for ever would never expire.
        task.add_done_callback(lambda _: self._active.pop(key, None))
        if self._beating is None or lease / 3 < self._interval:
            self._interval = min(self._interval, lease / 3)
            if self._beating is not None:
                self._beating.cancel()
            self._beating = asyncio.run_coroutine_threadsafe(self._beat(self._interval), bridge_loop())

    @property
    def watched(self) -> list[tuple[str, str]]:
        """Rollout and attempt ids of the leases that are renewed."""
        return list(self._active)

    def forget(self, rollout: AttemptedRollout) -> None:
        """Let this rollout's lease be."""
        self._active.pop((rollout.rollout_id, rollout.attempt.attempt_id), None)

    def stop(self) -> None:
        """End the heartbeat."""
        if self._beating is not None:
            self._beating.cancel()

    async def _beat(self, interval: float) -> None:
        store, worker_id = self._store, self._worker_id
        while True:
            await asyncio.sleep(interval)
            active = dict(self._active)
            try:
                if active:
                    lost = set(await store.renew_leases(worker_id, list(active)))
                else:
                    await store.update_worker(worker_id)
                    continue
            except Exception:
                logger.exception("%s: the heartbeat did not reach the store", worker_id)
                continue
            for key in active:
                if key[1] in lost:
                    with suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._drop, *key)

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
