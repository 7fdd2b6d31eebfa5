"""Writing: what each call of the store does inside a transaction. The rules are those of ``lifecycle``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lightning_core.errors import FinalRolloutError, UnknownAttemptError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import UNSET, Maybe
from lightning_core.store.encoding import decode, decode_config, encode
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    ResourcesUpdate,
    RolloutStatus,
    RolloutV2,
    Worker,
)

from . import queries
from .writer import Operation, Transaction

__all__ = [
    "END_NUMBER",
    "NewRollout",
    "begin_attempt",
    "dequeue",
    "enqueue",
    "expire",
    "find_attempt",
    "new_id",
    "renew_leases",
    "reserve_sequence_id",
    "show_life",
    "start_rollout",
    "update_attempt",
    "update_resources",
    "update_rollout",
    "update_worker",
]


# The greatest number of an end, also after a vacuum.
END_NUMBER = (
    "SELECT max(coalesce((SELECT end_no FROM rollouts WHERE end_no IS NOT NULL ORDER BY end_no DESC LIMIT 1), 0), "
    "coalesce((SELECT n FROM counts WHERE scope = 'numbers' AND what = 'end'), 0))"
)
# Spans that are yet to be deleted still have the numbers of their attempts.
_ATTEMPT_NUMBER = (
    "SELECT max(coalesce((SELECT max(no) FROM attempts), 0), "
    "coalesce((SELECT max(attempt_no) FROM garbage), 0))"
)


class NewRollout(NamedTuple):
    """What a caller asks to create, ready for the file."""

    mode: str | None
    resources_id: str | None
    run_id: str | None
    idempotency_key: str | None
    config: str
    metadata: str
    input: str


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


def new_id(prefix: str) -> str:
    """Draw an id."""
    return f"{prefix}-{os.urandom(8).hex()}"


# Rollouts


def _insert_rollout(tx: Transaction, new: NewRollout, status: RolloutStatus) -> str:
    no = tx.next_number("rollout", "SELECT max(no) FROM rollouts")
    rollout_id = new_id("ro")
    queued = status in lifecycle.QUEUED_STATUSES
    tx.execute(
        "INSERT INTO rollouts (no, id, status, queue_no, start_time, mode, resources_id, run_id, idempotency_key, "
        "config, metadata, input) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (no, rollout_id, status, _next_place(tx) if queued else None, tx.now, *new),
    )
    _count_rollout(tx, new.run_id, status, 1)
    if queued:
        tx.announce_queued()
    return rollout_id


def _next_place(tx: Transaction) -> int:
    return tx.next_number(
        "queue",
        "SELECT queue_no FROM rollouts WHERE queue_no IS NOT NULL ORDER BY queue_no DESC LIMIT 1",
    )


def _count_rollout(tx: Transaction, run_id: str | None, status: RolloutStatus, change: int) -> None:
    tx.count("", f"rollout {status}", change)
    if run_id is not None:
        tx.count(f"run {run_id}", f"rollout {status}", change)


def _set_status(tx: Transaction, no: int, before: RolloutV2, after: RolloutV2) -> None:
    """Write a rollout's new status, and keep queue, counts and waiters in step."""
    if after.status == before.status:
        return
    place = end = None
    if after.status in lifecycle.QUEUED_STATUSES:
        # Also when it was queued before: a rollout that is sent back goes to the end.
        place = _next_place(tx)
        tx.announce_queued()
    if after.is_final:
        end = tx.next_number("end", END_NUMBER)
        tx.announce_end(after.rollout_id)
    tx.execute(
        "UPDATE rollouts SET status = ?, end_time = ?, queue_no = ?, end_no = ? WHERE no = ?",
        (after.status, after.end_time, place, end, no),
    )
    _count_rollout(tx, before.run_id, before.status, -1)
    _count_rollout(tx, before.run_id, after.status, 1)


def _known_rollout(tx: Transaction, rollout_id: str) -> queries.StoredRollout:
    found = queries.get_rollout(tx.connection, rollout_id)
    if found is None:
        raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store")
    return found


def enqueue(new: Sequence[NewRollout]) -> Operation[list[RolloutV2]]:
    """Put rollouts at the end of the queue."""

    def operation(tx: Transaction) -> list[RolloutV2]:
        rollouts: list[RolloutV2] = []
        for item in new:
            rollout_id = _find_key(tx, item.idempotency_key) or _insert_rollout(tx, item, "queuing")
            rollouts.append(_known_rollout(tx, rollout_id).rollout)
        return rollouts

    return operation


def start_rollout(new: NewRollout, worker_id: str | None) -> Operation[AttemptedRollout]:
    """Create a rollout and its first attempt, unless its idempotency key is known."""

    def operation(tx: Transaction) -> AttemptedRollout:
        rollout_id = _find_key(tx, new.idempotency_key)
        if rollout_id is None:
            return _begin(tx, _known_rollout(tx, _insert_rollout(tx, new, "preparing")), worker_id)
        found = _known_rollout(tx, rollout_id)
        if found.attempt_no is None:
            return _begin(tx, found, worker_id)
        return found.rollout.with_attempt(queries.get_attempt(tx.connection, rollout_id, found.attempt_no))

    return operation


