"""The store that keeps everything in this process's memory."""

from __future__ import annotations

import asyncio
import heapq
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice
from typing import Any, ClassVar, Literal, TypeAlias

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import (
    FinalRolloutError,
    SpanConflictError,
    StoreClosedError,
    UnknownAttemptError,
    UnknownRolloutError,
)
from lightning_core.store import lifecycle
from lightning_core.store.base import (
    UNSET,
    EnqueueRequest,
    LightningStore,
    Maybe,
    StoreCapabilities,
    StoreStatistics,
)
from lightning_core.store.values import require_json
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    NamedResources,
    ResourcesUpdate,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    RolloutV2,
    Run,
    Span,
    TaskInput,
    Worker,
)
from lightning_core.types._conversion import convert_span
from lightning_core.types._model import copy_value
from lightning_core.types.tracing import SpanBatch

__all__ = ["InMemoryLightningStore", "Record"]

Record: TypeAlias = RolloutV2 | Attempt | Span | ResourcesUpdate | Worker | Run
"""Everything that a store keeps."""


class _AttemptEntry:
    """An attempt and its spans."""

    __slots__ = ("attempt", "last_sequence_id", "sequence_ids", "sorted", "spans")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.spans: dict[str, Span] = {}
        self.sequence_ids: set[int] = set()
        self.last_sequence_id = 0
        self.sorted = True

    def ordered(self) -> Iterable[Span]:
        if not self.sorted:
            self.spans = dict(sorted(self.spans.items(), key=lambda item: item[1].sequence_id))
            self.sorted = True
        return self.spans.values()


class _RolloutEntry:
    """A rollout and its attempts, oldest first."""

    __slots__ = ("attempts", "number", "rollout")

    def __init__(self, rollout: RolloutV2, number: int) -> None:
        self.rollout = rollout
        self.number = number
        self.attempts: dict[str, _AttemptEntry] = {}

    @property
    def latest(self) -> _AttemptEntry | None:
        return next(reversed(self.attempts.values()), None)


