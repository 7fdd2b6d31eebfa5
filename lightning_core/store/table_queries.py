"""Reading what a memory store holds: plain functions over its tables, called with their lock held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, TypeVar

from lightning_core.store.base import StoreStatistics
from lightning_core.store.entries import RolloutEntry
from lightning_core.store.tables import Tables
from lightning_core.types import Attempt, AttemptStatus, RolloutMode, RolloutStatus, RolloutV2, Span

__all__ = ["query_attempts", "query_rollouts", "query_spans", "statistics"]

T = TypeVar("T")


def query_rollouts(
    tables: Tables,
    *,
    rollout_ids: Sequence[str] | None,
    status: Sequence[RolloutStatus] | None,
    mode: RolloutMode | None,
    run_id: str | None,
    descending: bool,
    limit: int | None,
    offset: int,
) -> list[RolloutV2]:
    """Return the rollouts that pass every given filter, in the order in which they were created."""
    statuses = set(status) if status is not None else None
    names: dict[str, None] | dict[str, RolloutEntry] | list[str]
    if rollout_ids is not None:
        names = tables.in_order({name for name in rollout_ids if name in tables.rollouts})
    elif run_id is not None:
        names = tables.by_run.get(run_id, {})
    elif statuses is not None:
        names = tables.in_order(name for wanted in statuses for name in tables.by_status.get(wanted, ()))
    else:
        names = tables.rollouts
    found = (
        rollout
        for rollout in (tables.rollouts[name].rollout for name in (reversed(names) if descending else names))
        if (statuses is None or rollout.status in statuses)
        and (mode is None or rollout.mode == mode)
        and (run_id is None or rollout.run_id == run_id)
    )
    return [rollout.detached() for rollout in _page(found, limit, offset)]


def query_attempts(
    tables: Tables,
    rollout_id: str,
    *,
    status: Sequence[AttemptStatus] | None,
    limit: int | None,
    offset: int,
) -> list[Attempt]:
    """Return a rollout's attempts in order; an unknown rollout has none."""
    entry = tables.rollouts.get(rollout_id)
    attempts = entry.attempts.values() if entry is not None else ()
    found = (a.attempt for a in attempts if status is None or a.attempt.status in status)
    return [attempt.detached() for attempt in _page(found, limit, offset)]


def query_spans(
    tables: Tables,
    rollout_id: str,
    attempt_id: str | Literal["latest"] | None,
    *,
    name: str | None,
    span_id: str | None,
    trace_id: str | None,
    limit: int | None,
    offset: int,
) -> list[Span]:
    """Return spans ordered by attempt, then ``sequence_id``."""
    entry = tables.rollouts.get(rollout_id)
    if entry is None:
        return []
    if attempt_id is None:
        attempts = list(entry.attempts.values())
    else:
        one = entry.latest if attempt_id == "latest" else entry.attempts.get(attempt_id)
        attempts = [one] if one is not None else []
    if span_id is not None:
        spans = [a.spans[span_id] for a in attempts if span_id in a.spans]
    else:
        spans = [span for attempt in attempts for span in attempt.ordered()]
    found = (
        span
        for span in spans
        if (name is None or span.name == name) and (trace_id is None or span.trace_id == trace_id)
    )
    return [span.detached() for span in _page(found, limit, offset)]


def statistics(tables: Tables, run_id: str | None) -> StoreStatistics:
    """Count what is there; with ``run_id``, rollouts of that run only."""
    if run_id is None:
        counts = {status: len(names) for status, names in tables.by_status.items() if names}
    else:
        counts: dict[RolloutStatus, int] = {}
        for name in tables.by_run.get(run_id, {}):
            status = tables.rollouts[name].rollout.status
            counts[status] = counts.get(status, 0) + 1
    return StoreStatistics(
        rollouts=counts,
        attempts=tables.attempt_count,
        spans=tables.span_count,
        resources=len(tables.resources),
        workers=len(tables.workers),
        runs=len(tables.runs),
    )


def _page(items: Iterable[T], limit: int | None, offset: int) -> Iterable[T]:
    return islice(items, offset, None if limit is None else offset + limit)