def _find_key(tx: Transaction, idempotency_key: str | None) -> str | None:
    if idempotency_key is None:
        return None
    row = tx.execute("SELECT id FROM rollouts WHERE idempotency_key = ?", (idempotency_key,)).fetchone()
    return row[0] if row is not None else None


def dequeue(
    limit: int, worker_id: str | None, run_id: str | None, request_id: str | None
) -> Operation[list[AttemptedRollout]]:
    """Take rollouts out of the queue, or return those that the same request took before."""
    of_run = "" if run_id is None else "AND run_id = ? "
    sql = f"SELECT id FROM rollouts WHERE queue_no IS NOT NULL {of_run}ORDER BY queue_no LIMIT ?"  # noqa: S608
    values = (limit,) if run_id is None else (run_id, limit)

    def operation(tx: Transaction) -> list[AttemptedRollout]:
        if request_id is not None and worker_id is not None:
            before = _taken_before(tx, worker_id, request_id)
            if before:
                return before
        ids = tx.execute(sql, values).fetchall()
        return [_begin(tx, _known_rollout(tx, rollout_id), worker_id, request_id) for (rollout_id,) in ids]

    return operation


def _taken_before(tx: Transaction, worker_id: str, request_id: str) -> list[AttemptedRollout]:
    rows = tx.execute(
        "SELECT r.id, a.no FROM attempts a JOIN rollouts r ON r.no = a.rollout_no "
        "WHERE a.check_at IS NOT NULL AND a.request_id = ? AND a.worker_id = ? ORDER BY a.no",
        (request_id, worker_id),
    ).fetchall()
    return [
        _known_rollout(tx, rollout_id).rollout.with_attempt(
            queries.get_attempt(tx.connection, rollout_id, attempt_no)
        )
        for rollout_id, attempt_no in rows
    ]


def begin_attempt(rollout_id: str, worker_id: str | None) -> Operation[AttemptedRollout]:
    """Begin a new attempt of a rollout."""
    return lambda tx: _begin(tx, _known_rollout(tx, rollout_id), worker_id)


def _begin(
    tx: Transaction, found: queries.StoredRollout, worker_id: str | None, request_id: str | None = None
) -> AttemptedRollout:
    no, latest_no, rollout = found
    latest = None
    if latest_no is not None:
        latest = queries.get_attempt(tx.connection, rollout.rollout_id, latest_no)
    attempt_no = tx.next_number("attempt", _ATTEMPT_NUMBER)
    attempt_id = new_id("at") if request_id is None else f"at-{request_id}-{attempt_no}"
    change, superseded = lifecycle.begin_attempt(rollout, latest, attempt_id, worker_id, tx.now)
    if superseded is not None and latest_no is not None:
        _save_attempt(tx, latest_no, rollout, superseded)
    _set_status(tx, no, rollout, change.rollout)
    attempt = change.attempt
    due, _ = lifecycle.deadline(rollout.config, attempt)
    tx.execute(
        "INSERT INTO attempts (no, rollout_no, seq, id, status, worker_id, request_id, start_time, check_at, metadata) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '{}')",
        (
            attempt_no,
            no,
            attempt.sequence_id,
            attempt.attempt_id,
            attempt.status,
            worker_id,
            request_id,
            attempt.start_time,
            due,
        ),
    )
    tx.execute("UPDATE rollouts SET attempt_no = ? WHERE no = ?", (attempt_no, no))
    tx.check_no_later_than(due)
    tx.count("", "attempts", 1)
    if worker_id is not None:
        see_worker(tx, worker_id, None)
    return change.rollout.with_attempt(attempt)


def update_rollout(
    rollout_id: str,
    columns: dict[str, str | None],
    status: Maybe[RolloutStatus],
    metadata: dict[str, Any] | None,
) -> Operation[RolloutV2]:
    """Change fields of a rollout.

    Args:
        rollout_id: Which.
        columns: The new values of ``input``, ``mode``, ``resources_id`` and ``config``, ready for the file.
        status: The reported status.
        metadata: What to merge into the metadata.
    """

    def operation(tx: Transaction) -> RolloutV2:
        no, latest_no, rollout = _known_rollout(tx, rollout_id)
        if columns and rollout.is_final:
            raise FinalRolloutError(
                f"rollout {rollout_id!r} has ended ({rollout.status}): only its metadata can still change, "
                f"not {', '.join(columns)}"
            )
        values = dict(columns)
        if metadata is not None:
            values["metadata"] = encode(rollout.metadata | metadata, "metadata")
        if values:
            # The names are those of the columns above, never a caller's.
            names = ", ".join(f"{name} = ?" for name in values)
            tx.execute(f"UPDATE rollouts SET {names} WHERE no = ?", (*values.values(), no))  # noqa: S608
            rollout = _known_rollout(tx, rollout_id).rollout
        latest = None
        if latest_no is not None:
            latest = queries.get_attempt(tx.connection, rollout_id, latest_no)
        if status is not UNSET:
            before, before_latest = rollout, latest
            rollout, latest = lifecycle.report_rollout(rollout, latest, status, tx.now)
            _set_status(tx, no, before, rollout)
            if latest is not before_latest and latest is not None and latest_no is not None:
                _save_attempt(tx, latest_no, rollout, latest)
        if "config" in columns and latest is not None and latest_no is not None and lifecycle.is_live(latest):
            due, _ = lifecycle.deadline(rollout.config, latest)
            tx.execute("UPDATE attempts SET check_at = min(check_at, ?) WHERE no = ?", (due, latest_no))
            tx.check_no_later_than(due)
        return rollout

    return operation


