"""Reading: plain functions over a connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

from lightning_core.errors import UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import StoreStatistics
from lightning_core.store.encoding import EncodedSpan, decode, decode_config, decode_span
from lightning_core.types import (
    Attempt,
    AttemptStatus,
    ResourcesUpdate,
    RolloutMode,
    RolloutStatus,
    RolloutV2,
    Run,
    Span,
    Worker,
)

__all__ = [
    "ATTEMPT_COLUMNS",
    "ROLLOUT_COLUMNS",
    "StoredRollout",
    "final_rollouts",
    "get_attempt",
    "get_resources",
    "get_rollout",
    "latest_attempt",
    "load_run_state",
    "next_check",
    "query_attempts",
    "query_encoded_spans",
    "query_rollouts",
    "query_runs",
    "query_spans",
    "query_workers",
    "read_attempt",
    "read_rollout",
    "statistics",
    "unfinished",
]

ROLLOUT_COLUMNS = (
    "no, attempt_no, id, status, start_time, end_time, mode, resources_id, run_id, idempotency_key, config, metadata, "
    "input"
)
ATTEMPT_COLUMNS = (
    "id, seq, start_time, end_time, status, worker_id, heartbeat_time, reason, lost_before, metadata"
)


class StoredRollout(NamedTuple):
    """A rollout with its number in the file, and that of its latest attempt."""

    no: int
    attempt_no: int | None
    rollout: RolloutV2


def read_rollout(row: Sequence[Any]) -> StoredRollout:
    """Make a rollout of a row of :data:`ROLLOUT_COLUMNS`."""
    no, attempt_no, id_, status, start, end, mode, resources_id, run_id, key, config, metadata, input_ = row
    rollout = RolloutV2.trusted(
        {
            "rollout_id": id_,
            "input": decode(input_),
            "start_time": start,
            "end_time": end,
            "mode": mode,
            "resources_id": resources_id,
            "status": status,
            "config": decode_config(config),
            "metadata": {} if metadata == "{}" else decode(metadata),
            "run_id": run_id,
            "idempotency_key": key,
        }
    )
    return StoredRollout(no, attempt_no, rollout)


def read_attempt(rollout_id: str, row: Sequence[Any]) -> Attempt:
    """Make an attempt of a row of :data:`ATTEMPT_COLUMNS`."""
    id_, seq, start, end, status, worker_id, heartbeat_time, reason, lost_before, metadata = row
    return Attempt.trusted(
        {
            "rollout_id": rollout_id,
            "attempt_id": id_,
            "sequence_id": seq,
            "start_time": start,
            "end_time": end,
            "status": status,
            "worker_id": worker_id,
            "last_heartbeat_time": heartbeat_time,
            "reason": reason,
            "metadata": {} if metadata == "{}" else decode(metadata),
            "lost_before": lost_before,
        }
    )


def get_rollout(connection: sqlite3.Connection, rollout_id: str) -> StoredRollout | None:
    """Return the rollout of this id."""
    row = connection.execute(
        f"SELECT {ROLLOUT_COLUMNS} FROM rollouts WHERE id = ?",  # noqa: S608 - fixed column names
        (rollout_id,),
    ).fetchone()
    return read_rollout(row) if row is not None else None


def get_attempt(connection: sqlite3.Connection, rollout_id: str, attempt_no: int) -> Attempt:
    """Return the attempt that has this number in the file."""
    row = connection.execute(
        f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE no = ?",  # noqa: S608 - fixed column names
        (attempt_no,),
    ).fetchone()
    return read_attempt(rollout_id, row)


def latest_attempt(connection: sqlite3.Connection, rollout_id: str) -> Attempt | None:
    """Return the rollout's latest attempt."""
    row = connection.execute("SELECT attempt_no FROM rollouts WHERE id = ?", (rollout_id,)).fetchone()
    return get_attempt(connection, rollout_id, row[0]) if row is not None and row[0] is not None else None


def next_check(connection: sqlite3.Connection) -> float | None:
    """Return when the next live attempt must be looked at."""
    row = connection.execute(
        "SELECT check_at FROM attempts WHERE check_at IS NOT NULL ORDER BY check_at LIMIT 1"
    ).fetchone()
    return row[0] if row is not None else None


