"""Writing attempts: leases, reports, expiry. The rules are those of ``lifecycle``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lightning_core.errors import UnknownAttemptError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import UNSET, Maybe
from lightning_core.store.encoding import decode_config
from lightning_core.types import Attempt, AttemptStatus, FailureReason, RolloutV2

from . import queries, states
from .records import see_worker
from .writer import Operation, Transaction

__all__ = [
    "FoundAttempt",
    "expire",
    "find_attempt",
    "renew_leases",
    "reserve_sequence_id",
    "show_life",
    "update_attempt",
]


class FoundAttempt(NamedTuple):
    """An attempt and its rollout, of which only id, status, end time, config and run are filled in.

    The rules need no more, and input and metadata may be large.
    """

    no: int
    rollout_no: int
    is_latest: bool
    last_span_seq: int
    rollout: RolloutV2
    attempt: Attempt


def find_attempt(tx: Transaction, rollout_id: str, attempt_id: str) -> FoundAttempt:
    """Return an attempt, or the latest, with what the rules need of its rollout.

    Raises:
        UnknownRolloutError: If there is no such rollout.
        UnknownAttemptError: If the rollout has no such attempt.
    """
    which = "a.no = r.attempt_no" if attempt_id == "latest" else "a.rollout_no = r.no AND a.id = ?2"
    row = tx.execute(
        "SELECT r.no, r.attempt_no, r.status, r.end_time, r.config, r.run_id, a.no, a.last_span_seq, "  # noqa: S608
        "a.id, a.seq, a.start_time, a.end_time, a.status, a.worker_id, a.heartbeat_time, a.reason, a.lost_before, "
        f"a.metadata FROM rollouts r LEFT JOIN attempts a ON {which} WHERE r.id = ?1",
        (rollout_id,) if attempt_id == "latest" else (rollout_id, attempt_id),
    ).fetchone()
    if row is None:
        raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store")
    rollout_no, latest_no, status, end_time, config, run_id, attempt_no, last_span_seq, *columns = row
    if attempt_no is None:
        attempts = queries.query_attempts(tx.connection, rollout_id, status=None, limit=20, offset=0)
        known = ", ".join(attempt.attempt_id for attempt in attempts) or "none"
        raise UnknownAttemptError(f"rollout {rollout_id!r} has no attempt {attempt_id!r}; it has: {known}")
    rollout = RolloutV2.trusted(
        {
            "rollout_id": rollout_id,
            "input": None,
            "start_time": 0.0,
            "end_time": end_time,
            "mode": None,
            "resources_id": None,
            "status": status,
            "config": decode_config(config),
            "metadata": {},
            "run_id": run_id,
            "idempotency_key": None,
        }
    )
    attempt = queries.read_attempt(rollout_id, columns)
    return FoundAttempt(attempt_no, rollout_no, attempt_no == latest_no, last_span_seq, rollout, attempt)


def _apply(tx: Transaction, found: FoundAttempt, change: lifecycle.Change) -> None:
    if change.attempt is not found.attempt:
        states.save_attempt(tx, found.no, change.rollout, change.attempt)
    states.set_status(tx, found.rollout_no, found.rollout, change.rollout)


def show_life(tx: Transaction, found: FoundAttempt, last_span_seq: int | None = None) -> Attempt:
    """Renew an attempt's lease, if the rules let it, and note its last span's sequence id."""
    before = found.attempt
    change = lifecycle.sign_of_life(found.rollout, before, is_latest=found.is_latest, now=tx.now)
    attempt = change.attempt
    if attempt.status != before.status:
        states.save_attempt(tx, found.no, change.rollout, attempt, last_span_seq)
    elif last_span_seq is not None:
        tx.execute(
            "UPDATE attempts SET heartbeat_time = ?, last_span_seq = ? WHERE no = ?",
            (attempt.last_heartbeat_time, last_span_seq, found.no),
        )
    elif attempt is not before:
        # The usual case. The time to check is left alone: it is moved when it comes up.
        tx.execute(
            "UPDATE attempts SET heartbeat_time = ? WHERE no = ?", (attempt.last_heartbeat_time, found.no)
        )
    states.set_status(tx, found.rollout_no, found.rollout, change.rollout)
    return attempt


def update_attempt(
    rollout_id: str,
    attempt_id: str | Literal["latest"],
    status: Maybe[AttemptStatus],
    worker_id: Maybe[str | None],
    last_heartbeat_time: Maybe[float],
    metadata: dict[str, Any] | None,
    reason: FailureReason | None,
) -> Operation[Attempt]:
    """Report on an attempt."""

    def operation(tx: Transaction) -> Attempt:
        found = find_attempt(tx, rollout_id, attempt_id)
        rollout, attempt = found.rollout, found.attempt
        if worker_id is not UNSET:
            attempt = attempt.replace(worker_id=worker_id)
        if metadata is not None:
            attempt = attempt.replace(metadata=attempt.metadata | metadata)
        if last_heartbeat_time is not UNSET:
            rollout, attempt = lifecycle.heartbeat(
                rollout, attempt, last_heartbeat_time, is_latest=found.is_latest, now=tx.now
            )
        if status is not UNSET:
            rollout, attempt = lifecycle.report_attempt(
                rollout, attempt, status, is_latest=found.is_latest, now=tx.now, reason=reason
            )
        _apply(tx, found, lifecycle.Change(rollout, attempt))
        return attempt

    return operation


def renew_leases(worker_id: str, attempts: Sequence[tuple[str, str]]) -> Operation[list[str]]:
    """Renew leases, and return the ids of the attempts that are not live."""

    def operation(tx: Transaction) -> list[str]:
        see_worker(tx, worker_id, None)
        lost: list[str] = []
        for rollout_id, attempt_id in attempts:
            try:
                found = find_attempt(tx, rollout_id, attempt_id)
            except (UnknownRolloutError, UnknownAttemptError):
                lost.append(attempt_id)
                continue
            if not lifecycle.is_live(show_life(tx, found)):
                lost.append(attempt_id)
        return lost

    return operation


def reserve_sequence_id(rollout_id: str, attempt_id: str) -> Operation[int]:
    """Draw a sequence id for a span to come."""

    def operation(tx: Transaction) -> int:
        found = find_attempt(tx, rollout_id, attempt_id)
        sequence_id = found.last_span_seq + 1
        tx.execute("UPDATE attempts SET last_span_seq = ? WHERE no = ?", (sequence_id, found.no))
        return sequence_id

    return operation


def expire(tx: Transaction) -> None:
    """End the attempts whose lease or time limit has run out."""
    rows = tx.execute(
        "SELECT r.id, a.id FROM attempts a JOIN rollouts r ON r.no = a.rollout_no "
        "WHERE a.check_at <= ? ORDER BY a.check_at, a.no",
        (tx.now,),
    ).fetchall()
    for rollout_id, attempt_id in rows:
        found = find_attempt(tx, rollout_id, attempt_id)
        change = lifecycle.expire(found.rollout, found.attempt, tx.now)
        if change is not None:
            _apply(tx, found, change)
        else:
            # It has shown life since: look again when the renewed lease ends.
            due, _ = lifecycle.deadline(found.rollout.config, found.attempt)
            tx.execute("UPDATE attempts SET check_at = ? WHERE no = ?", (due, found.no))
    tx.check_no_later_than(None)
    next_check = queries.next_check(tx.connection)
    if next_check is not None:
        tx.check_no_later_than(next_check)
