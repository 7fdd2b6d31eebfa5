"""The first half of a transaction: locking and reading what its operations need."""
# ruff: noqa: S608 - the pieces of the statements are constants of this package

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lightning_core.store import lifecycle
from lightning_core.types import RolloutV2

from .rows import ATTEMPT, BRIEF, WHOLE, integer, read_attempt, read_brief, read_whole, real, string
from .text import Parameter, integers, number, texts, word
from .wire import Row, Statement, Wire, rows
from .work import AttemptEntry, Needs, RolloutEntry, Work

__all__ = ["EXPIRY_BATCH", "NOW", "load"]

EXPIRY_BATCH = 500
"""How many attempts are expired in one transaction."""

NOW = "coalesce($1::float8, extract(epoch FROM clock_timestamp())::float8)"
"""The time: that of an injected clock, else the server's, which is the same for all its clients."""

_ATTEMPT = f"{ATTEMPT}, a.check_at, a.last_span_seq"

# Locks are taken in this order in every transaction, and those of a kind in the order of their keys, so that nobody
# waits for another in a circle: requests, rollouts, and what is inserted last. What is queued or due is locked only
# if that needs no waiting. Attempts and spans have no locks of their own: whoever changes them holds their rollout's.
_LOCK_REQUESTS = (
    "SELECT count(pg_advisory_xact_lock(key)) FROM "
    "(SELECT hashtextextended(name, 0) AS key FROM unnest($1::text[]) name ORDER BY key) keys"
)
_LOCK_ROLLOUTS = f"SELECT {BRIEF} FROM rollouts r WHERE r.id = ANY ($1::text[]) ORDER BY r.no FOR UPDATE"
_LOCK_KEYED = (
    f"SELECT {BRIEF} FROM rollouts r WHERE r.id = ANY ($1::text[]) OR r.idempotency_key = ANY ($2::text[]) "
    "ORDER BY r.no FOR UPDATE"
)
# Read after the locks are held: what waited for a lock would otherwise see attempts as they were before.
_ATTEMPTS = (
    f"SELECT {_ATTEMPT}, r.id FROM rollouts r JOIN attempts a ON a.rollout_no = r.no "
    "WHERE (r.id = ANY ($1::text[]) OR r.idempotency_key = ANY ($3::text[])) "
    "AND (a.seq = r.attempt_seq OR a.id = ANY ($2::text[]))"
)
_ATTEMPTS_UNKEYED = (
    f"SELECT {_ATTEMPT}, r.id FROM rollouts r JOIN attempts a ON a.rollout_no = r.no "
    "WHERE r.id = ANY ($1::text[]) AND (a.seq = r.attempt_seq OR a.id = ANY ($2::text[]))"
)
_WHOLE = (
    f"SELECT {WHOLE} FROM rollouts r WHERE r.id = ANY ($1::text[]) OR r.idempotency_key = ANY ($2::text[])"
)
_DUE = (
    f"SELECT {WHOLE} FROM attempts a JOIN rollouts r ON r.no = a.rollout_no AND r.attempt_seq = a.seq "
    f"WHERE a.check_at <= {NOW} ORDER BY a.check_at LIMIT {EXPIRY_BATCH} FOR UPDATE OF r SKIP LOCKED"
)
_QUEUED = (
    f"SELECT {WHOLE} FROM rollouts r WHERE r.queue_no IS NOT NULL ORDER BY r.queue_no LIMIT $1::int8 "
    "FOR UPDATE SKIP LOCKED"
)
_QUEUED_OF_RUN = (
    f"SELECT {WHOLE} FROM rollouts r WHERE r.queue_no IS NOT NULL AND r.run_id = $2::text ORDER BY r.queue_no "
    "LIMIT $1::int8 FOR UPDATE SKIP LOCKED"
)
_BEGUN = (
    f"SELECT {WHOLE}, {ATTEMPT} FROM attempts a JOIN rollouts r ON r.no = a.rollout_no AND r.attempt_seq = a.seq "
    "WHERE a.worker_id = $1::text AND a.check_at IS NOT NULL AND starts_with(a.id, $2::text) ORDER BY r.no"
)
_STARTED = (
    f"SELECT {_ATTEMPT} FROM unnest($1::text[], $2::text[]) u (id, prefix) JOIN rollouts r ON r.id = u.id "
    "JOIN attempts a ON a.rollout_no = r.no AND starts_with(a.id, u.prefix)"
)
_LATEST = (
    f"SELECT {_ATTEMPT} FROM unnest($1::int8[], $2::int8[]) u (no, seq) "
    "JOIN attempts a ON a.rollout_no = u.no AND a.seq = u.seq"
)
_RESOURCES = (
    "SELECT DISTINCT ON (id) id, version, create_time FROM resources WHERE id = ANY ($1::text[]) "
    "ORDER BY id, version DESC"
)
_SPANS = (
    "SELECT s.rollout_no, s.attempt_seq, s.span_id, s.seq "
    "FROM unnest($1::int8[], $2::int8[], $3::text[]) u (no, at, id) "
    "JOIN spans s ON s.rollout_no = u.no AND s.attempt_seq = u.at AND s.span_id = u.id "
    "UNION ALL "
    "SELECT s.rollout_no, s.attempt_seq, s.span_id, s.seq "
    "FROM unnest($4::int8[], $5::int8[], $6::int8[]) u (no, at, seq) "
    "JOIN spans s ON s.rollout_no = u.no AND s.attempt_seq = u.at AND s.seq = u.seq"
)