class _Waiter:
    """A coroutine, on any event loop, that waits for something in the store."""

    __slots__ = ("_future", "_loop", "pending")

    def __init__(self, pending: set[str] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self.pending: set[str] = pending if pending is not None else set()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish)
        except RuntimeError:
            # Its loop was closed while it waited, so nobody is left to wake.
            return

    def _finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """Wait to be woken, at most so long; whether it was."""
        done, _ = await asyncio.wait([self._future], timeout=seconds)
        return bool(done)


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
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._rollouts: dict[str, _RolloutEntry] = {}
        self._by_status: dict[RolloutStatus, dict[str, None]] = {}
        self._by_run: dict[str, dict[str, None]] = {}
        self._keys: dict[str, str] = {}
        # The queue, in order: of everything, and of each run.
        self._queue: dict[str, None] = {}
        self._run_queues: dict[str, dict[str, None]] = {}
        # (due, tie-breaker, rollout id, attempt id); a renewed lease is noticed when its old entry comes up.
        self._due: list[tuple[float, int, str, str]] = []
        self._ties = count()
        self._resources: dict[str, ResourcesUpdate] = {}
        self._latest_resources: str | None = None
        self._workers: dict[str, Worker] = {}
        self._worker_attempts: dict[str, set[tuple[str, str]]] = {}
        self._runs: dict[str, Run] = {}
        self._attempt_count = 0
        self._span_count = 0
        self._work_waiters: dict[_Waiter, str | None] = {}
        self._end_waiters: dict[str, list[_Waiter]] = {}

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
            for record in records:
                if isinstance(record, RolloutV2):
                    entry = self._rollouts.get(record.rollout_id)
                    if entry is None:
                        self._insert(record)
                    else:
                        self._set_rollout(entry, record)
                elif isinstance(record, Attempt):
                    self._set_attempt(self._entry(record.rollout_id), record)
                elif isinstance(record, Span):
                    self._put_span(self._attempt(record.rollout_id, record.attempt_id)[1], record)
                elif isinstance(record, ResourcesUpdate):
                    self._resources[record.resources_id] = record
                    self._latest_resources = record.resources_id
                elif isinstance(record, Worker):
                    self._workers[record.worker_id] = record
                else:
                    self._runs[record.run_id] = record

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
    ) -> AttemptedRollout:
        """Create a rollout and its first attempt at once, without passing the queue."""
        self._require_keepable(input=input, metadata=metadata)
        with self._lock:
            now = self._enter()
            rollout = _new_rollout(
                EnqueueRequest(
                    input=input,
                    mode=mode,
                    resources_id=resources_id,
                    config=config or RolloutConfig(),
                    metadata=metadata or {},
                    run_id=run_id,
                ),
                now,
            )
            entry = self._insert(rollout.replace(status="preparing"))
            return self._begin(entry, worker_id, now)

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue; see the contract."""
        stored: list[RolloutV2] = []
        for request in requests:
            self._require_keepable(input=request.input, metadata=request.metadata)
        with self._lock:
            now = self._enter()
            # Copying first: an input that cannot be copied must not leave half of the requests enqueued.
            prepared = [_new_rollout(request, now) for request in requests]
            for new in prepared:
                known = self._keys.get(new.idempotency_key) if new.idempotency_key is not None else None
                if known is None:
                    self._insert(new)
                    self.journal(new)
                stored.append((new if known is None else self._rollouts[known].rollout).detached())
            self._wake_workers(len(stored))
        return stored

    # Taking work out

    async def dequeue_rollouts(
        self, limit: int = 1, worker_id: str | None = None, wait: float = 0.0, *, run_id: str | None = None
    ) -> list[AttemptedRollout]:
        """Take up to ``limit`` queued rollouts, oldest first; see the contract."""
        give_up = time.monotonic() + wait
        while True:
            with self._lock:
                now = self._enter()
                queue = self._queue if run_id is None else self._run_queues.get(run_id, {})
                taken = [
                    self._begin(self._rollouts[rollout_id], worker_id, now)
                    for rollout_id in list(islice(queue, max(limit, 0)))
                ]
                left = give_up - time.monotonic()
                if taken or limit <= 0 or left <= 0:
                    return taken
                waiter = _Waiter()
                self._work_waiters[waiter] = run_id
                seconds = self._until_due(left, now)
            woken = False
            try:
                woken = await waiter.wait(seconds)
            finally:
                with self._lock:
                    registered = self._work_waiters.pop(waiter, waiter) is not waiter
                    if not woken and not registered:
                        # It was woken, and was cancelled before it could take the work: somebody else must.
                        self._wake_workers(1)

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Begin a new attempt; see the contract."""
        with self._lock:
            now = self._enter()
            return self._begin(self._entry(rollout_id), worker_id, now)

    # Spans

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, all or none; see the contract."""
        with self._lock:
            now = self._enter()
            entries = [self._attempt(span.rollout_id, span.attempt_id) for span in spans]
            if any(span.sequence_id for span in spans):
                _refuse_conflicts(spans, [attempt for _, attempt in entries])
            new = 0
            own = isinstance(spans, SpanBatch)
            signs: dict[str, tuple[_RolloutEntry, _AttemptEntry]] = {}
            for span, (entry, attempt) in zip(spans, entries, strict=True):
                if span.span_id not in attempt.spans:
                    self._add(attempt, span if own else span.detached())
                    new += 1
                signs[span.attempt_id] = (entry, attempt)
            for entry, attempt in signs.values():
                self._sign_of_life(entry, attempt, now)
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
            now = self._enter()
            entry, attempt = self._attempt(span.rollout_id, span.attempt_id)
            stored = attempt.spans.get(span.span_id)
            if stored is None:
                if span.sequence_id in attempt.sequence_ids:
                    raise _conflict(span)
                stored = self._add(attempt, span)
            self._sign_of_life(entry, attempt, now)
        # A stored span is never changed, so it can be copied outside the lock.
        return stored.detached()

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id."""
        with self._lock:
            self._enter()
            _, attempt = self._attempt(rollout_id, attempt_id)
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
            self._enter()
            statuses = set(status) if status is not None else None
            names: dict[str, None] | dict[str, _RolloutEntry] | list[str]
            if rollout_ids is not None:
                names = self._in_order({name for name in rollout_ids if name in self._rollouts})
            elif run_id is not None:
                names = self._by_run.get(run_id, {})
            elif statuses is not None:
                names = self._in_order(
                    name for wanted in statuses for name in self._by_status.get(wanted, ())
                )
            else:
                names = self._rollouts
            found = (
                rollout
                for rollout in (
                    self._rollouts[name].rollout for name in (reversed(names) if descending else names)
                )
                if (statuses is None or rollout.status in statuses)
                and (mode is None or rollout.mode == mode)
                and (run_id is None or rollout.run_id == run_id)
            )
            return [rollout.detached() for rollout in _page(found, limit, offset)]

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
            self._enter()
            entry = self._rollouts.get(rollout_id)
            attempts = entry.attempts.values() if entry is not None else ()
            found = (a.attempt for a in attempts if status is None or a.attempt.status in status)
            return [attempt.detached() for attempt in _page(found, limit, offset)]

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
            self._enter()
            entry = self._rollouts.get(rollout_id)
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

    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""
        with self._lock:
            self._enter()
            entry = self._rollouts.get(rollout_id)
            return entry.rollout.detached() if entry is not None else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""
        with self._lock:
            self._enter()
            entry = self._rollouts.get(rollout_id)
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
        with self._lock:
            now = self._enter()
            entry = self._entry(rollout_id)
            rollout = entry.rollout
            if changes and rollout.is_final:
                raise FinalRolloutError(
                    f"rollout {rollout_id!r} has ended ({rollout.status}): only its metadata can still change, "
                    f"not {', '.join(changes)}"
                )
            if metadata is not UNSET:
                changes["metadata"] = rollout.metadata | copy_value(metadata)
            rollout = rollout.replace(**changes)
            latest = entry.latest
            if status is not UNSET:
                before = latest.attempt if latest is not None else None
                rollout, attempt = lifecycle.report_rollout(rollout, before, status, now)
                if attempt is not None and attempt is not before:
                    self._set_attempt(entry, attempt)
                    self.journal(attempt)
            self._set_rollout(entry, rollout)
            self.journal(rollout)
            if config is not UNSET and latest is not None and lifecycle.is_live(latest.attempt):
                self._watch(rollout, latest.attempt)
            return rollout.detached()

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: Maybe[AttemptStatus] = UNSET,
        worker_id: Maybe[str | None] = UNSET,
        last_heartbeat_time: Maybe[float] = UNSET,
        metadata: Maybe[dict[str, Any]] = UNSET,
    ) -> Attempt:
        """Report on an attempt; see the contract."""
        self._require_keepable(metadata=metadata)
        with self._lock:
            now = self._enter()
            entry, attempt_entry = self._attempt(rollout_id, attempt_id)
            before, attempt = entry.rollout, attempt_entry.attempt
            rollout = before
            is_latest = attempt_entry is entry.latest
            if worker_id is not UNSET:
                attempt = attempt.replace(worker_id=worker_id)
            if metadata is not UNSET:
                attempt = attempt.replace(metadata=attempt.metadata | copy_value(metadata))
            if last_heartbeat_time is not UNSET:
                rollout, attempt = lifecycle.sign_of_life(
                    rollout, attempt, is_latest=is_latest, now=last_heartbeat_time
                )
            if status is not UNSET:
                rollout, attempt = lifecycle.report_attempt(
                    rollout, attempt, status, is_latest=is_latest, now=now
                )
            self._apply(entry, attempt_entry, before, lifecycle.Change(rollout, attempt))
            return attempt.detached()

    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker; see the contract."""
        lost: list[str] = []
        with self._lock:
            now = self._enter()
            self._see_worker(worker_id, now, None)
            for rollout_id, attempt_id in attempts:
                try:
                    entry, attempt = self._attempt(rollout_id, attempt_id)
                except (UnknownRolloutError, UnknownAttemptError):
                    lost.append(attempt_id)
                    continue
                self._sign_of_life(entry, attempt, now)
                if not lifecycle.is_live(attempt.attempt):
                    lost.append(attempt_id)
        return lost

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""
        return await self.update_resources(_new_id("rs"), resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources as the next version of ``resources_id``, and make them the latest."""
        # Validated, so that mappings become resources and bad ones are refused here.
        update = ResourcesUpdate(resources_id=resources_id, resources=resources).model_copy(deep=True)
        with self._lock:
            now = self._enter()
            before = self._resources.get(resources_id)
            update.create_time = before.create_time if before is not None else now
            update.update_time = now
            update.version = before.version + 1 if before is not None else 1
            self._resources[resources_id] = update
            self._latest_resources = resources_id
            self.journal(update)
            return update.model_copy(deep=True)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""
        with self._lock:
            self._enter()
            update = self._resources.get(resources_id)
        # An update is replaced, never changed, so it can be copied outside the lock.
        return update.model_copy(deep=True) if update is not None else None

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        latest = self._latest_resources
        return await self.get_resources_by_id(latest) if latest is not None else None

    # Waiting

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None
    ) -> list[RolloutV2]:
        """Wait until all of these rollouts are final, or ``timeout`` seconds have passed; see the contract."""
        give_up = None if timeout is None else time.monotonic() + timeout
        waiter: _Waiter | None = None
        try:
            while True:
                with self._lock:
                    now = self._enter()
                    if waiter is None:
                        waiter = _Waiter(
                            {name for name in rollout_ids if not self._entry(name).rollout.is_final}
                        )
                        for name in waiter.pending:
                            self._end_waiters.setdefault(name, []).append(waiter)
                    left = None if give_up is None else give_up - time.monotonic()
                    if not waiter.pending or (left is not None and left <= 0):
                        found = (self._rollouts[name].rollout for name in dict.fromkeys(rollout_ids))
                        return [rollout.detached() for rollout in found if rollout.is_final]
                    seconds = self._until_due(left, now)
                await waiter.wait(seconds)
        finally:
            if waiter is not None:
                with self._lock:
                    self._stop_waiting(waiter)

    # Workers, runs, the store itself

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""
        self._require_keepable(heartbeat_stats=heartbeat_stats)
        with self._lock:
            now = self._enter()
            self._see_worker(worker_id, now, heartbeat_stats)
            return self._describe(self._workers[worker_id], now)

    async def query_workers(self) -> list[Worker]:
        """Return the known workers; see the contract."""
        with self._lock:
            now = self._enter()
            return [self._describe(worker, now) for worker in self._workers.values()]

    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""
        with self._lock:
            self._enter()
            stored = run.model_copy(deep=True)
            self._runs[run.run_id] = stored
            self.journal(stored)

    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""
        with self._lock:
            self._enter()
            runs = [run for run in self._runs.values() if run_id is None or run.run_id == run_id]
            return [run.model_copy(deep=True) for run in runs]

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""
        with self._lock:
            self._enter()
            if run_id is None:
                counts = {status: len(names) for status, names in self._by_status.items() if names}
            else:
                counts: dict[RolloutStatus, int] = {}
                for name in self._by_run.get(run_id, {}):
                    status = self._rollouts[name].rollout.status
                    counts[status] = counts.get(status, 0) + 1
            return StoreStatistics(
                rollouts=counts,
                attempts=self._attempt_count,
                spans=self._span_count,
                resources=len(self._resources),
                workers=len(self._workers),
                runs=len(self._runs),
            )

    async def close(self) -> None:
        """Refuse further calls and wake everybody who waits."""
        with self._lock:
            self._closed = True
            waiters = {*self._work_waiters, *(w for group in self._end_waiters.values() for w in group)}
        for waiter in waiters:
            waiter.wake()

    def _require_keepable(self, **values: Any) -> None:
        """Refuse what a journal could not write, before anything is changed."""
        if not self.capabilities.python_values:
            for place, value in values.items():
                if value is not UNSET:
                    require_json(value, place)

    # The inside. Everything below is called with the lock held.

    def _enter(self) -> float:
        """Begin an operation: refuse it if the store is closed, and expire what is due. Returns the time."""
        if self._closed:
            raise StoreClosedError("the store is closed; open a new one")
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            _, _, rollout_id, attempt_id = heapq.heappop(self._due)
            entry = self._rollouts[rollout_id]
            attempt_entry = entry.attempts[attempt_id]
            if not lifecycle.is_live(attempt_entry.attempt):
                continue
            change = lifecycle.expire(entry.rollout, attempt_entry.attempt, now)
            if change is None:
                self._watch(entry.rollout, attempt_entry.attempt)
            else:
                self._apply(entry, attempt_entry, entry.rollout, change)
        return now

    def _until_due(self, left: float | None, now: float) -> float | None:
        """How long one may wait, in seconds, before somebody must look for expired attempts."""
        if not self._due:
            return left
        due = max(self._due[0][0] - now, 0.001)
        return due if left is None else min(left, due)

    def _watch(self, rollout: RolloutV2, attempt: Attempt) -> None:
        due, _ = lifecycle.deadline(rollout.config, attempt)
        heapq.heappush(self._due, (due, next(self._ties), rollout.rollout_id, attempt.attempt_id))

    def _entry(self, rollout_id: str) -> _RolloutEntry:
        entry = self._rollouts.get(rollout_id)
        if entry is None:
            raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store ({self.location})")
        return entry

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Return ids of rollouts in the order of creation."""
        return sorted(names, key=lambda name: self._rollouts[name].number)

    def _attempt(self, rollout_id: str, attempt_id: str) -> tuple[_RolloutEntry, _AttemptEntry]:
        entry = self._entry(rollout_id)
        attempt = entry.latest if attempt_id == "latest" else entry.attempts.get(attempt_id)
        if attempt is None:
            known = ", ".join(entry.attempts) or "none"
            raise UnknownAttemptError(
                f"rollout {rollout_id!r} has no attempt {attempt_id!r}; it has: {known}"
            )
        return entry, attempt

    def _insert(self, rollout: RolloutV2) -> _RolloutEntry:
        entry = self._rollouts[rollout.rollout_id] = _RolloutEntry(rollout, len(self._rollouts))
        self._by_status.setdefault(rollout.status, {})[rollout.rollout_id] = None
        if rollout.run_id is not None:
            self._by_run.setdefault(rollout.run_id, {})[rollout.rollout_id] = None
        if rollout.idempotency_key is not None:
            self._keys[rollout.idempotency_key] = rollout.rollout_id
        if lifecycle.is_queued(rollout):
            self._push(rollout)
        return entry

    def _push(self, rollout: RolloutV2) -> None:
        self._queue[rollout.rollout_id] = None
        if rollout.run_id is not None:
            self._run_queues.setdefault(rollout.run_id, {})[rollout.rollout_id] = None

    def _unqueue(self, rollout: RolloutV2) -> None:
        self._queue.pop(rollout.rollout_id, None)
        if rollout.run_id is not None:
            queue = self._run_queues.get(rollout.run_id, {})
            queue.pop(rollout.rollout_id, None)
            if not queue:
                self._run_queues.pop(rollout.run_id, None)

    def _begin(self, entry: _RolloutEntry, worker_id: str | None, now: float) -> AttemptedRollout:
        latest = entry.latest
        change, superseded = lifecycle.begin_attempt(
            entry.rollout, latest.attempt if latest is not None else None, _new_id("at"), worker_id, now
        )
        if superseded is not None:
            self._set_attempt(entry, superseded)
            self.journal(superseded)
        self._set_rollout(entry, change.rollout)
        self._set_attempt(entry, change.attempt)
        self.journal(change.rollout)
        self.journal(change.attempt)
        if worker_id is not None:
            self._see_worker(worker_id, now, None)
        return change.rollout.with_attempt(change.attempt)

    def _sign_of_life(self, entry: _RolloutEntry, attempt: _AttemptEntry, now: float) -> None:
        change = lifecycle.sign_of_life(
            entry.rollout, attempt.attempt, is_latest=attempt is entry.latest, now=now
        )
        self._apply(entry, attempt, entry.rollout, change)

    def _apply(
        self, entry: _RolloutEntry, attempt: _AttemptEntry, before: RolloutV2, change: lifecycle.Change
    ) -> None:
        if change.attempt is not attempt.attempt:
            self._set_attempt(entry, change.attempt)
            self.journal(change.attempt)
        if change.rollout is not before:
            self._set_rollout(entry, change.rollout)
            self.journal(change.rollout)

    def _set_rollout(self, entry: _RolloutEntry, rollout: RolloutV2) -> None:
        """Replace a rollout, and keep queue, index and waiters in step."""
        before, entry.rollout = entry.rollout, rollout
        if rollout.status == before.status:
            return
        name = rollout.rollout_id
        del self._by_status[before.status][name]
        self._by_status.setdefault(rollout.status, {})[name] = None
        if lifecycle.is_queued(rollout):
            # Also when it was queued before: a rollout that is sent back goes to the end.
            self._unqueue(rollout)
            self._push(rollout)
            self._wake_workers(1)
        elif lifecycle.is_queued(before):
            self._unqueue(rollout)
        if rollout.is_final:
            for waiter in self._end_waiters.pop(name, ()):
                waiter.pending.discard(name)
                if not waiter.pending:
                    waiter.wake()

    def _set_attempt(self, entry: _RolloutEntry, attempt: Attempt) -> None:
        """Replace an attempt or add it, and keep count, expiry and its worker's load in step."""
        live = lifecycle.is_live(attempt)
        known = entry.attempts.get(attempt.attempt_id)
        if known is None:
            entry.attempts[attempt.attempt_id] = _AttemptEntry(attempt)
            self._attempt_count += 1
            before = None
        else:
            before = known.attempt
            known.attempt = attempt
        if live and (before is None or not lifecycle.is_live(before)):
            self._watch(entry.rollout, attempt)
        key = (attempt.rollout_id, attempt.attempt_id)
        if (
            before is not None
            and before.worker_id is not None
            and (before.worker_id != attempt.worker_id or not live)
        ):
            self._worker_attempts.get(before.worker_id, set()).discard(key)
        if live and attempt.worker_id is not None:
            self._worker_attempts.setdefault(attempt.worker_id, set()).add(key)

    def _add(self, attempt: _AttemptEntry, span: Span) -> Span:
        """Add a new span, which the store owns, drawing its sequence id if it has none."""
        if not span.sequence_id:
            vars(span)["sequence_id"] = attempt.last_sequence_id + 1
        self._put_span(attempt, span)
        self.journal(span)
        return span

    def _put_span(self, attempt: _AttemptEntry, span: Span) -> None:
        if span.span_id not in attempt.spans:
            self._span_count += 1
        attempt.spans[span.span_id] = span
        attempt.sequence_ids.add(span.sequence_id)
        if span.sequence_id < attempt.last_sequence_id:
            attempt.sorted = False
        attempt.last_sequence_id = max(attempt.last_sequence_id, span.sequence_id)

    def _see_worker(self, worker_id: str, now: float, stats: dict[str, Any] | None) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = Worker(worker_id=worker_id)
        changes: dict[str, Any] = {"last_heartbeat_time": now}
        if stats is not None:
            changes["heartbeat_stats"] = copy_value(stats)
        self._workers[worker_id] = worker = worker.replace(**changes)
        self.journal(worker)

    def _describe(self, worker: Worker, now: float) -> Worker:
        attempts = self._worker_attempts.get(worker.worker_id)
        rollout_id, attempt_id = next(iter(attempts)) if attempts else (None, None)
        seen = worker.last_heartbeat_time
        silent = seen is None or now - seen > lifecycle.WORKER_SILENCE_SECONDS
        return worker.replace(
            status="unknown" if silent else "busy" if attempts else "idle",
            current_rollout_id=rollout_id,
            current_attempt_id=attempt_id,
            heartbeat_stats=copy_value(worker.heartbeat_stats),
        )

    def _wake_workers(self, number: int) -> None:
        """Wake as many waiting workers as there is new work; those of a run wake only for their run."""
        for waiter, run_id in list(self._work_waiters.items()):
            if number <= 0:
                return
            if self._queue if run_id is None else run_id in self._run_queues:
                del self._work_waiters[waiter]
                waiter.wake()
                number -= 1

    def _stop_waiting(self, waiter: _Waiter) -> None:
        for name in waiter.pending:
            waiters = self._end_waiters.get(name)
            if waiters is not None:
                waiters.remove(waiter)
                if not waiters:
                    del self._end_waiters[name]


