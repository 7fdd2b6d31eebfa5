"""What a vacuum of the memory store deletes, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_core.store.base import StoreStatistics
from lightning_core.store.entries import RolloutEntry
from lightning_core.types import FINAL_ROLLOUT_STATUSES, Deletion

if TYPE_CHECKING:
    from lightning_core.store.tables import Tables

__all__ = ["delete", "ended_before", "final_rollouts", "old_rest"]


def final_rollouts(tables: Tables) -> list[str]:
    """Return the ids of the rollouts that have ended."""
    return [name for status in FINAL_ROLLOUT_STATUSES for name in tables.by_status.get(status, ())]


def ended_before(tables: Tables, names: Iterable[str], before: float) -> Deletion:
    """Return which of these rollouts ended before a time; some may be deleted already."""
    entries = (tables.rollouts.get(name) for name in names)
    return Deletion(
        rollout_ids=[
            entry.rollout.rollout_id
            for entry in entries
            if entry is not None and entry.rollout.end_time is not None and entry.rollout.end_time < before
        ]
    )


def old_rest(tables: Tables, before: float) -> Deletion:
    """Return what but rollouts a vacuum deletes."""
    return Deletion(
        run_ids=[
            name for name, run in tables.runs.items() if run.end_time is not None and run.end_time < before
        ],
        worker_ids=[
            name for name, worker in tables.workers.items() if (worker.last_heartbeat_time or 0) < before
        ],
        resources_ids=[
            name
            for name, update in tables.resources.items()
            if update.update_time < before
            and name not in tables.resources_users
            and name != tables.latest_resources
        ],
    )


def delete(tables: Tables, deletion: Deletion, deleted: StoreStatistics) -> None:
    """Delete things, and add up in ``deleted`` how many there were."""
    for name in deletion.rollout_ids:
        if (entry := tables.rollouts.pop(name, None)) is not None:
            _forget(tables, entry, deleted)
    for name in deletion.run_ids:
        deleted.runs += tables.runs.pop(name, None) is not None
        tables.run_states.pop(name, None)
    for name in deletion.worker_ids:
        deleted.workers += tables.workers.pop(name, None) is not None
    for name in deletion.resources_ids:
        deleted.resources += tables.resources.pop(name, None) is not None


def _forget(tables: Tables, entry: RolloutEntry, deleted: StoreStatistics) -> None:
    """Take a final rollout, its attempts and its spans out of all indexes, and count them."""
    rollout = entry.rollout
    del tables.by_status[rollout.status][rollout.rollout_id]
    if rollout.run_id is not None:
        of_run = tables.by_run[rollout.run_id]
        del of_run[rollout.rollout_id]
        if not of_run:
            del tables.by_run[rollout.run_id]
    if rollout.idempotency_key is not None:
        tables.keys.pop(rollout.idempotency_key, None)
    tables.use_resources(rollout.resources_id, -1)
    spans = sum(len(attempt.spans) for attempt in entry.attempts.values())
    tables.attempt_count -= len(entry.attempts)
    tables.span_count -= spans
    deleted.rollouts[rollout.status] = deleted.rollouts.get(rollout.status, 0) + 1
    deleted.attempts += len(entry.attempts)
    deleted.spans += spans
