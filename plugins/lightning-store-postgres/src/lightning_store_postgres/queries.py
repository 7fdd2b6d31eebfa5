"""Reading: the statements, and what becomes of their rows."""
# ruff: noqa: S608 - the pieces of the statements are constants of this package

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_core.store import lifecycle
from lightning_core.store.base import StoreStatistics
from lightning_core.store.encoding import decode
from lightning_core.types import AttemptStatus, RolloutMode, RolloutStatus, Worker

from .loading import NOW
from .rows import ATTEMPT, WHOLE, integer, real, string
from .text import Parameter, number, texts, word
from .wire import Row, Statement

__all__ = [
    "attempts",
    "latest_attempt",
    "latest_resources",
    "read_statistics",
    "read_worker",
    "resources",
    "rollout",
    "rollouts",
    "run_state",
    "runs",
    "spans",
    "statistics",
    "these_rollouts",
    "unfinished",
    "workers",
]


class Conditions:
    """Conditions of a query and their parameters."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self._texts: list[str] = []

    def add(self, text: str, *parameters: Parameter) -> None:
        """Add a condition, in which ``%`` stands for a parameter."""
        for parameter in parameters:
            text = text.replace("%", self.place(parameter), 1)
        self._texts.append(text)

    def place(self, parameter: Parameter) -> str:
        """Add a parameter and return what stands for it."""
        self.parameters.append(parameter)
        return f"${len(self.parameters)}"

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self._texts)}" if self._texts else ""

    def page(self, limit: int | None, offset: int) -> str:
        """Return the clause for a part of the result."""
        text = f" LIMIT {self.place(number(limit))}::int8" if limit is not None else ""
        return f"{text} OFFSET {self.place(number(offset))}::int8" if offset else text


def rollout(rollout_id: str) -> Statement:
    """One rollout."""
    return Statement(f"SELECT {WHOLE} FROM rollouts r WHERE r.id = $1::text", (word(rollout_id),))


def these_rollouts(rollout_ids: Sequence[str]) -> Statement:
    """These rollouts; those that are not final without input and metadata, which may be large."""
    columns = WHOLE
    for name in ("r.metadata", "r.input"):
        columns = columns.replace(name, f"CASE WHEN r.end_time IS NOT NULL THEN {name} END")
    return Statement(f"SELECT {columns} FROM rollouts r WHERE r.id = ANY ($1::text[])", (texts(rollout_ids),))


def rollouts(
    *,
    rollout_ids: Sequence[str] | None,
    status: Sequence[RolloutStatus] | None,
    mode: RolloutMode | None,
    run_id: str | None,
    descending: bool,
    limit: int | None,
    offset: int,
) -> Statement:
    """Rollouts that pass every filter, in the order of creation."""
    where = Conditions()
    if rollout_ids is not None:
        where.add("r.id = ANY (%::text[])", texts(rollout_ids))
    if mode is not None:
        where.add("r.mode = %::text", word(mode))
    if run_id is not None:
        where.add("r.run_id = %::text", word(run_id))
    order = "DESC" if descending else "ASC"
    if status is not None and rollout_ids is None and run_id is None and limit is not None:
        # One sorted part for each status: an index gives each in the order of creation, so that a limit stops the
        # search early.
        most = where.place(number(limit + offset))
        conditions = str(where) or "WHERE true"
        parts = " UNION ALL ".join(
            f"(SELECT {WHOLE} FROM rollouts r {conditions} AND r.status = {where.place(word(wanted))}::text "
            f"ORDER BY r.no {order} LIMIT {most}::int8)"
            for wanted in dict.fromkeys(status)
        )
        parts = parts or f"SELECT {WHOLE} FROM rollouts r WHERE false"
        sql = f"SELECT {WHOLE} FROM ({parts}) r ORDER BY r.no {order}"
    else:
        if status is not None:
            where.add("r.status = ANY (%::text[])", texts(status))
        sql = f"SELECT {WHOLE} FROM rollouts r {where} ORDER BY r.no {order}"
    sql += where.page(limit, offset)
    return Statement(sql, tuple(where.parameters))


def attempts(
    rollout_id: str, *, status: Sequence[AttemptStatus] | None, limit: int | None, offset: int
) -> Statement:
    """A rollout's attempts in order."""
    where = Conditions()
    where.add("r.id = %::text", word(rollout_id))
    if status is not None:
        where.add("a.status = ANY (%::text[])", texts(status))
    sql = f"SELECT {ATTEMPT} FROM rollouts r JOIN attempts a ON a.rollout_no = r.no {where} ORDER BY a.seq"
    sql += where.page(limit, offset)
    return Statement(sql, tuple(where.parameters))


def latest_attempt(rollout_id: str) -> Statement:
    """A rollout's latest attempt."""
    return Statement(
        f"SELECT {ATTEMPT} FROM rollouts r JOIN attempts a ON a.rollout_no = r.no AND a.seq = r.attempt_seq "
        "WHERE r.id = $1::text",
        (word(rollout_id),),
    )


