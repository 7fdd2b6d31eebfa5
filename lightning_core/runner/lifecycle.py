"""Dispatch of lifecycle hooks: awaits them in order, and keeps their failures away from the rollout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from lightning_core.errors import VetoRollout
from lightning_core.plugin.lifecycle import HookCall

__all__ = ["dispatch"]

logger = logging.getLogger(__name__)


async def dispatch(event: str, calls: Sequence[HookCall], rollout_id: str, **keywords: Any) -> None:
    """Await the hooks of an event one after another.

    A hook that fails is logged, and the next one is awaited. Cancellation passes through, at the ``..._end`` events
    once all hooks were told of the end.

    Raises:
        VetoRollout: From ``on_rollout_start``, after all hooks have been awaited, so that each sees a start before
            its end.
    """
    veto: VetoRollout | None = None
    cancelled: asyncio.CancelledError | None = None
    for hook, call in calls:
        try:
            await call(**keywords)
        except VetoRollout as error:
            if event != "on_rollout_start":
                logger.error(
                    "hook %s raised VetoRollout in %s of rollout %s; only on_rollout_start may stop a rollout",
                    type(hook).__name__,
                    event,
                    rollout_id,
                )
            elif veto is None:
                veto = VetoRollout(f"{type(hook).__name__}: {error}")
        except asyncio.CancelledError as error:
            if not event.endswith("_end"):
                raise
            cancelled = error
        except Exception:
            logger.exception("hook %s failed in %s of rollout %s", type(hook).__name__, event, rollout_id)
    if cancelled is not None:
        raise cancelled
    if veto is not None:
        raise veto
