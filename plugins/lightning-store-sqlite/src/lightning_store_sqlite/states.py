"""Writing the states of rollouts and attempts, and keeping queue, counts and waiters in step with them."""

from __future__ import annotations

from lightning_core.store import lifecycle
from lightning_core.store.encoding import encode
from lightning_core.types import Attempt, RolloutStatus, RolloutV2

from .writer import Transaction

__all__ = [
    "ATTEMPT_NUMBER",
    "END_NUMBER",
    "count_rollout",
    "next_place",
    "save_attempt",
    "set_status",
]

# The greatest number of an end, also after a vacuum.
END_NUMBER = (
    "SELECT max(coalesce((SELECT end_no FROM rollouts WHERE end_no IS NOT NULL ORDER BY end_no DESC LIMIT 1), 0), "
    "coalesce((SELECT n FROM counts WHERE scope = 'numbers' AND what = 'end'), 0))"
)
# Spans that are yet to be deleted still have the numbers of their attempts.
ATTEMPT_NUMBER = (
    "SELECT max(coalesce((SELECT max(no) FROM attempts), 0), "
    "coalesce((SELECT max(attempt_no) FROM garbage), 0))"
)


def next_place(tx: Transaction) -> int:
    """Draw a place at the end of the queue."""
    return tx.next_number(
        "queue",
        "SELECT queue_no FROM rollouts WHERE queue_no IS NOT NULL ORDER BY queue_no DESC LIMIT 1",
    )


def count_rollout(tx: Transaction, run_id: str | None, status: RolloutStatus, change: int) -> None:
    """Count a rollout that gets a status, or loses it."""
    what = f"rollout {status}"
    tx.count("", what, change)
    if run_id is not None:
        tx.count(f"run {run_id}", what, change)


def set_status(tx: Transaction, no: int, before: RolloutV2, after: RolloutV2) -> None:
    """Write a rollout's new status."""
    if after.status == before.status:
        return
    place = end = None
    if after.status in lifecycle.QUEUED_STATUSES:
        # Also when it was queued before: a rollout that is sent back goes to the end.
        place = next_place(tx)
        tx.announce_queued(before.run_id)
    if after.is_final:
        end = tx.next_number("end", END_NUMBER)
        tx.announce_end(after.rollout_id)
    tx.execute(
        "UPDATE rollouts SET status = ?, end_time = ?, queue_no = ?, end_no = ? WHERE no = ?",
        (after.status, after.end_time, place, end, no),
    )
    count_rollout(tx, before.run_id, before.status, -1)
    count_rollout(tx, before.run_id, after.status, 1)


def save_attempt(
    tx: Transaction, no: int, rollout: RolloutV2, attempt: Attempt, last_span_seq: int | None = None
) -> None:
    """Write a changed attempt; without ``last_span_seq``, that is left alone."""
    due = lifecycle.deadline(rollout.config, attempt)[0] if lifecycle.is_live(attempt) else None
    tx.execute(
        "UPDATE attempts SET status = ?, worker_id = ?, end_time = ?, heartbeat_time = ?, reason = ?, metadata = ?, "
        "last_span_seq = coalesce(?, last_span_seq), check_at = ? WHERE no = ?",
        (
            attempt.status,
            attempt.worker_id,
            attempt.end_time,
            attempt.last_heartbeat_time,
            attempt.reason,
            encode(attempt.metadata, "metadata") if attempt.metadata else "{}",
            last_span_seq,
            due,
            no,
        ),
    )
    if due is not None:
        tx.check_no_later_than(due)