def spans(
    rollout_id: str,
    attempt_id: str | None,
    *,
    name: str | None,
    span_id: str | None,
    trace_id: str | None,
    limit: int | None,
    offset: int,
) -> Statement:
    """Spans by attempt, then sequence id; ``attempt_id`` may be ``latest``."""
    where = Conditions()
    where.add("r.id = %::text", word(rollout_id))
    if attempt_id == "latest":
        where.add("a.seq = r.attempt_seq")
    elif attempt_id is not None:
        where.add("a.id = %::text", word(attempt_id))
    for column, wanted in (("name", name), ("span_id", span_id), ("trace_id", trace_id)):
        if wanted is not None:
            where.add(f"s.{column} = %::text", word(wanted))
    sql = (
        "SELECT a.id, s.seq, s.span_id, s.trace_id, s.name, s.body FROM rollouts r "
        "JOIN attempts a ON a.rollout_no = r.no "
        f"JOIN spans s ON s.rollout_no = a.rollout_no AND s.attempt_seq = a.seq {where} "
        "ORDER BY s.attempt_seq, s.seq"
    )
    sql += where.page(limit, offset)
    return Statement(sql, tuple(where.parameters))


def unfinished(rollout_ids: Iterable[str]) -> Statement:
    """The ids of those of these rollouts that are not final."""
    return Statement(
        "SELECT id FROM rollouts WHERE id = ANY ($1::text[]) AND end_time IS NULL", (texts([*rollout_ids]),)
    )


_RESOURCES = "SELECT id, version, create_time, update_time, body FROM resources "


def resources(resources_id: str) -> Statement:
    """The newest version of these resources."""
    return Statement(
        f"{_RESOURCES} WHERE id = $1::text ORDER BY version DESC LIMIT 1",
        (word(resources_id),),
    )


def latest_resources() -> Statement:
    """What was written last of all."""
    return Statement(f"{_RESOURCES} ORDER BY no DESC LIMIT 1")


def workers(clock: float | None, worker_id: str | None = None) -> Statement:
    """All workers, or the one of this id, with the oldest live attempt of each."""
    where = Conditions()
    now = where.place(number(clock))
    if worker_id is not None:
        where.add("w.id = %::text", word(worker_id))
    sql = (
        f"SELECT w.id, w.heartbeat_time, w.stats, a.rollout_id, a.id, {NOW.replace('$1', now)} FROM workers w "
        "LEFT JOIN LATERAL (SELECT r.id AS rollout_id, a.id FROM attempts a JOIN rollouts r ON r.no = a.rollout_no "
        "WHERE a.worker_id = w.id AND a.check_at IS NOT NULL ORDER BY a.rollout_no LIMIT 1) a ON true "
        f"{where} ORDER BY w.no"
    )
    return Statement(sql, tuple(where.parameters))


def read_worker(row: Row) -> Worker:
    """Make a worker of a row of :func:`workers`."""
    id_, seen, stats, rollout_id, attempt_id, now = row
    silent = real(now) - real(seen) > lifecycle.WORKER_SILENCE_SECONDS
    return Worker(
        worker_id=string(id_),
        status="unknown" if silent else "busy" if attempt_id is not None else "idle",
        last_heartbeat_time=real(seen),
        current_rollout_id=string(rollout_id),
        current_attempt_id=string(attempt_id),
        heartbeat_stats=decode((stats or b"{}").decode()),
    )


def runs(run_id: str | None) -> Statement:
    """The runs, oldest first, or the one of this id."""
    where = Conditions()
    if run_id is not None:
        where.add("id = %::text", word(run_id))
    return Statement(f"SELECT body FROM runs {where} ORDER BY no", tuple(where.parameters))


def run_state(run_id: str) -> Statement:
    """The state of a run's algorithm."""
    return Statement("SELECT body FROM run_states WHERE run_id = $1::text", (word(run_id),))


def statistics(run_id: str | None) -> Statement:
    """The counters, each with all changes added up."""
    own = "" if run_id is None else f"run {run_id}"
    return Statement(
        "SELECT scope, what, sum(n) FROM counts WHERE scope = '' OR scope = $1::text GROUP BY scope, what "
        "UNION ALL SELECT '', 'workers', count(*) FROM workers UNION ALL SELECT '', 'runs', count(*) FROM runs",
        (word(own),),
    )


def read_statistics(rows: Sequence[Row], run_id: str | None) -> StoreStatistics:
    """Make statistics of the rows of :func:`statistics`."""
    own = "" if run_id is None else f"run {run_id}"
    counts = {(string(scope), string(what)): integer(n) for scope, what, n in rows}
    return StoreStatistics.model_validate(
        {
            "rollouts": {
                what.removeprefix("rollout "): n
                for (scope, what), n in counts.items()
                if scope == own and what.startswith("rollout ") and n > 0
            },
            **{
                what: counts.get(("", what), 0)
                for what in ("attempts", "spans", "resources", "workers", "runs")
            },
        }
    )
