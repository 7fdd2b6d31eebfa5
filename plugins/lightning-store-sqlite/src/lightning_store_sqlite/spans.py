"""Writing spans: the hot path."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_core.errors import SpanConflictError
from lightning_core.types import Span

from . import operations, queries
from .codec import encode_span
from .writer import Operation, Transaction

__all__ = ["NewSpan", "add_one", "add_spans", "prepare"]

_INSERT = "INSERT INTO spans (attempt_no, seq, span_id, trace_id, name, body) VALUES (?, ?, ?, ?, ?, ?)"


class NewSpan(NamedTuple):
    """A span, ready for the file but for its attempt's number and its sequence id."""

    sequence_id: int
    span_id: str
    trace_id: str
    name: str
    body: str


def prepare(spans: Sequence[Span]) -> dict[tuple[str, str], list[NewSpan]]:
    """Encode spans, which the caller's thread does, and group them by attempt.

    Raises:
        UnserializableValueError: If an attribute is no JSON value.
    """
    groups: dict[tuple[str, str], list[NewSpan]] = {}
    for span in spans:
        row = NewSpan(span.sequence_id, span.span_id, span.trace_id, span.name, encode_span(span))
        groups.setdefault((span.rollout_id, span.attempt_id), []).append(row)
    return groups


def add_spans(groups: dict[tuple[str, str], list[NewSpan]]) -> Operation[int]:
    """Store spans and renew the leases of their attempts; returns how many were new."""

    def operation(tx: Transaction) -> int:
        try:
            return _add(tx, groups, _insert)
        except sqlite3.IntegrityError:
            # Some span is stored already, or a sequence id is taken: once more, one by one.
            tx.execute("ROLLBACK TO operation")
            tx.drop()
            return _add(tx, groups, _insert_carefully)

    return operation


def add_one(span: Span) -> Operation[tuple[int, Span | None]]:
    """Store one span; returns its sequence id, and what was stored if it was stored before."""
    add = add_spans(prepare([span]))

    def operation(tx: Transaction) -> tuple[int, Span | None]:
        if add(tx):
            row = tx.execute("SELECT seq FROM spans WHERE rowid = last_insert_rowid()").fetchone()
            return row[0], None
        stored = queries.query_spans(tx.connection, span.rollout_id, span.attempt_id, span_id=span.span_id)
        return stored[0].sequence_id, stored[0]

    return operation


def _add(
    tx: Transaction,
    groups: dict[tuple[str, str], list[NewSpan]],
    insert: Callable[[Transaction, operations.FoundAttempt, list[NewSpan]], tuple[int, int]],
) -> int:
    total = 0
    for (rollout_id, attempt_id), spans in groups.items():
        found = operations.find_attempt(tx, rollout_id, attempt_id)
        new, last = insert(tx, found, spans)
        if last != found.last_span_seq:
            tx.execute("UPDATE attempts SET last_span_seq = ? WHERE no = ?", (last, found.no))
        operations.show_life(tx, found, tx.now)
        total += new
    tx.count("", "spans", total)
    return total


def _insert(tx: Transaction, found: operations.FoundAttempt, spans: list[NewSpan]) -> tuple[int, int]:
    """Store spans, all of which should be new; returns how many, and the greatest sequence id."""
    last = found.last_span_seq
    rows: list[tuple[int, int, str, str, str, str]] = []
    for wanted, span_id, trace_id, name, body in spans:
        sequence_id = wanted or last + 1
        last = max(last, sequence_id)
        rows.append((found.no, sequence_id, span_id, trace_id, name, body))
    tx.connection.executemany(_INSERT, rows)
    return len(rows), last


def _insert_carefully(
    tx: Transaction, found: operations.FoundAttempt, spans: list[NewSpan]
) -> tuple[int, int]:
    """Store those spans that are new."""
    last, new = found.last_span_seq, 0
    for wanted, span_id, trace_id, name, body in spans:
        stored = tx.execute(
            "SELECT 1 FROM spans WHERE attempt_no = ? AND span_id = ?", (found.no, span_id)
        ).fetchone()
        if stored is not None:
            continue
        sequence_id = wanted or last + 1
        last = max(last, sequence_id)
        try:
            tx.execute(_INSERT, (found.no, sequence_id, span_id, trace_id, name, body))
        except sqlite3.IntegrityError:
            raise SpanConflictError(
                f"span {span_id!r} claims sequence id {sequence_id} of attempt {found.attempt.attempt_id!r}, "
                "which another span has; leave it at 0 to have one drawn"
            ) from None
        new += 1
    return new, last
