"""Deleting what is old, a little at a time, so that nobody waits long."""
# ruff: noqa: S608 - the pieces of the statements are constants of this package

from __future__ import annotations

from psycopg.pq.abc import PGresult

from lightning_core.store.base import StoreStatistics

from .engine import Engine
from .operations import Execute
from .rows import integer, string
from .text import number
from .wire import Statement, rows

__all__ = ["vacuum"]

_BATCH = 200

# The counters change along with what they count.
_ROLLOUTS = f"""
WITH old AS (
    SELECT no FROM rollouts WHERE end_time < $1::float8 ORDER BY end_time LIMIT {_BATCH} FOR UPDATE SKIP LOCKED
), gone_spans AS (
    DELETE FROM spans WHERE rollout_no IN (SELECT no FROM old) RETURNING rollout_no
), gone_attempts AS (
    DELETE FROM attempts WHERE rollout_no IN (SELECT no FROM old) RETURNING rollout_no
), gone AS (
    DELETE FROM rollouts WHERE no IN (SELECT no FROM old) RETURNING status, run_id
), totals AS (
    SELECT '' AS scope, 'rollout ' || status AS what, count(*) AS n FROM gone GROUP BY status
    UNION ALL SELECT '', 'attempts', count(*) FROM gone_attempts
    UNION ALL SELECT '', 'spans', count(*) FROM gone_spans
), counted AS (
    INSERT INTO counts
    SELECT scope, what, -n FROM totals WHERE n > 0
    UNION ALL
    SELECT 'run ' || run_id, 'rollout ' || status, -count(*) FROM gone WHERE run_id IS NOT NULL GROUP BY run_id, status
)
SELECT what, n FROM totals
"""

_REST = """
WITH gone_runs AS (
    DELETE FROM runs WHERE end_time < $1::float8 RETURNING id
), gone_states AS (
    DELETE FROM run_states WHERE run_id IN (SELECT id FROM gone_runs)
), gone_workers AS (
    DELETE FROM workers WHERE heartbeat_time < $1::float8 RETURNING id
), old AS (
    SELECT id FROM resources GROUP BY id
    HAVING max(update_time) < $1::float8 AND max(no) < (SELECT max(no) FROM resources)
    AND id NOT IN (SELECT resources_id FROM rollouts WHERE resources_id IS NOT NULL)
), gone_resources AS (
    DELETE FROM resources WHERE id IN (SELECT id FROM old)
), totals AS (
    SELECT 'runs' AS what, count(*) AS n FROM gone_runs
    UNION ALL SELECT 'workers', count(*) FROM gone_workers
    UNION ALL SELECT 'resources', count(*) FROM old
), counted AS (
    INSERT INTO counts SELECT '', what, -n FROM totals WHERE what = 'resources' AND n > 0
)
SELECT what, n FROM totals
"""


def _totals(result: PGresult) -> dict[str, int]:
    return {string(what): integer(n) for what, n in rows(result)}


async def vacuum(engine: Engine, before: float) -> StoreStatistics:
    """Delete what the contract says; returns how much that was."""
    deleted = StoreStatistics()
    while True:
        part = (await engine.write(Execute(Statement(_ROLLOUTS, (number(before),)), _totals))).result
        found = 0
        for what, n in part.items():
            if what.startswith("rollout "):
                status = what.removeprefix("rollout ")
                deleted.rollouts[status] = deleted.rollouts.get(status, 0) + n
                found += n
        deleted.attempts += part["attempts"]
        deleted.spans += part["spans"]
        if not found:
            break
        # Those who wait for what was deleted are to notice.
        engine.room.wake_all()
    part = (await engine.write(Execute(Statement(_REST, (number(before),)), _totals))).result
    deleted.runs, deleted.workers, deleted.resources = part["runs"], part["workers"], part["resources"]
    return deleted
