"""What is reported to a memory store: plain functions over its tables, called with their lock held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning_core.errors import FinalRolloutError, UnknownAttemptError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import UNSET, Maybe
from lightning_core.store.tables import Tables
from lightning_core.types import Attempt, AttemptStatus, FailureReason, RolloutStatus, RolloutV2

__all__ = ["renew_leases", "update_attempt", "update_rollout"]


def update_rollout(
    tables: Tables,
    now: float,
    rollout_id: str,
    changes: dict[str, Any],
    status: Maybe[RolloutStatus],
    metadata: dict[str, Any] | None,
) -> RolloutV2:
    """Change fields of a rollout.

    Args:
        tables: The tables.
        now: The time, in seconds since the epoch.
        rollout_id: Which.
        changes: The new ``input``, ``mode``, ``resources_id`` and ``config``, as far as they are given.
        status: The reported status.
        metadata: What to merge into the metadata.
    """
    entry = tables.entry(rollout_id)
    rollout = entry.rollout
    if changes and rollout.is_final:
        raise FinalRolloutError(
            f"rollout {rollout_id!r} has ended ({rollout.status}): only its metadata can still change, "
            f"not {', '.join(changes)}"
        )
    rollout = rollout.replace(**changes)
    if metadata is not None:
        rollout = rollout.replace(metadata=rollout.metadata | metadata)
    latest = entry.latest
    if status is not UNSET:
        before = latest.attempt if latest is not None else None
        rollout, attempt = lifecycle.report_rollout(rollout, before, status, now)
        if attempt is not None and attempt is not before:
            tables.set_attempt(entry, attempt)
            tables.journal(attempt)
    tables.set_rollout(entry, rollout)
    tables.journal(rollout)
    if "config" in changes and latest is not None and lifecycle.is_live(latest.attempt):
        tables.watch(rollout, latest.attempt)
    return rollout.detached()


def update_attempt(
    tables: Tables,
    now: float,
    rollout_id: str,
    attempt_id: str | Literal["latest"],
    status: Maybe[AttemptStatus],
    worker_id: Maybe[str | None],
    last_heartbeat_time: Maybe[float],
    metadata: dict[str, Any] | None,
    reason: FailureReason | None,
) -> Attempt:
    """Report on an attempt; ``metadata`` is merged into what is there."""
    entry, attempt_entry = tables.attempt(rollout_id, attempt_id)
    before, attempt = entry.rollout, attempt_entry.attempt
    rollout = before
    is_latest = attempt_entry is entry.latest
    if worker_id is not UNSET:
        attempt = attempt.replace(worker_id=worker_id)
    if metadata is not None:
        attempt = attempt.replace(metadata=attempt.metadata | metadata)
    if last_heartbeat_time is not UNSET:
        rollout, attempt = lifecycle.heartbeat(
            rollout, attempt, last_heartbeat_time, is_latest=is_latest, now=now
        )
    if status is not UNSET:
        rollout, attempt = lifecycle.report_attempt(
            rollout, attempt, status, is_latest=is_latest, now=now, reason=reason
        )
    tables.apply(entry, attempt_entry, before, lifecycle.Change(rollout, attempt))
    return attempt.detached()


def renew_leases(
    tables: Tables, now: float, worker_id: str, attempts: Sequence[tuple[str, str]]
) -> list[str]:
    """Renew leases, and return the ids of the attempts that are not live."""
    lost: list[str] = []
    tables.see_worker(worker_id, now, None)
    for rollout_id, attempt_id in attempts:
        try:
            entry, attempt = tables.attempt(rollout_id, attempt_id)
        except (UnknownRolloutError, UnknownAttemptError):
            lost.append(attempt_id)
            continue
        tables.sign_of_life(entry, attempt, now)
        if not lifecycle.is_live(attempt.attempt):
            lost.append(attempt_id)
    return lost
