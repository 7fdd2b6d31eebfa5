"""What becomes of the attempts of a process that ended before they did."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Set as AbstractSet

from lightning_core import LightningStore
from lightning_core.errors import LightningError
from lightning_core.types import RolloutStatus

from .server import LightningStoreServer

__all__ = ["abandon", "quiet"]

logger = logging.getLogger(__name__)

_IN_HAND: tuple[RolloutStatus, ...] = ("preparing", "running")


async def abandon(store: LightningStore, workers: AbstractSet[str], how: str, *, cancelled: bool) -> None:
    """Report the live attempts of these workers as ended, so that nobody has to wait for their leases.

    Args:
        store: Where they are.
        workers: The workers that are gone.
        how: What has happened to them.
        cancelled: Whether they were ended on purpose; else the attempts fail with the reason ``infrastructure``.
    """
    if not workers:
        return
    try:
        for rollout in await store.query_rollouts(status=_IN_HAND):
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            if attempt is None or attempt.worker_id not in workers or attempt.end_time is not None:
                continue
            await store.update_attempt(
                rollout.rollout_id,
                attempt.attempt_id,
                status="cancelled" if cancelled else "failed",
                reason="cancelled" if cancelled else "infrastructure",
                metadata={"error": how},
            )
    except (LightningError, OSError) as error:
        names = ", ".join(sorted(workers))
        logger.warning(
            "the attempts of %s wait for their leases to expire, for they could not be reported: %s",
            names,
            error,
        )


async def quiet(store: LightningStore, server: LightningStoreServer, seconds: float) -> None:
    """Wait until runners elsewhere have nothing in hand and know that the run is over, at most that long."""
    give_up = time.monotonic() + seconds
    # Neither can be waited on.
    while time.monotonic() < give_up:
        counts = (await store.statistics()).rollouts
        if server.all_aware and not any(counts.get(status, 0) for status in _IN_HAND):
            return
        await asyncio.sleep(0.05)
