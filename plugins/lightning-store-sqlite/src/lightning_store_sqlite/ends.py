"""One call of ``wait_for_rollouts``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from lightning_core.store import waiting
from lightning_core.store.lifecycle import allowed_pending
from lightning_core.types import RolloutV2

from . import queries
from .engine import Engine

__all__ = ["wait_for_ends"]


async def wait_for_ends(
    engine: Engine, rollout_ids: Sequence[str], timeout: float | None, quorum: float
) -> list[RolloutV2]:
    """Wait until enough of these rollouts are final, or ``timeout`` seconds have passed; return those that are.

    Raises:
        UnknownRolloutError: If one of them is not in the store.
        ConfigurationError: If ``quorum`` is out of range.
    """
    wanted = list(dict.fromkeys(rollout_ids))
    allowed = allowed_pending(len(wanted), quorum)
    give_up = None if timeout is None else time.monotonic() + timeout
    pending = await engine.read(lambda connection: queries.unfinished(connection, wanted))
    if len(pending) > allowed and (timeout is None or timeout > 0):

        async def find_unfinished(asked: list[str]) -> set[str]:
            return await engine.read(partial(queries.unfinished, rollout_ids=asked, known=True))

        await waiting.wait_for_ends(
            find_unfinished, pending, engine.room, engine.enter, allowed=allowed, give_up=give_up
        )
    final = await engine.read(lambda connection: queries.final_rollouts(connection, wanted))
    return [final[rollout_id] for rollout_id in wanted if rollout_id in final]