def _new_id(prefix: str) -> str:
    return f"{prefix}-{os.urandom(8).hex()}"


def _conflict(span: Span) -> SpanConflictError:
    return SpanConflictError(
        f"span {span.span_id!r} claims sequence id {span.sequence_id} of attempt {span.attempt_id!r}, "
        "which another span has; leave it at 0 to have one drawn"
    )


def _new_rollout(request: EnqueueRequest, now: float) -> RolloutV2:
    return RolloutV2.trusted(
        {
            "rollout_id": _new_id("ro"),
            "input": copy_value(request.input),
            "start_time": now,
            "end_time": None,
            "mode": request.mode,
            "resources_id": request.resources_id,
            "status": "queuing",
            "config": request.config.replace(retry_condition=list(request.config.retry_condition)),
            "metadata": copy_value(request.metadata),
            "run_id": request.run_id,
            "idempotency_key": request.idempotency_key,
        }
    )


def _refuse_conflicts(spans: Sequence[Span], attempts: Sequence[_AttemptEntry]) -> None:
    """Refuse a batch in which a new span would get a sequence id that another span has or will be given."""
    seen: set[tuple[str, str]] = set()
    claimed: set[tuple[str, int]] = set()
    last: dict[str, int] = {}
    for span, attempt in zip(spans, attempts, strict=True):
        name = span.attempt_id
        if span.span_id in attempt.spans or (name, span.span_id) in seen:
            continue
        drawn = last.get(name, attempt.last_sequence_id)
        wanted = span.sequence_id or drawn + 1
        if wanted in attempt.sequence_ids or (name, wanted) in claimed:
            raise _conflict(span)
        seen.add((name, span.span_id))
        claimed.add((name, wanted))
        last[name] = max(drawn, wanted)


def _page(items: Iterable[Any], limit: int | None, offset: int) -> Iterable[Any]:
    return islice(items, offset, None if limit is None else offset + limit)