Handler = Callable[[list[Row]], None]


class Loader:
    """Reads what a group needs into its working set.

    Args:
        needs: What the operations have asked for.
        clock: The time of an injected clock.
        careful: Whether to look for stored spans.
    """

    def __init__(self, needs: Needs, clock: float | None, *, careful: bool) -> None:
        self.needs = needs
        self.clock = clock
        self.work = Work(0.0, careful=careful)
        self.due: list[RolloutEntry] = []
        self._by_no: dict[int, RolloutEntry] = {}
        self._steps: list[tuple[Statement, Handler]] = []

    def _step(self, handler: Handler, sql: str, *parameters: Parameter) -> None:
        self._steps.append((Statement(sql, parameters), handler))

    async def read(self, wire: Wire) -> None:
        """Begin the transaction and read everything, in one round trip or two."""
        needs = self.needs
        self._step(self._now, f"SELECT {NOW}", number(self.clock))
        if needs.requests:
            names = ["\n".join(request) for request in needs.requests]
            self._step(_ignore, _LOCK_REQUESTS, texts(names))
        ids, attempts, keys = texts([*needs.rollouts]), texts([*needs.attempts]), texts([*needs.keys])
        if needs.keys:
            self._step(self._brief, _LOCK_KEYED, ids, keys)
            self._step(self._attempts, _ATTEMPTS, ids, attempts, keys)
        elif needs.rollouts:
            self._step(self._brief, _LOCK_ROLLOUTS, ids)
            self._step(self._attempts, _ATTEMPTS_UNKEYED, ids, attempts)
        if needs.starts:
            self._step(
                self._attempts,
                _STARTED,
                texts([rollout_id for rollout_id, _ in needs.starts]),
                texts([f"{prefix}-" for _, prefix in needs.starts]),
            )
        if needs.whole or needs.keys:
            self._step(self._whole, _WHOLE, texts([*needs.whole]), keys)
        self._step(self._due, _DUE, number(self.clock))
        for worker_id, prefix in sorted(needs.requests):
            self._step(self._begun(worker_id, prefix), _BEGUN, word(worker_id), word(f"{prefix}-"))
        self._step_queue()
        if needs.new_rollouts:
            self._step(
                self._numbers,
                "SELECT nextval('rollout_numbers') FROM generate_series(1, $1::int8)",
                number(needs.new_rollouts),
            )
        if needs.resources:
            self._step(self._resources, _RESOURCES, texts([*needs.resources]))
        await self._go(wire, [Statement("BEGIN")])
        self._step_latest()
        self._step_spans()
        if self._steps:
            await self._go(wire, [])

    async def _go(self, wire: Wire, first: Sequence[Statement]) -> None:
        steps, self._steps = self._steps, []
        results = await wire.run([*first, *(statement for statement, _ in steps)])
        for (_, handler), result in zip(steps, results[len(first) :], strict=True):
            handler(rows(result))

    def _now(self, found: list[Row]) -> None:
        self.work.now = real(found[0][0])

    def _add(self, read: tuple[int, RolloutV2, int], whole: bool) -> RolloutEntry:
        no, rollout, seq = read
        entry = self._by_no.get(no)
        if entry is None:
            entry = self._by_no[no] = RolloutEntry(no, rollout, seq, whole=whole)
            self.work.rollouts[entry.rollout.rollout_id] = entry
        elif whole and not entry.whole:
            entry.rollout = rollout
            entry.whole = True
        return entry

    def _brief(self, found: list[Row]) -> None:
        for row in found:
            self._add(read_brief(row), False)

    def _whole(self, found: list[Row]) -> None:
        for row in found:
            entry = self._add(read_whole(row), True)
            key = entry.rollout.idempotency_key
            if key is not None:
                self.work.keys[key] = entry.rollout.rollout_id

    def _attempt(self, row: Row) -> None:
        entry = self._by_no[integer(row[0])]
        *columns, check_at, last_span_seq = row[:13]
        attempt = read_attempt(entry.rollout.rollout_id, columns)
        entry.attempts[attempt.attempt_id] = AttemptEntry(
            attempt, check_at=real(check_at), last_span_seq=integer(last_span_seq)
        )

    def _attempts(self, found: list[Row]) -> None:
        for row in found:
            self._attempt(row)

    def _due(self, found: list[Row]) -> None:
        self.due = [self._add(read_whole(row), True) for row in found]

    def _begun(self, worker_id: str, prefix: str) -> Handler:
        def handle(found: list[Row]) -> None:
            self.work.begun[worker_id, prefix] = [
                read_whole(row[:13])[1].with_attempt(read_attempt(string(row[1]), row[13:]))
                for row in found
                if lifecycle.is_of_request(string(row[15]), prefix)
            ]

        return handle

    def _step_queue(self) -> None:
        queue = self.needs.queue
        # What is found for a run is found for any run as well.
        total = sum(queue.values())
        for run_id, limit in queue.items():
            if run_id is None:
                self._step(self._queued(None), _QUEUED, number(total))
            else:
                self._step(
                    self._queued(run_id), _QUEUED_OF_RUN, number(limit + queue.get(None, 0)), word(run_id)
                )

    def _queued(self, run_id: str | None) -> Handler:
        def handle(found: list[Row]) -> None:
            self.work.queued[run_id] = [self._add(read_whole(row), True) for row in found]

        return handle

    def _numbers(self, found: list[Row]) -> None:
        self.work.numbers.extend(integer(row[0]) for row in found)

    def _resources(self, found: list[Row]) -> None:
        for id_, version, create_time in found:
            self.work.resources[string(id_)] = (integer(version), real(create_time))

    def _step_latest(self) -> None:
        """Attempts of rollouts that were found in the queue or due."""
        missing = [entry for entry in self._by_no.values() if entry.latest_seq and entry.latest is None]
        if missing:
            self._step(
                self._attempts,
                _LATEST,
                integers([entry.no for entry in missing]),
                integers([entry.latest_seq for entry in missing]),
            )

    def _step_spans(self) -> None:
        if not self.work.careful:
            return
        by_id: list[tuple[int, int, str]] = []
        by_seq: list[tuple[int, int, int]] = []
        for (rollout_id, attempt_id), (span_ids, sequence_ids) in self.needs.spans.items():
            entry = self.work.rollouts.get(rollout_id)
            attempt = entry.attempts.get(attempt_id) if entry is not None else None
            if entry is not None and attempt is not None:
                key = (entry.no, attempt.attempt.sequence_id)
                by_id += ((*key, span_id) for span_id in span_ids)
                by_seq += ((*key, sequence_id) for sequence_id in sequence_ids)
        self._step(
            self._spans,
            _SPANS,
            integers([no for no, _, _ in by_id]),
            integers([seq for _, seq, _ in by_id]),
            texts([span_id for _, _, span_id in by_id]),
            integers([no for no, _, _ in by_seq]),
            integers([seq for _, seq, _ in by_seq]),
            integers([sequence_id for _, _, sequence_id in by_seq]),
        )

    def _spans(self, found: list[Row]) -> None:
        for no, attempt_seq, span_id, seq in found:
            attempt = _by_seq(self._by_no[integer(no)].attempts.values(), integer(attempt_seq))
            attempt.span_ids.add(string(span_id))
            attempt.sequence_ids.add(integer(seq))


def _by_seq(attempts: Iterable[AttemptEntry], seq: int) -> AttemptEntry:
    return next(entry for entry in attempts if entry.attempt.sequence_id == seq)


def _ignore(found: list[Row]) -> None:
    """For statements whose results say nothing."""


async def load(wire: Wire, needs: Needs, clock: float | None, *, careful: bool) -> Loader:
    """Begin a transaction and read what a group needs.

    Raises:
        ServerError: If the server refuses a statement.
        ConnectionLostError: If the connection is gone.
    """
    loader = Loader(needs, clock, careful=careful)
    await loader.read(wire)
    return loader
