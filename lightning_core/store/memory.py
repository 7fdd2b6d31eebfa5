"""The store that keeps everything in this process's memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.store import lifecycle, table_queries, table_reports, vacuum
from lightning_core.store.base import (
    UNSET,
    EnqueueRequest,
    LightningStore,
    Maybe,
    StoreCapabilities,
    StoreStatistics,
)
from lightning_core.store.entries import (
    AttemptEntry,
    Record,
    RolloutEntry,
    conflict,
    new_id,
    new_rollout,
    refuse_conflicts,
)
from lightning_core.store.table_waiting import Waiter
from lightning_core.store.tables import Tables
from lightning_core.store.values import require_json
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Deletion,
    FailureReason,
    NamedResources,
    ResourcesUpdate,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    RolloutV2,
    Run,
    RunState,
    Span,
    TaskInput,
    Worker,
)
from lightning_core.types._conversion import convert_span
from lightning_core.types._model import copy_value
from lightning_core.types.tracing import SpanBatch

__all__ = ["InMemoryLightningStore", "Record"]


class InMemoryLightningStore(LightningStore):
    """Keeps everything in this process's memory, and forgets it with the process.

    Every operation holds one lock for a few microseconds and waits for nothing, so the store may be used from any
    number of threads and event loops. No operation costs more the more rollouts are stored.

    A subclass can make the records durable: override :meth:`journal` to write each changed record down, and give what
    was written to :meth:`restore` when the store is opened again. Unless its ``capabilities`` say ``python_values``,
    inputs and metadata are JSON values.

    Args:
        clock: Tells the time, in seconds since the epoch.
    """

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(python_values=True)

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._tables = Tables(clock, self.journal, lambda: self.location)
        self._lock = self._tables.lock

    def journal(self, record: Record) -> None:
        """Called for every record that an operation adds or changes, before the operation returns.

        Does nothing here. Calls never overlap. What it raises is raised by the operation, whose change stands in
        memory. The record must not be changed.
        """

    def restore(self, records: Iterable[Record]) -> None:
        """Load records that :meth:`journal` was given, in the same order, into an empty store.

        Of several records of one thing the last one counts.
        """
        with self._lock:
            self._tables.restore(records)

    # Putting work in

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        worker_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout and its first attempt at once, without passing the queue; see the contract."""
        self._require_keepable(input=input, metadata=metadata)
        request = EnqueueRequest(
            input=input,
            mode=mode,
            resources_id=resources_id,
            config=config or RolloutConfig(),
            metadata=metadata or {},
            run_id=run_id,
            idempotency_key=idempotency_key,
        )
        with self._lock:
            now = self._tables.enter()
            known = self._tables.keys.get(idempotency_key) if idempotency_key is not None else None
            if known is None:
                entry = self._tables.insert(new_rollout(request, now).replace(status="preparing"))
            else:
                entry = self._tables.rollouts[known]
                if entry.latest is not None:
                    return entry.rollout.with_attempt(entry.latest.attempt)
            return self._tables.begin(entry, worker_id, now)

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue; see the contract."""
        stored: list[RolloutV2] = []
        for request in requests:
            self._require_keepable(input=request.input, metadata=request.metadata)
        with self._lock:
            now = self._tables.enter()
            # Copying first: an input that cannot be copied must not leave half of the requests enqueued.
            prepared = [new_rollout(request, now) for request in requests]
            for new in prepared:
                known = (
                    self._tables.keys.get(new.idempotency_key) if new.idempotency_key is not None else None
                )
                if known is None:
                    self._tables.insert(new)
                    self.journal(new)
                stored.append((new if known is None else self._tables.rollouts[known].rollout).detached())
            self._tables.waiting.wake_workers(len(stored))
        return stored

    # Taking work out

    async def dequeue_rollouts(
        self,
        limit: int = 1,
        worker_id: str | None = None,
        wait: float = 0.0,
        *,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> list[AttemptedRollout]:
        """Take up to ``limit`` queued rollouts, oldest first; see the contract."""
        lifecycle.check_request(worker_id, request_id)
        prefix = lifecycle.request_prefix(request_id)
        give_up = time.monotonic() + wait
        while True:
            with self._lock:
                now = self._tables.enter()
                taken = self._tables.take(limit, worker_id, run_id, prefix, now)
                left = give_up - time.monotonic()
                if taken or limit <= 0 or left <= 0:
                    return taken
                waiter = Waiter()
                self._tables.waiting.wait_for_work(waiter, run_id, (worker_id, prefix))
                seconds = self._tables.until_due(left, now)
            woken = False
            try:
                woken = await waiter.wait(seconds)
            finally:
                with self._lock:
                    registered = self._tables.waiting.leave_work(waiter)
                    if not woken and not registered:
                        # It was woken, and was cancelled before it could take the work: somebody else must.
                        self._tables.waiting.wake_workers(1)

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, request_id: str | None = None
    ) -> AttemptedRollout:
        """Begin a new attempt; see the contract."""
        prefix = lifecycle.request_prefix(request_id)
        with self._lock:
            now = self._tables.enter()
            entry = self._tables.entry(rollout_id)
            begun = entry.begun(prefix) if prefix is not None else None
            if begun is not None:
                return entry.rollout.with_attempt(begun.attempt)
            return self._tables.begin(entry, worker_id, now, prefix or "at")

    # Spans

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, all or none; see the contract."""
        with self._lock:
            now = self._tables.enter()
            entries = [self._tables.attempt(span.rollout_id, span.attempt_id) for span in spans]
            if any(span.sequence_id for span in spans):
                refuse_conflicts(spans, [attempt for _, attempt in entries])
            new = 0
            own = isinstance(spans, SpanBatch)
            signs: dict[str, tuple[RolloutEntry, AttemptEntry]] = {}
            for span, (entry, attempt) in zip(spans, entries, strict=True):
                if span.span_id not in attempt.spans:
                    self._tables.add(attempt, span if own else span.detached())
                    new += 1
                signs[span.attempt_id] = (entry, attempt)
            for entry, attempt in signs.values():
                self._tables.sign_of_life(entry, attempt, now)
            return new

    async def add_span(self, span: Span) -> Span:
        """Store one span and return it as stored; see the contract."""
        return self._add_one(span.detached())

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span:
        """Store a span of the OpenTelemetry SDK and return it as stored; see the contract."""
        return self._add_one(convert_span(readable_span, rollout_id, attempt_id, sequence_id or 0))

    def _add_one(self, span: Span) -> Span:
        with self._lock:
            now = self._tables.enter()
            entry, attempt = self._tables.attempt(span.rollout_id, span.attempt_id)
            stored = attempt.spans.get(span.span_id)
            if stored is None:
                if span.sequence_id in attempt.sequence_ids:
                    raise conflict(span)
                stored = self._tables.add(attempt, span)
            self._tables.sign_of_life(entry, attempt, now)
        # A stored span is never changed, so it can be copied outside the lock.
        return stored.detached()

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id."""
        with self._lock:
            self._tables.enter()
            _, attempt = self._tables.attempt(rollout_id, attempt_id)
            attempt.last_sequence_id += 1
            return attempt.last_sequence_id

    # Reading

    async def query_rollouts(
        self,
        *,
        rollout_ids: Sequence[str] | None = None,
        status: Sequence[RolloutStatus] | None = None,
        mode: RolloutMode | None = None,
        run_id: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[RolloutV2]:
        """Return the rollouts that pass every given filter, in the order in which they were created."""
        with self._lock:
            self._tables.enter()
            return table_queries.query_rollouts(
                self._tables,
                rollout_ids=rollout_ids,
                status=status,
                mode=mode,
                run_id=run_id,
                descending=descending,
                limit=limit,
                offset=offset,
            )

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        status: Sequence[AttemptStatus] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Attempt]:
        """Return a rollout's attempts in order; an unknown rollout has none."""
        with self._lock:
            self._tables.enter()
            return table_queries.query_attempts(
                self._tables, rollout_id, status=status, limit=limit, offset=offset
            )

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        name: str | None = None,
        span_id: str | None = None,
        trace_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Span]:
        """Return spans ordered by attempt, then ``sequence_id``; see the contract."""
        with self._lock:
            self._tables.enter()
            return table_queries.query_spans(
                self._tables,
                rollout_id,
                attempt_id,
                name=name,
                span_id=span_id,
                trace_id=trace_id,
                limit=limit,
                offset=offset,
            )

    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""
        with self._lock:
            self._tables.enter()
            entry = self._tables.rollouts.get(rollout_id)
            return entry.rollout.detached() if entry is not None else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""
        with self._lock:
            self._tables.enter()
            entry = self._tables.rollouts.get(rollout_id)
            latest = entry.latest if entry is not None else None
            return latest.attempt.detached() if latest is not None else None

    # Reporting

    async def update_rollout(
        self,
        rollout_id: str,
        input: Maybe[TaskInput] = UNSET,
        mode: Maybe[RolloutMode | None] = UNSET,
        resources_id: Maybe[str | None] = UNSET,
        status: Maybe[RolloutStatus] = UNSET,
        config: Maybe[RolloutConfig] = UNSET,
        metadata: Maybe[dict[str, Any]] = UNSET,
    ) -> RolloutV2:
        """Change fields of a rollout; see the contract."""
        self._require_keepable(input=input, metadata=metadata)
        changes = {
            name: copy_value(value)
            for name, value in (
                ("input", input),
                ("mode", mode),
                ("resources_id", resources_id),
                ("config", config),
            )
            if value is not UNSET
        }
        merged = copy_value(metadata) if metadata is not UNSET else None
        with self._lock:
            now = self._tables.enter()
            return table_reports.update_rollout(self._tables, now, rollout_id, changes, status, merged)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: Maybe[AttemptStatus] = UNSET,
        worker_id: Maybe[str | None] = UNSET,
        last_heartbeat_time: Maybe[float] = UNSET,
        metadata: Maybe[dict[str, Any]] = UNSET,
        *,
        reason: FailureReason | None = None,
    ) -> Attempt:
        """Report on an attempt; see the contract."""
        self._require_keepable(metadata=metadata)
        merged = copy_value(metadata) if metadata is not UNSET else None
        with self._lock:
            now = self._tables.enter()
            return table_reports.update_attempt(
                self._tables,
                now,
                rollout_id,
                attempt_id,
                status,
                worker_id,
                last_heartbeat_time,
                merged,
                reason,
            )

    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker; see the contract."""
        with self._lock:
            now = self._tables.enter()
            return table_reports.renew_leases(self._tables, now, worker_id, attempts)

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""
        return await self.update_resources(new_id("rs"), resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources as the next version of ``resources_id``, and make them the latest."""
        # Validated, so that mappings become resources and bad ones are refused here.
        update = ResourcesUpdate(resources_id=resources_id, resources=resources).model_copy(deep=True)
        with self._lock:
            now = self._tables.enter()
            before = self._tables.resources.get(resources_id)
            update.create_time = before.create_time if before is not None else now
            update.update_time = now
            update.version = before.version + 1 if before is not None else 1
            self._tables.resources[resources_id] = update
            self._tables.latest_resources = resources_id
            self.journal(update)
            return update.model_copy(deep=True)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""
        with self._lock:
            self._tables.enter()
            update = self._tables.resources.get(resources_id)
        # An update is replaced, never changed, so it can be copied outside the lock.
        return update.model_copy(deep=True) if update is not None else None

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        latest = self._tables.latest_resources
        return await self.get_resources_by_id(latest) if latest is not None else None

    # Waiting

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, quorum: float = 1.0
    ) -> list[RolloutV2]:
        """Wait until these rollouts are final, or ``timeout`` seconds have passed; see the contract."""
        wanted = dict.fromkeys(rollout_ids)
        allowed = lifecycle.allowed_pending(len(wanted), quorum)
        give_up = None if timeout is None else time.monotonic() + timeout
        waiter: Waiter | None = None
        try:
            while True:
                with self._lock:
                    now = self._tables.enter()
                    if waiter is None:
                        waiter = Waiter(
                            {name for name in wanted if not self._tables.entry(name).rollout.is_final},
                            allowed,
                        )
                        self._tables.waiting.wait_for_ends(waiter)
                    left = None if give_up is None else give_up - time.monotonic()
                    if waiter.done or (left is not None and left <= 0):
                        found = (self._tables.rollouts.get(name) for name in wanted)
                        return [
                            entry.rollout.detached()
                            for entry in found
                            if entry is not None and entry.rollout.is_final
                        ]
                    seconds = self._tables.until_due(left, now)
                await waiter.wait(seconds)
        finally:
            if waiter is not None:
                with self._lock:
                    self._tables.waiting.leave_ends(waiter)

    # Workers, runs, the store itself

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""
        self._require_keepable(heartbeat_stats=heartbeat_stats)
        with self._lock:
            now = self._tables.enter()
            self._tables.see_worker(worker_id, now, heartbeat_stats)
            return self._tables.describe(self._tables.workers[worker_id], now)

    async def query_workers(self) -> list[Worker]:
        """Return the known workers; see the contract."""
        with self._lock:
            now = self._tables.enter()
            return [self._tables.describe(worker, now) for worker in self._tables.workers.values()]

    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""
        with self._lock:
            self._tables.enter()
            stored = run.model_copy(deep=True)
            self._tables.runs[run.run_id] = stored
            self.journal(stored)

    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""
        with self._lock:
            self._tables.enter()
            runs = [run for run in self._tables.runs.values() if run_id is None or run.run_id == run_id]
            return [run.model_copy(deep=True) for run in runs]

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store the state of a run's algorithm; see the contract."""
        self._require_keepable(state=state)
        record = RunState(run_id=run_id, state=copy_value(state))
        with self._lock:
            self._tables.enter()
            self._tables.run_states[run_id] = record
            self.journal(record)

    async def load_run_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last of this run's algorithm, or ``None``."""
        with self._lock:
            self._tables.enter()
            record = self._tables.run_states.get(run_id)
        # A record is replaced, never changed, so it can be copied outside the lock.
        return copy_value(record.state) if record is not None else None

    async def vacuum(self, *, before: float) -> StoreStatistics:
        """Delete what is old; see the contract."""
        deleted = StoreStatistics()
        with self._lock:
            self._tables.enter()
            final = vacuum.final_rollouts(self._tables)
        for start in range(0, len(final), _VACUUM_BATCH):
            with self._lock:
                self._tables.enter()
                batch = final[start : start + _VACUUM_BATCH]
                self._delete(vacuum.ended_before(self._tables, batch, before), deleted)
            # Others have their turn between the batches.
            await asyncio.sleep(0)
        with self._lock:
            self._tables.enter()
            self._delete(vacuum.old_rest(self._tables, before), deleted)
        return deleted

    def _delete(self, deletion: Deletion, deleted: StoreStatistics) -> None:
        vacuum.delete(self._tables, deletion, deleted)
        if any(vars(deletion).values()):
            self.journal(deletion)

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""
        with self._lock:
            self._tables.enter()
            return table_queries.statistics(self._tables, run_id)

    async def close(self) -> None:
        """Refuse further calls and wake everybody who waits."""
        with self._lock:
            self._tables.closed = True
            self._tables.waiting.wake_all()

    def _require_keepable(self, **values: Any) -> None:
        """Refuse what a journal could not write, before anything is changed."""
        if not self.capabilities.python_values:
            for place, value in values.items():
                if value is not UNSET:
                    require_json(value, place)


_VACUUM_BATCH = 500