def query_rollouts(
    connection: sqlite3.Connection,
    *,
    rollout_ids: Sequence[str] | None,
    status: Sequence[RolloutStatus] | None,
    mode: RolloutMode | None,
    run_id: str | None,
    descending: bool,
    limit: int | None,
    offset: int,
) -> list[RolloutV2]:
    """Return the rollouts that pass every filter, in the order of creation."""
    conditions: list[str] = []
    values: list[Any] = []
    if rollout_ids is not None:
        conditions.append("id IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(list(rollout_ids)))
    if mode is not None:
        conditions.append("mode = ?" if run_id is None and rollout_ids is None else "+mode = ?")
        values.append(mode)
    if run_id is not None:
        conditions.append("run_id = ?" if rollout_ids is None else "+run_id = ?")
        values.append(run_id)
    # One sorted part for each status, which SQLite merges: an index gives each part in the order of creation, so a
    # limit stops the search early.
    statuses: list[RolloutStatus | None] = [None] if status is None else list(dict.fromkeys(status))
    if status is None and run_id is not None and rollout_ids is None:
        # The index of the runs is sorted by status first.
        statuses = list(get_args(RolloutStatus))
    # Ids name few rollouts, to which the other indexes would lead through many.
    free = "" if rollout_ids is None else "+"
    parts: list[str] = []
    arguments: list[Any] = []
    for wanted in statuses:
        where = [*conditions, f"{free}status = ?"] if wanted is not None else conditions
        arguments += [*values, wanted] if wanted is not None else values
        parts.append(
            f"SELECT {ROLLOUT_COLUMNS} FROM rollouts{' WHERE ' if where else ''}{' AND '.join(where)}"  # noqa: S608
        )
    if not parts:
        return []
    order = "DESC" if descending else "ASC"
    sql = f"{' UNION ALL '.join(parts)} ORDER BY no {order} LIMIT ? OFFSET ?"
    rows = connection.execute(sql, (*arguments, -1 if limit is None else limit, offset))
    return [read_rollout(row).rollout for row in rows]


def query_attempts(
    connection: sqlite3.Connection,
    rollout_id: str,
    *,
    status: Sequence[AttemptStatus] | None,
    limit: int | None,
    offset: int,
) -> list[Attempt]:
    """Return a rollout's attempts in order."""
    rows = connection.execute(
        f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE rollout_no = (SELECT no FROM rollouts WHERE id = ?) "  # noqa: S608
        "AND (?2 IS NULL OR status IN (SELECT value FROM json_each(?2))) ORDER BY seq LIMIT ?3 OFFSET ?4",
        (
            rollout_id,
            None if status is None else json.dumps(list(status)),
            -1 if limit is None else limit,
            offset,
        ),
    )
    return [read_attempt(rollout_id, row) for row in rows]


def query_spans(
    connection: sqlite3.Connection, rollout_id: str, attempt_id: str | None, **filters: Any
) -> list[Span]:
    """Return what :func:`query_encoded_spans` returns, decoded."""
    return [decode_span(span) for span in query_encoded_spans(connection, rollout_id, attempt_id, **filters)]


def query_encoded_spans(
    connection: sqlite3.Connection,
    rollout_id: str,
    attempt_id: str | None,
    *,
    name: str | None = None,
    span_id: str | None = None,
    trace_id: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[EncodedSpan]:
    """Return spans by attempt, then sequence id; ``attempt_id`` may be ``latest``."""
    attempts = (
        "SELECT a.no, a.id, a.seq FROM attempts a JOIN rollouts r ON r.no = a.rollout_no WHERE r.id = ?1"
    )
    values: list[Any] = [rollout_id]
    if attempt_id == "latest":
        attempts += " AND a.no = r.attempt_no"
    elif attempt_id is not None:
        attempts += " AND a.id = ?"
        values.append(attempt_id)
    conditions = ""
    for column, wanted in (("name", name), ("span_id", span_id), ("trace_id", trace_id)):
        if wanted is not None:
            conditions += f" AND {column} = ?"
            values.append(wanted)
    left = -1 if limit is None else limit
    rows = connection.execute(
        f"SELECT ?1, a.id, s.seq, s.span_id, s.trace_id, s.name, s.body FROM ({attempts}) a "  # noqa: S608
        f"CROSS JOIN spans s ON s.attempt_no = a.no{conditions} ORDER BY a.seq, s.seq LIMIT ? OFFSET ?",
        (*values, left, offset),
    )
    return [EncodedSpan(*row) for row in rows]


def unfinished(
    connection: sqlite3.Connection, rollout_ids: Iterable[str], *, known: bool = False
) -> set[str]:
    """Return those of the ids whose rollouts are not final.

    Args:
        connection: Where to look.
        rollout_ids: Which.
        known: They were there before, so that those that are not have been deleted, and were final.

    Raises:
        UnknownRolloutError: If there is no such rollout.
    """
    asked = list(rollout_ids)
    rows = connection.execute(
        "SELECT id, end_no IS NULL FROM rollouts WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(asked),),
    ).fetchall()
    if not known and len(rows) < len(set(asked)):
        found = {row[0] for row in rows}
        missing = next(rollout_id for rollout_id in asked if rollout_id not in found)
        raise UnknownRolloutError(f"no rollout {missing!r} in this store")
    return {rollout_id for rollout_id, open_ in rows if open_}


def final_rollouts(connection: sqlite3.Connection, rollout_ids: Sequence[str]) -> dict[str, RolloutV2]:
    """Return those of the rollouts that are final, by id."""
    rows = connection.execute(
        f"SELECT {ROLLOUT_COLUMNS} FROM rollouts "  # noqa: S608 - fixed column names
        "WHERE end_no IS NOT NULL AND id IN (SELECT value FROM json_each(?))",
        (json.dumps(rollout_ids),),
    )
    found = (read_rollout(row).rollout for row in rows)
    return {rollout.rollout_id: rollout for rollout in found}


def get_resources(connection: sqlite3.Connection, resources_id: str | None) -> ResourcesUpdate | None:
    """Return the newest version of these resources, or what was written last of all."""
    if resources_id is None:
        where, values = "ORDER BY no DESC LIMIT 1", ()
    else:
        where, values = "WHERE id = ? ORDER BY version DESC LIMIT 1", (resources_id,)
    row = connection.execute(
        f"SELECT id, version, create_time, update_time, body FROM resources {where}",  # noqa: S608 - fixed text
        values,
    ).fetchone()
    if row is None:
        return None
    return ResourcesUpdate(
        resources_id=row[0], version=row[1], create_time=row[2], update_time=row[3], resources=decode(row[4])
    )


def query_workers(connection: sqlite3.Connection, now: float, worker_id: str | None = None) -> list[Worker]:
    """Return the workers, with what they do now."""
    rows = connection.execute(
        "SELECT id, heartbeat_time, stats FROM workers WHERE ?1 IS NULL OR id = ?1 ORDER BY no", (worker_id,)
    ).fetchall()
    return [_read_worker(connection, now, *row) for row in rows]


def _read_worker(
    connection: sqlite3.Connection, now: float, worker_id: str, seen: float | None, stats: str
) -> Worker:
    current = connection.execute(
        "SELECT r.id, a.id FROM attempts a JOIN rollouts r ON r.no = a.rollout_no "
        "WHERE a.worker_id = ? AND a.check_at IS NOT NULL ORDER BY a.no DESC LIMIT 1",
        (worker_id,),
    ).fetchone()
    silent = seen is None or now - seen > lifecycle.WORKER_SILENCE_SECONDS
    return Worker(
        worker_id=worker_id,
        status="unknown" if silent else "busy" if current else "idle",
        last_heartbeat_time=seen,
        current_rollout_id=current[0] if current else None,
        current_attempt_id=current[1] if current else None,
        heartbeat_stats=decode(stats),
    )


def query_runs(connection: sqlite3.Connection, run_id: str | None) -> list[Run]:
    """Return the runs, oldest first, or the one of this id."""
    rows = connection.execute("SELECT body FROM runs WHERE ?1 IS NULL OR id = ?1 ORDER BY no", (run_id,))
    return [Run.model_validate(decode(body)) for (body,) in rows]


def load_run_state(connection: sqlite3.Connection, run_id: str) -> dict[str, Any] | None:
    """Return the state that was saved last of this run."""
    row = connection.execute("SELECT body FROM run_states WHERE run_id = ?", (run_id,)).fetchone()
    return decode(row[0]) if row is not None else None


def statistics(connection: sqlite3.Connection, run_id: str | None) -> StoreStatistics:
    """Return the counts, which are kept up to date by every write."""
    counts: dict[str, dict[str, int]] = {"": {}, "run": {}}
    own = "" if run_id is None else f"run {run_id}"
    for scope, what, number in connection.execute(
        "SELECT scope, what, n FROM counts WHERE scope IN ('', ?) AND n > 0", (own,)
    ):
        counts.setdefault(scope, {})[what] = number
    total = counts[""]
    one = connection.execute("SELECT (SELECT count(*) FROM workers), (SELECT count(*) FROM runs)").fetchone()
    return StoreStatistics.model_validate(
        {
            "rollouts": {
                what.removeprefix("rollout "): number
                for what, number in counts.get(own, {}).items()
                if what.startswith("rollout ")
            },
            "attempts": total.get("attempts", 0),
            "spans": total.get("spans", 0),
            "resources": total.get("resources", 0),
            "workers": one[0],
            "runs": one[1],
        }
    )
