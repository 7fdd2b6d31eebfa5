"""Writing spans: the hot path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_core.errors import SpanConflictError
from lightning_core.store.encoding import EncodedSpan

from .work import AttemptEntry, Needs, RolloutEntry, Work

__all__ = ["AddSpans"]


class AddSpans:
    """Store spans and renew the leases of their attempts; returns how many were new, and the last sequence id given.

    At first all spans are taken to be new, and nothing is looked for. If the database then refuses one, the group runs
    once more, carefully.

    Args:
        spans: The spans, encoded.
    """

    def __init__(self, spans: Iterable[EncodedSpan]) -> None:
        self._groups: dict[tuple[str, str], list[EncodedSpan]] = {}
        self.weight = 0
        for span in spans:
            self._groups.setdefault(span[:2], []).append(span)
            self.weight += 200 + len(span.body)

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        for (rollout_id, attempt_id), spans in self._groups.items():
            needs.attempt(rollout_id, attempt_id)
            span_ids, sequence_ids = needs.spans[rollout_id, attempt_id]
            span_ids.update(span.span_id for span in spans)
            sequence_ids.update(span.sequence_id for span in spans if span.sequence_id)

    def run(self, work: Work) -> tuple[int, int]:
        """Do it."""
        # All are looked at before anything is written: all are stored, or none.
        plans: list[tuple[RolloutEntry, AttemptEntry, list[tuple[int, EncodedSpan]], int]] = []
        for (rollout_id, attempt_id), spans in self._groups.items():
            entry = work.rollout(rollout_id)
            attempt = entry.attempts.get(attempt_id) or entry.attempt(attempt_id)
            chosen, last = _choose(attempt, spans, careful=work.careful)
            plans.append((entry, attempt, chosen, last))
        total = last_given = 0
        for entry, attempt, chosen, last in plans:
            key = (entry.no, attempt.attempt.sequence_id)
            for sequence_id, span in chosen:
                work.spans.append((*key, sequence_id, span.span_id, span.trace_id, span.name, span.body))
                last_given = sequence_id
                if work.careful:
                    attempt.span_ids.add(span.span_id)
                    attempt.sequence_ids.add(sequence_id)
            total += len(chosen)
            if last != attempt.last_span_seq:
                attempt.last_span_seq = last
                attempt.changed = max(attempt.changed, 1)
            work.show_life(entry, attempt)
        work.counts["", "spans"] += total
        return total, last_given


def _choose(
    attempt: AttemptEntry, spans: Sequence[EncodedSpan], *, careful: bool
) -> tuple[list[tuple[int, EncodedSpan]], int]:
    """Give sequence ids to those spans that are new; returns them, and the greatest one."""
    last = attempt.last_span_seq
    chosen: list[tuple[int, EncodedSpan]] = []
    span_ids: set[str] = set()
    sequence_ids: set[int] = set()
    for span in spans:
        if careful and (span.span_id in attempt.span_ids or span.span_id in span_ids):
            continue
        sequence_id = span.sequence_id or last + 1
        if careful:
            if sequence_id in attempt.sequence_ids or sequence_id in sequence_ids:
                raise SpanConflictError(
                    f"span {span.span_id!r} claims sequence id {sequence_id} of attempt "
                    f"{attempt.attempt.attempt_id!r}, which another span has; leave it at 0 to have one drawn"
                )
            span_ids.add(span.span_id)
            sequence_ids.add(sequence_id)
        last = max(last, sequence_id)
        chosen.append((sequence_id, span))
    return chosen, last
