"""The second half of a transaction: writing what its operations have changed, in one round trip with the commit."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_core.store.encoding import encode, encode_config
from lightning_core.types import Attempt

from .text import Parameter, flags, integers, json_text, number, reals, texts, word
from .wire import Statement, Wire
from .work import AttemptEntry, RolloutEntry, Work

__all__ = ["save"]

_NEW_ROLLOUTS = (
    "INSERT INTO rollouts (no, id, status, queue_no, attempt_seq, start_time, end_time, mode, resources_id, run_id, "
    "idempotency_key, config, metadata, input) "
    "SELECT no, id, status, CASE WHEN queued THEN no END, attempt_seq, start_time, end_time, mode, resources_id, "
    "run_id, idempotency_key, config, metadata, input "
    "FROM unnest($1::int8[], $2::text[], $3::text[], $4::bool[], $5::int8[], "
    "$6::float8[], $7::float8[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], "
    "$14::text[]) u (no, id, status, queued, attempt_seq, start_time, end_time, mode, resources_id, run_id, "
    "idempotency_key, config, metadata, input)"
)
_ROLLOUTS = (
    "UPDATE rollouts r SET status = u.status, end_time = u.end_time, attempt_seq = u.attempt_seq, queue_no = "
    "CASE WHEN u.place = 'keep' THEN r.queue_no WHEN u.place = 'end' THEN nextval('rollout_numbers') END "
    "FROM unnest($1::int8[], $2::text[], $3::float8[], $4::int8[], $5::text[]) "
    "u (no, status, end_time, attempt_seq, place) WHERE r.no = u.no"
)
_FIELDS = (
    "UPDATE rollouts r SET mode = u.mode, resources_id = u.resources_id, config = u.config, metadata = u.metadata, "
    "input = u.input FROM unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) "
    "u (no, mode, resources_id, config, metadata, input) WHERE r.no = u.no"
)
_NEW_ATTEMPTS = (
    "INSERT INTO attempts (rollout_no, seq, id, status, worker_id, start_time, end_time, heartbeat_time, check_at, "
    "last_span_seq, reason, lost_before, metadata) SELECT * FROM unnest($1::int8[], $2::int8[], $3::text[], "
    "$4::text[], $5::text[], $6::float8[], $7::float8[], $8::float8[], $9::float8[], $10::int8[], $11::text[], "
    "$12::int8[], $13::text[])"
)
_ATTEMPTS = (
    "UPDATE attempts a SET status = u.status, worker_id = u.worker_id, end_time = u.end_time, "
    "heartbeat_time = u.heartbeat_time, check_at = u.check_at, last_span_seq = u.last_span_seq, reason = u.reason, "
    "metadata = u.metadata FROM unnest($1::int8[], $2::int8[], $3::text[], $4::text[], $5::float8[], $6::float8[], "
    "$7::float8[], $8::int8[], $9::text[], $10::text[]) u (no, seq, status, worker_id, end_time, heartbeat_time, "
    "check_at, last_span_seq, reason, metadata) WHERE a.rollout_no = u.no AND a.seq = u.seq"
)
_HEARTBEATS = (
    "UPDATE attempts a SET heartbeat_time = u.heartbeat_time, last_span_seq = u.last_span_seq "
    "FROM unnest($1::int8[], $2::int8[], $3::float8[], $4::int8[]) u (no, seq, heartbeat_time, last_span_seq) "
    "WHERE a.rollout_no = u.no AND a.seq = u.seq"
)
_SPANS = (
    "INSERT INTO spans (rollout_no, attempt_seq, seq, span_id, trace_id, name, body) "
    "SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::text[], $5::text[], $6::text[], $7::text[])"
)
_WORKERS = (
    "INSERT INTO workers (id, heartbeat_time, stats) "
    "SELECT id, $2::float8, coalesce(stats, '{}') FROM unnest($1::text[], $3::text[]) u (id, stats) "
    "ON CONFLICT (id) DO UPDATE SET heartbeat_time = excluded.heartbeat_time"
)
_WORKERS_WITH_STATS = _WORKERS + ", stats = excluded.stats"
_RESOURCES = (
    "INSERT INTO resources (id, version, create_time, update_time, body) "
    "SELECT id, version, create_time, $4::float8, body "
    "FROM unnest($1::text[], $2::int8[], $3::float8[], $5::text[]) u (id, version, create_time, body)"
)
_COUNTS = "INSERT INTO counts (scope, what, n) SELECT * FROM unnest($1::text[], $2::text[], $3::int8[])"


_SIGN = (
    "INSERT INTO writers (id, transaction, time) VALUES ($1::text, $2::int8, now()) "
    "ON CONFLICT (id) DO UPDATE SET transaction = excluded.transaction, time = excluded.time"
)


async def save(wire: Wire, work: Work, writer: str, transaction: int) -> None:
    """Write everything and commit.

    Args:
        wire: A connection in the transaction in which all was read.
        work: What to write.
        writer: Who writes.
        transaction: The writer's number for this transaction, by which it is found again.

    Raises:
        ServerError: If the server refuses a statement; nothing is written then.
        ConnectionLostError: If the connection is gone; everything may have been written, or nothing.
    """
    statements: list[Statement] = []
    _save_rollouts(statements, list(work.rollouts.values()))
    _save_attempts(
        statements,
        [(rollout, entry) for rollout in work.rollouts.values() for entry in rollout.attempts.values()],
    )
    if work.spans:
        no, attempt_seq, seq, span_id, trace_id, name, body = zip(*work.spans, strict=True)
        statements.append(
            Statement(
                _SPANS,
                (
                    integers(no),
                    integers(attempt_seq),
                    integers(seq),
                    texts(span_id),
                    texts(trace_id),
                    texts(name),
                    texts([json_text(text) for text in body]),
                ),
            )
        )
    _save_rest(statements, work)
    first = len(statements)
    statements += (statement for statement, _ in work.extra)
    statements.append(Statement(_SIGN, (word(writer), number(transaction))))
    statements.append(Statement("COMMIT"))
    results = await wire.run(statements)
    for (_, handle), result in zip(work.extra, results[first:], strict=False):
        handle(result)


def _save_rollouts(statements: list[Statement], entries: Sequence[RolloutEntry]) -> None:
    new = [entry for entry in entries if entry.new]
    if new:
        rollouts = [entry.rollout for entry in new]
        statements.append(
            Statement(
                _NEW_ROLLOUTS,
                (
                    integers([entry.no for entry in new]),
                    texts([rollout.rollout_id for rollout in rollouts]),
                    texts([rollout.status for rollout in rollouts]),
                    flags([entry.place == "end" for entry in new]),
                    integers([entry.latest_seq for entry in new]),
                    reals([rollout.start_time for rollout in rollouts]),
                    reals([rollout.end_time for rollout in rollouts]),
                    texts([rollout.mode for rollout in rollouts]),
                    texts([rollout.resources_id for rollout in rollouts]),
                    texts([rollout.run_id for rollout in rollouts]),
                    texts([rollout.idempotency_key for rollout in rollouts]),
                    *_columns(new),
                ),
            )
        )
    changed = [entry for entry in entries if entry.changed and not entry.new]
    if changed:
        statements.append(
            Statement(
                _ROLLOUTS,
                (
                    integers([entry.no for entry in changed]),
                    texts([entry.rollout.status for entry in changed]),
                    reals([entry.rollout.end_time for entry in changed]),
                    integers([entry.latest_seq for entry in changed]),
                    texts([entry.place for entry in changed]),
                ),
            )
        )
    fields = [entry for entry in entries if entry.fields and not entry.new]
    if fields:
        statements.append(
            Statement(
                _FIELDS,
                (
                    integers([entry.no for entry in fields]),
                    texts([entry.rollout.mode for entry in fields]),
                    texts([entry.rollout.resources_id for entry in fields]),
                    *_columns(fields),
                ),
            )
        )


def _columns(entries: Sequence[RolloutEntry]) -> tuple[Parameter, Parameter, Parameter]:
    config, metadata, input_ = zip(*map(_json_texts, entries), strict=True)
    return (
        texts([json_text(text) for text in config]),
        texts([json_text(text) for text in metadata]),
        texts([json_text(text) for text in input_]),
    )


def _json_texts(entry: RolloutEntry) -> tuple[str, str, str]:
    if entry.texts is not None and not entry.fields:
        return entry.texts
    rollout = entry.rollout
    return encode_config(rollout.config), encode(rollout.metadata, "metadata"), encode(rollout.input, "input")


def _save_attempts(statements: list[Statement], pairs: Sequence[tuple[RolloutEntry, AttemptEntry]]) -> None:
    new = [pair for pair in pairs if pair[1].new]
    if new:
        attempts = [entry.attempt for _, entry in new]
        statements.append(
            Statement(
                _NEW_ATTEMPTS,
                (
                    integers([rollout.no for rollout, _ in new]),
                    integers([attempt.sequence_id for attempt in attempts]),
                    texts([attempt.attempt_id for attempt in attempts]),
                    texts([attempt.status for attempt in attempts]),
                    texts([attempt.worker_id for attempt in attempts]),
                    reals([attempt.start_time for attempt in attempts]),
                    reals([attempt.end_time for attempt in attempts]),
                    reals([attempt.last_heartbeat_time for attempt in attempts]),
                    reals([entry.check_at for _, entry in new]),
                    integers([entry.last_span_seq for _, entry in new]),
                    texts([attempt.reason for attempt in attempts]),
                    integers([attempt.lost_before for attempt in attempts]),
                    texts(_metadata(attempts)),
                ),
            )
        )
    changed = [pair for pair in pairs if pair[1].changed == 2 and not pair[1].new]
    if changed:
        attempts = [entry.attempt for _, entry in changed]
        statements.append(
            Statement(
                _ATTEMPTS,
                (
                    integers([rollout.no for rollout, _ in changed]),
                    integers([attempt.sequence_id for attempt in attempts]),
                    texts([attempt.status for attempt in attempts]),
                    texts([attempt.worker_id for attempt in attempts]),
                    reals([attempt.end_time for attempt in attempts]),
                    reals([attempt.last_heartbeat_time for attempt in attempts]),
                    reals([entry.check_at for _, entry in changed]),
                    integers([entry.last_span_seq for _, entry in changed]),
                    texts([attempt.reason for attempt in attempts]),
                    texts(_metadata(attempts)),
                ),
            )
        )
    renewed = [pair for pair in pairs if pair[1].changed == 1 and not pair[1].new]
    if renewed:
        statements.append(
            Statement(
                _HEARTBEATS,
                (
                    integers([rollout.no for rollout, _ in renewed]),
                    integers([entry.attempt.sequence_id for _, entry in renewed]),
                    reals([entry.attempt.last_heartbeat_time for _, entry in renewed]),
                    integers([entry.last_span_seq for _, entry in renewed]),
                ),
            )
        )


def _metadata(attempts: Sequence[Attempt]) -> list[bytes]:
    return [
        json_text(encode(attempt.metadata, "metadata")) if attempt.metadata else b"{}" for attempt in attempts
    ]


def _save_rest(statements: list[Statement], work: Work) -> None:
    # Sorted, as all locks are.
    workers = sorted(work.workers.items())
    for sql, some in (
        (_WORKERS, [(name, stats) for name, stats in workers if stats is None]),
        (_WORKERS_WITH_STATS, [(name, stats) for name, stats in workers if stats is not None]),
    ):
        if some:
            stats = texts([json_text(stats) if stats is not None else None for _, stats in some])
            statements.append(Statement(sql, (texts([name for name, _ in some]), number(work.now), stats)))
    if work.new_resources:
        new = work.new_resources
        statements.append(
            Statement(
                _RESOURCES,
                (
                    texts([update.resources_id for update in new]),
                    integers([update.version for update in new]),
                    reals([update.create_time for update in new]),
                    number(work.now),
                    texts([json_text(update.body) for update in new]),
                ),
            )
        )
    counts = [(scope, what, change) for (scope, what), change in work.counts.items() if change]
    if counts:
        statements.append(
            Statement(
                _COUNTS,
                (
                    texts([scope for scope, _, _ in counts]),
                    texts([what for _, what, _ in counts]),
                    integers([change for _, _, change in counts]),
                ),
            )
        )