# Attempts


def find_attempt(tx: Transaction, rollout_id: str, attempt_id: str) -> FoundAttempt:
    """Return an attempt, or the latest, with what the rules need of its rollout.

    Raises:
        UnknownRolloutError: If there is no such rollout.
        UnknownAttemptError: If the rollout has no such attempt.
    """
    which = "a.no = r.attempt_no" if attempt_id == "latest" else "a.rollout_no = r.no AND a.id = ?2"
    row = tx.execute(
        "SELECT r.no, r.attempt_no, r.status, r.end_time, r.config, r.run_id, a.no, a.last_span_seq, "  # noqa: S608
        "a.id, a.seq, a.start_time, a.end_time, a.status, a.worker_id, a.heartbeat_time, a.reason, a.metadata "
        f"FROM rollouts r LEFT JOIN attempts a ON {which} WHERE r.id = ?1",
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


def _save_attempt(tx: Transaction, no: int, rollout: RolloutV2, attempt: Attempt) -> None:
    """Write a changed attempt."""
    due = lifecycle.deadline(rollout.config, attempt)[0] if lifecycle.is_live(attempt) else None
    tx.execute(
        "UPDATE attempts SET status = ?, worker_id = ?, end_time = ?, heartbeat_time = ?, reason = ?, metadata = ?, "
        "check_at = ? WHERE no = ?",
        (
            attempt.status,
            attempt.worker_id,
            attempt.end_time,
            attempt.last_heartbeat_time,
            attempt.reason,
            encode(attempt.metadata, "metadata"),
            due,
            no,
        ),
    )
    if due is not None:
        tx.check_no_later_than(due)


def _apply(tx: Transaction, found: FoundAttempt, change: lifecycle.Change) -> None:
    if change.attempt is not found.attempt:
        _save_attempt(tx, found.no, change.rollout, change.attempt)
    _set_status(tx, found.rollout_no, found.rollout, change.rollout)


def show_life(tx: Transaction, found: FoundAttempt, now: float) -> Attempt:
    """Renew an attempt's lease, if the rules let it."""
    change = lifecycle.sign_of_life(found.rollout, found.attempt, is_latest=found.is_latest, now=now)
    if change.attempt.status == found.attempt.status and change.rollout is found.rollout:
        if change.attempt is not found.attempt:
            # The usual case. The time to check is left alone: it is moved when it comes up.
            tx.execute(
                "UPDATE attempts SET heartbeat_time = ? WHERE no = ?",
                (change.attempt.last_heartbeat_time, found.no),
            )
    else:
        _apply(tx, found, change)
    return change.attempt


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
            if not lifecycle.is_live(show_life(tx, found, tx.now)):
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


# Resources and workers


def update_resources(resources_id: str, body: str) -> Operation[ResourcesUpdate]:
    """Store the next version of resources."""

    def operation(tx: Transaction) -> ResourcesUpdate:
        row = tx.execute(
            "SELECT version, create_time FROM resources WHERE id = ? ORDER BY version DESC LIMIT 1",
            (resources_id,),
        ).fetchone()
        version, create_time = (row[0] + 1, row[1]) if row is not None else (1, tx.now)
        tx.execute(
            "INSERT INTO resources (id, version, create_time, update_time, body) VALUES (?, ?, ?, ?, ?)",
            (resources_id, version, create_time, tx.now, body),
        )
        if version == 1:
            tx.count("", "resources", 1)
        return ResourcesUpdate(
            resources_id=resources_id,
            resources=decode(body),
            version=version,
            create_time=create_time,
            update_time=tx.now,
        )

    return operation


def see_worker(tx: Transaction, worker_id: str, stats: str | None) -> None:
    """Record a sign of life of a worker; ``stats`` of ``None`` leaves its statistics alone."""
    tx.execute(
        "INSERT INTO workers (id, heartbeat_time, stats) VALUES (?1, ?2, coalesce(?3, '{}')) "
        "ON CONFLICT (id) DO UPDATE SET heartbeat_time = ?2, stats = coalesce(?3, stats)",
        (worker_id, tx.now, stats),
    )


def update_worker(worker_id: str, stats: str | None) -> Operation[Worker]:
    """Record a sign of life of a worker and return what is known of it."""

    def operation(tx: Transaction) -> Worker:
        see_worker(tx, worker_id, stats)
        return queries.query_workers(tx.connection, tx.now, worker_id)[0]

    return operation
