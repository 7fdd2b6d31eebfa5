"""Deleting what is old, in steps that are short, so that writers are not held up.

Rollouts and their attempts go at once. Their spans, which may be many, are then out of reach, and go step by step; the
``garbage`` table remembers them, so that a vacuum that was interrupted is finished by the next one.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import partial
from typing import NamedTuple

from lightning_core.store.base import StoreStatistics

from .engine import Engine
from .states import END_NUMBER
from .writer import Operation, Transaction

__all__ = ["vacuum"]

# What one step takes, at most: a few milliseconds of the writer's time.
_ROLLOUTS = 100
_SPANS = 250
_PAGES = 250

# SQLite's number for `PRAGMA auto_vacuum = incremental`.
_INCREMENTAL = 2


class _Detached(NamedTuple):
    rollouts: list[str]
    attempts: int
    spans: int


async def vacuum(engine: Engine, before: float) -> StoreStatistics:
    """Delete what is older than ``before``, in seconds since the epoch, and return how much that was."""
    rollouts: Counter[str] = Counter()
    attempts = spans = 0
    place = 0
    while True:
        numbers, place = await engine.read(partial(_candidates, before=before, place=place))
        if not numbers:
            break
        done = await engine.write(_detach(numbers, before))
        rollouts.update(done.rollouts)
        attempts += done.attempts
        spans += done.spans
        while await engine.write(_sweep):
            pass
    while await engine.write(_sweep):
        pass
    others = await engine.write(_delete_others(before))
    left = await engine.write(_free_pages)
    for _ in range(left // _PAGES + 1):
        if not left:
            break
        left = await engine.write(_free_pages)
    return StoreStatistics.model_validate(
        {"rollouts": dict(rollouts), "attempts": attempts, "spans": spans, **others}
    )


def _candidates(connection: sqlite3.Connection, *, before: float, place: int) -> tuple[list[int], int]:
    """Return the numbers of some rollouts that ended before, and the place to go on from; uses the index alone."""
    rows = connection.execute(
        "SELECT no, end_no FROM rollouts WHERE end_no > ? AND end_time < ? ORDER BY end_no LIMIT ?",
        (place, before, _ROLLOUTS),
    ).fetchall()
    return [no for no, _ in rows], rows[-1][1] if rows else place


def _detach(numbers: list[int], before: float) -> Operation[_Detached]:
    """Delete rollouts and their attempts, and remember the attempts whose spans must follow."""

    def operation(tx: Transaction) -> _Detached:
        statuses: list[str] = []
        attempts = spans = 0
        # Other processes may have learned of ends up to the greatest number: no later end may have a smaller one.
        mark = tx.next_number("end", END_NUMBER)
        tx.execute(
            "INSERT INTO counts VALUES ('numbers', 'end', ?1) ON CONFLICT DO UPDATE SET n = max(n, ?1)",
            (mark,),
        )
        for no in numbers:
            row = tx.execute(
                "DELETE FROM rollouts WHERE no = ? AND end_no IS NOT NULL AND end_time < ? RETURNING status, run_id",
                (no, before),
            ).fetchone()
            if row is None:
                # Another process has deleted it meanwhile.
                continue
            status, run_id = row
            statuses.append(status)
            tx.count("", f"rollout {status}", -1)
            if run_id is not None:
                tx.count(f"run {run_id}", f"rollout {status}", -1)
            gone = tx.execute("DELETE FROM attempts WHERE rollout_no = ? RETURNING no", (no,)).fetchall()
            attempts += len(gone)
            for (attempt_no,) in gone:
                number = tx.execute(
                    "SELECT count(*) FROM spans WHERE attempt_no = ?", (attempt_no,)
                ).fetchone()[0]
                if number:
                    tx.execute("INSERT INTO garbage VALUES (?)", (attempt_no,))
                    spans += number
        tx.count("", "attempts", -attempts)
        tx.count("", "spans", -spans)
        return _Detached(statuses, attempts, spans)

    return operation


def _sweep(tx: Transaction) -> bool:
    """Delete some of the spans that are out of reach; false when none are left."""
    row = tx.execute("SELECT attempt_no FROM garbage LIMIT 1").fetchone()
    if row is None:
        return False
    left = _SPANS
    while row is not None and left > 0:
        deleted = tx.execute(
            "DELETE FROM spans WHERE rowid IN (SELECT rowid FROM spans WHERE attempt_no = ? LIMIT ?)",
            (row[0], left),
        ).rowcount
        left -= deleted
        if left > 0:
            tx.execute("DELETE FROM garbage WHERE attempt_no = ?", row)
            row = tx.execute("SELECT attempt_no FROM garbage LIMIT 1").fetchone()
    return True


def _delete_others(before: float) -> Operation[dict[str, int]]:
    """Delete old runs, workers and resources; returns how many of each."""

    def operation(tx: Transaction) -> dict[str, int]:
        runs = tx.execute(
            "DELETE FROM runs WHERE json_extract(body, '$.end_time') < ? RETURNING id", (before,)
        ).fetchall()
        tx.connection.executemany("DELETE FROM run_states WHERE run_id = ?", runs)
        tx.execute("DELETE FROM counts WHERE n = 0 AND scope <> ''")
        workers = tx.execute("DELETE FROM workers WHERE heartbeat_time < ?", (before,)).rowcount
        resources = tx.execute(
            "SELECT id FROM resources r GROUP BY id HAVING max(update_time) < ? "
            "AND max(no) < (SELECT max(no) FROM resources) "
            "AND NOT EXISTS (SELECT 1 FROM rollouts WHERE resources_id = r.id)",
            (before,),
        ).fetchall()
        tx.connection.executemany("DELETE FROM resources WHERE id = ?", resources)
        tx.count("", "resources", -len(resources))
        return {"runs": len(runs), "workers": workers, "resources": len(resources)}

    return operation


def _free_pages(tx: Transaction) -> int:
    """Give some empty pages back to the file system; returns how many are left to give."""
    if tx.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
        # A file of the first version: its empty pages are filled again, but it does not shrink.
        return 0
    left = int(tx.execute("PRAGMA freelist_count").fetchone()[0])
    for _ in range(min(left, _PAGES)):
        # Python's module does one step of this statement, which frees one page whatever is asked for.
        tx.execute("PRAGMA incremental_vacuum(1)")
    return max(left - _PAGES, 0)
