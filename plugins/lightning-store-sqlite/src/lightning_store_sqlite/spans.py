"""Writing spans: the hot path."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import TypeAlias

from lightning_core.errors import SpanConflictError
from lightning_core.store.encoding import EncodedSpan, decode_span
from lightning_core.types import Span

from . import queries
from .reporting import FoundAttempt, find_attempt, show_life
from .writer import Operation, Transaction

__all__ = ["Group", "add_one", "add_spans", "group"]

_INSERT = "INSERT INTO spans (attempt_no, seq, span_id, trace_id, name, body) VALUES (?, ?, ?, ?, ?, ?)"


Group: TypeAlias = dict[tuple[str, str], list[EncodedSpan]]
"""Spans by rollout id and attempt id."""


def group(spans: Iterable[EncodedSpan]) -> Group:
    """Group spans by attempt, which the caller's thread does."""
    groups: Group = {}
    for span in spans:
        groups.setdefault(span[:2], []).append(span)
    return groups


def add_spans(groups: Group) -> Operation[int]:
    """Store spans and renew the leases of their attempts; returns how many were new."""

    def operation(tx: Transaction) -> int:
        try:
            return _add(tx, groups, _insert)
        except sqlite3.IntegrityError:
            # Some span is stored already, or a sequence id is taken: once more, one by one.
            tx.undo()
            return _add(tx, groups, _insert_carefully)

    return operation


def add_one(span: EncodedSpan) -> Operation[tuple[int, Span | None]]:
    """Store one span; returns its sequence id, and what was stored if it was stored before."""
    add = add_spans(group([span]))

    def operation(tx: Transaction) -> tuple[int, Span | None]:
        if add(tx):
            row = tx.execute("SELECT seq FROM spans WHERE rowid = last_insert_rowid()").fetchone()
            return row[0], None
        stored = queries.query_encoded_spans(
            tx.connection, span.rollout_id, span.attempt_id, span_id=span.span_id
        )
        return stored[0].sequence_id, decode_span(stored[0])

    return operation


def _add(
    tx: Transaction,
    groups: Group,
    insert: Callable[[Transaction, FoundAttempt, list[EncodedSpan]], tuple[int, int]],
) -> int:
    total = 0
    for (rollout_id, attempt_id), spans in groups.items():
        found = find_attempt(tx, rollout_id, attempt_id)
        new, last = insert(tx, found, spans)
        show_life(tx, found, last if last != found.last_span_seq else None)
        total += new
    tx.count("", "spans", total)
    return total


def _insert(tx: Transaction, found: FoundAttempt, spans: list[EncodedSpan]) -> tuple[int, int]:
    """Store spans, all of which should be new; returns how many, and the greatest sequence id."""
    last = found.last_span_seq
    rows: list[tuple[int, int, str, str, str, str]] = []
    for _, _, wanted, span_id, trace_id, name, body in spans:
        sequence_id = wanted or last + 1
        last = max(last, sequence_id)
        tx.volume += len(body)
        rows.append((found.no, sequence_id, span_id, trace_id, name, body))
    tx.connection.executemany(_INSERT, rows)
    return len(rows), last


def _insert_carefully(tx: Transaction, found: FoundAttempt, spans: list[EncodedSpan]) -> tuple[int, int]:
    """Store those spans that are new."""
    last, new = found.last_span_seq, 0
    for _, _, wanted, span_id, trace_id, name, body in spans:
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
