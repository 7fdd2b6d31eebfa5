"""Writing rollouts: enqueuing, dequeuing, updating. The rules are those of ``lifecycle``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_core.errors import FinalRolloutError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import UNSET, EnqueueRequest, Maybe
from lightning_core.store.encoding import decode, decode_config, encode, encode_config
from lightning_core.types import AttemptedRollout, RolloutStatus, RolloutV2

from . import queries, states
from .records import see_worker
from .reporting import find_attempt
from .writer import Operation, Transaction

__all__ = [
    "Enqueued",
    "NewRollout",
    "begin_attempt",
    "dequeue",
    "enqueue",
    "give_back",
    "new_id",
    "new_rollout",
    "start_rollout",
    "update_rollout",
]


class NewRollout(NamedTuple):
    """What a caller asks to create, ready for the file."""

    mode: str | None
    resources_id: str | None
    run_id: str | None
    idempotency_key: str | None
    config: str
    metadata: str
    input: str

    def as_queued(self, rollout_id: str, start_time: float) -> RolloutV2:
        """Return the rollout as it is when it has just been enqueued."""
        return RolloutV2.trusted(
            {
                "rollout_id": rollout_id,
                "input": decode(self.input),
                "start_time": start_time,
                "end_time": None,
                "mode": self.mode,
                "resources_id": self.resources_id,
                "status": "queuing",
                "config": decode_config(self.config),
                "metadata": {} if self.metadata == "{}" else decode(self.metadata),
                "run_id": self.run_id,
                "idempotency_key": self.idempotency_key,
            }
        )


class Enqueued(NamedTuple):
    """A rollout that was created, or ``known`` if its key was in the store."""

    rollout_id: str
    start_time: float
    known: RolloutV2 | None


def new_id(prefix: str) -> str:
    """Draw an id."""
    return f"{prefix}-{os.urandom(8).hex()}"


def new_rollout(request: EnqueueRequest) -> NewRollout:
    """Make a request ready for the file, which the caller's thread does.

    Raises:
        UnserializableValueError: If JSON cannot hold its input or metadata.
    """
    metadata = request.metadata
    return NewRollout(
        mode=request.mode,
        resources_id=request.resources_id,
        run_id=request.run_id,
        idempotency_key=request.idempotency_key,
        config=encode_config(request.config),
        metadata=encode(metadata, "metadata") if metadata else "{}",
        input=encode(request.input, "input"),
    )


_INSERT = (
    "INSERT INTO rollouts (no, id, status, queue_no, start_time, mode, resources_id, run_id, idempotency_key, "
    "config, metadata, input) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _next_rollout(tx: Transaction) -> int:
    return tx.next_number("rollout", "SELECT max(no) FROM rollouts")


def _known_rollout(tx: Transaction, rollout_id: str) -> queries.StoredRollout:
    found = queries.get_rollout(tx.connection, rollout_id)
    if found is None:
        raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store")
    return found


def _known_keys(tx: Transaction, new: Sequence[NewRollout]) -> dict[str, str]:
    """Return the ids of those rollouts that the store has already, by key."""
    keys = [item.idempotency_key for item in new if item.idempotency_key is not None]
    if not keys:
        return {}
    return dict(
        tx.execute(
            "SELECT idempotency_key, id FROM rollouts "
            "WHERE idempotency_key IN (SELECT value FROM json_each(?)) AND idempotency_key IS NOT NULL",
            (json.dumps(keys),),
        ).fetchall()
    )


def enqueue(new: Sequence[NewRollout]) -> Operation[list[Enqueued]]:
    """Put rollouts at the end of the queue."""

    def operation(tx: Transaction) -> list[Enqueued]:
        now = tx.now
        known = _known_keys(tx, new)
        begun: dict[str, str] = {}
        rows: list[tuple[Any, ...]] = []
        results: list[Enqueued] = []
        for item in new:
            key = item.idempotency_key
            if key is not None and key in known:
                found = _known_rollout(tx, known[key]).rollout
                results.append(Enqueued(found.rollout_id, found.start_time, found))
                continue
            rollout_id = begun.get(key) if key is not None else None
            if rollout_id is None:
                rollout_id = new_id("ro")
                if key is not None:
                    begun[key] = rollout_id
                rows.append((_next_rollout(tx), rollout_id, "queuing", states.next_place(tx), now, *item))
                states.count_rollout(tx, item.run_id, "queuing", 1)
                tx.announce_queued(item.run_id)
            results.append(Enqueued(rollout_id, now, None))
        if rows:
            tx.connection.executemany(_INSERT, rows)
        return results

    return operation


def start_rollout(new: NewRollout, worker_id: str | None) -> Operation[AttemptedRollout]:
    """Create a rollout and its first attempt, unless its idempotency key is known."""

    def operation(tx: Transaction) -> AttemptedRollout:
        known = _known_keys(tx, [new])
        if not known:
            rollout_id = new_id("ro")
            tx.execute(_INSERT, (_next_rollout(tx), rollout_id, "preparing", None, tx.now, *new))
            states.count_rollout(tx, new.run_id, "preparing", 1)
        else:
            [rollout_id] = known.values()
        found = _known_rollout(tx, rollout_id)
        if found.attempt_no is None:
            return _begin(tx, [found], worker_id)[0]
        return found.rollout.with_attempt(queries.get_attempt(tx.connection, rollout_id, found.attempt_no))

    return operation


def dequeue(
    limit: int, worker_id: str | None, run_id: str | None, request_id: str | None
) -> Operation[list[AttemptedRollout]]:
    """Take rollouts out of the queue, or return those that the same request took before."""
    of_run = "" if run_id is None else "AND run_id = ? "
    sql = (
        f"SELECT {queries.ROLLOUT_COLUMNS} FROM rollouts WHERE queue_no IS NOT NULL {of_run}"  # noqa: S608 - fixed text
        "ORDER BY queue_no LIMIT ?"
    )
    values = (limit,) if run_id is None else (run_id, limit)

    def operation(tx: Transaction) -> list[AttemptedRollout]:
        if request_id is not None and worker_id is not None:
            before = _taken_before(tx, worker_id, request_id)
            if before:
                return before
        found = [queries.read_rollout(row) for row in tx.execute(sql, values).fetchall()]
        if not found:
            return []
        if request_id is not None and worker_id is not None:
            tx.announce_request((worker_id, request_id))
        return _begin(tx, found, worker_id, request_id)

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


def give_back(tx: Transaction, taken: Sequence[AttemptedRollout]) -> None:
    """Put rollouts back into the queue whose attempts nobody has been told of."""
    for rollout in taken:
        try:
            found = find_attempt(tx, rollout.rollout_id, rollout.attempt.attempt_id)
        except LookupError:
            # The transaction that took it came to nothing.
            continue
        if found.is_latest and lifecycle.is_live(found.attempt):
            after, attempt = lifecycle.report_rollout(found.rollout, found.attempt, "requeuing", tx.now)
            states.set_status(tx, found.rollout_no, found.rollout, after)
            if attempt is not None:
                states.save_attempt(tx, found.no, after, attempt)


def begin_attempt(
    rollout_id: str, worker_id: str | None, request_id: str | None
) -> Operation[AttemptedRollout]:
    """Begin a new attempt of a rollout, or return the one that the same request began before."""

    def operation(tx: Transaction) -> AttemptedRollout:
        found = _known_rollout(tx, rollout_id)
        if request_id is not None:
            row = tx.execute(
                "SELECT no FROM attempts WHERE rollout_no = ? AND request_id = ? ORDER BY seq DESC LIMIT 1",
                (found.no, request_id),
            ).fetchone()
            if row is not None:
                return found.rollout.with_attempt(queries.get_attempt(tx.connection, rollout_id, row[0]))
        return _begin(tx, [found], worker_id, request_id)[0]

    return operation


def _begin(
    tx: Transaction,
    found: Sequence[queries.StoredRollout],
    worker_id: str | None,
    request_id: str | None = None,
) -> list[AttemptedRollout]:
    """Begin an attempt of each of these rollouts, which belong to nobody else."""
    changed: list[tuple[Any, ...]] = []
    begun: list[tuple[Any, ...]] = []
    results: list[AttemptedRollout] = []
    for no, latest_no, rollout in found:
        latest = None
        if latest_no is not None:
            latest = queries.get_attempt(tx.connection, rollout.rollout_id, latest_no)
        attempt_no = tx.next_number("attempt", states.ATTEMPT_NUMBER)
        attempt_id = new_id("at") if request_id is None else f"at-{request_id}-{attempt_no}"
        change, superseded = lifecycle.begin_attempt(rollout, latest, attempt_id, worker_id, tx.now)
        if superseded is not None and latest_no is not None:
            states.save_attempt(tx, latest_no, rollout, superseded)
        after, attempt = change
        if after.status != rollout.status:
            states.count_rollout(tx, rollout.run_id, rollout.status, -1)
            states.count_rollout(tx, rollout.run_id, after.status, 1)
        due, _ = lifecycle.deadline(rollout.config, attempt)
        tx.check_no_later_than(due)
        changed.append((after.status, attempt_no, no))
        begun.append(
            (
                attempt_no,
                no,
                attempt.sequence_id,
                attempt_id,
                attempt.status,
                worker_id,
                request_id,
                tx.now,
                due,
                attempt.lost_before,
            )
        )
        results.append(AttemptedRollout.trusted({**after.__dict__, "attempt": attempt}))
    tx.connection.executemany(
        "UPDATE rollouts SET status = ?, queue_no = NULL, attempt_no = ? WHERE no = ?", changed
    )
    tx.connection.executemany(
        "INSERT INTO attempts (no, rollout_no, seq, id, status, worker_id, request_id, start_time, check_at, "
        "lost_before, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}')",
        begun,
    )
    tx.count("", "attempts", len(begun))
    if worker_id is not None:
        see_worker(tx, worker_id, None)
    return results


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
            states.set_status(tx, no, before, rollout)
            if latest is not before_latest and latest is not None and latest_no is not None:
                states.save_attempt(tx, latest_no, rollout, latest)
        if "config" in columns and latest is not None and latest_no is not None and lifecycle.is_live(latest):
            due, _ = lifecycle.deadline(rollout.config, latest)
            tx.execute("UPDATE attempts SET check_at = min(check_at, ?) WHERE no = ?", (due, latest_no))
            tx.check_no_later_than(due)
        return rollout

    return operation
