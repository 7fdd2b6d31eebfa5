"""What the memory store holds, with its indexes and its queue, and the operations of which the store's are made."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import Any

from lightning_core.errors import (
    StoreClosedError,
    UnknownAttemptError,
    UnknownRolloutError,
)
from lightning_core.store import lifecycle, vacuum
from lightning_core.store.base import StoreStatistics
from lightning_core.store.entries import AttemptEntry, Record, RolloutEntry, new_id
from lightning_core.store.table_waiting import WaitingRoom
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    ResourcesUpdate,
    RolloutStatus,
    RolloutV2,
    Run,
    RunState,
    Span,
    Worker,
)
from lightning_core.types._model import copy_value

__all__ = ["Tables"]


class Tables:
    """Everything that a memory store holds, with its indexes, and the operations of which the store's are made.

    Unless said otherwise, methods are called with :attr:`lock` held.

    Args:
        clock: Tells the time, in seconds since the epoch.
        journal: Called with each record that is added or changed.
        location: Names the store, for messages.
    """

    def __init__(
        self, clock: Callable[[], float], journal: Callable[[Record], None], location: Callable[[], str]
    ) -> None:
        self.clock = clock
        self.journal = journal
        self.location = location
        self.lock = threading.Lock()
        self.closed = False
        self.rollouts: dict[str, RolloutEntry] = {}
        self.by_status: dict[RolloutStatus, dict[str, None]] = {}
        self.by_run: dict[str, dict[str, None]] = {}
        self.keys: dict[str, str] = {}
        # The queue, in order: of everything, and of each run.
        self.queue: dict[str, None] = {}
        self.run_queues: dict[str, dict[str, None]] = {}
        # (due, tie-breaker, rollout id, attempt id); a renewed lease is noticed when its old entry comes up.
        self.due: list[tuple[float, int, str, str]] = []
        self.ties = count()
        self.numbers = count()
        self.resources: dict[str, ResourcesUpdate] = {}
        self.latest_resources: str | None = None
        self.workers: dict[str, Worker] = {}
        # The live attempts of each worker, oldest first.
        self.worker_attempts: dict[str, dict[tuple[str, str], None]] = {}
        self.runs: dict[str, Run] = {}
        self.run_states: dict[str, RunState] = {}
        # How many rollouts name the resources.
        self.resources_users: dict[str, int] = {}
        self.attempt_count = 0
        self.span_count = 0
        self.waiting = WaitingRoom(
            lambda run_id: bool(self.queue if run_id is None else self.run_queues.get(run_id))
        )

    def restore(self, records: Iterable[Record]) -> None:
        """Load records into empty tables; of several records of one thing the last one counts."""
        for record in records:
            if isinstance(record, RolloutV2):
                entry = self.rollouts.get(record.rollout_id)
                if entry is None:
                    self.insert(record)
                else:
                    self.set_rollout(entry, record)
            elif isinstance(record, Attempt):
                self.set_attempt(self.entry(record.rollout_id), record)
            elif isinstance(record, Span):
                self.put_span(self.attempt(record.rollout_id, record.attempt_id)[1], record)
            elif isinstance(record, ResourcesUpdate):
                self.resources[record.resources_id] = record
                self.latest_resources = record.resources_id
            elif isinstance(record, Worker):
                self.workers[record.worker_id] = record
            elif isinstance(record, Run):
                self.runs[record.run_id] = record
            elif isinstance(record, RunState):
                self.run_states[record.run_id] = record
            else:
                vacuum.delete(self, record, StoreStatistics())

    def enter(self) -> float:
        """Begin an operation: refuse it if the store is closed, and expire what is due. Returns the time."""
        if self.closed:
            raise StoreClosedError("the store is closed; open a new one")
        now = self.clock()
        while self.due and self.due[0][0] <= now:
            _, _, rollout_id, attempt_id = heapq.heappop(self.due)
            entry = self.rollouts.get(rollout_id)
            if entry is None:
                # It had ended, and has been deleted.
                continue
            attempt_entry = entry.attempts[attempt_id]
            if not lifecycle.is_live(attempt_entry.attempt):
                continue
            change = lifecycle.expire(entry.rollout, attempt_entry.attempt, now)
            if change is None:
                self.watch(entry.rollout, attempt_entry.attempt)
            else:
                self.apply(entry, attempt_entry, entry.rollout, change)
        return now

    def until_due(self, left: float | None, now: float) -> float | None:
        """How long one may wait, in seconds, before somebody must look for expired attempts."""
        if not self.due:
            return left
        due = max(self.due[0][0] - now, 0.001)
        return due if left is None else min(left, due)

    def watch(self, rollout: RolloutV2, attempt: Attempt) -> None:
        """Have a live attempt looked at when it is due."""
        due, _ = lifecycle.deadline(rollout.config, attempt)
        entry = (due, next(self.ties), rollout.rollout_id, attempt.attempt_id)
        heapq.heappush(self.due, entry)
        if self.due[0] is entry:
            # Those who wait already know of nothing that is due so soon, and may be the only ones to look.
            self.waiting.wake_all()

    def entry(self, rollout_id: str) -> RolloutEntry:
        """Return a rollout's entry, or raise ``UnknownRolloutError``."""
        entry = self.rollouts.get(rollout_id)
        if entry is None:
            raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store ({self.location()})")
        return entry

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return ids of rollouts in the order of creation."""
        return sorted(names, key=lambda name: self.rollouts[name].number)

    def attempt(self, rollout_id: str, attempt_id: str) -> tuple[RolloutEntry, AttemptEntry]:
        """Return the entries of a rollout and of one of its attempts, which may be ``"latest"``."""
        entry = self.entry(rollout_id)
        attempt = entry.latest if attempt_id == "latest" else entry.attempts.get(attempt_id)
        if attempt is None:
            known = ", ".join(entry.attempts) or "none"
            raise UnknownAttemptError(
                f"rollout {rollout_id!r} has no attempt {attempt_id!r}; it has: {known}"
            )
        return entry, attempt

    def insert(self, rollout: RolloutV2) -> RolloutEntry:
        """Add a rollout."""
        entry = self.rollouts[rollout.rollout_id] = RolloutEntry(rollout, next(self.numbers))
        self.by_status.setdefault(rollout.status, {})[rollout.rollout_id] = None
        if rollout.run_id is not None:
            self.by_run.setdefault(rollout.run_id, {})[rollout.rollout_id] = None
        if rollout.idempotency_key is not None:
            self.keys[rollout.idempotency_key] = rollout.rollout_id
        self.use_resources(rollout.resources_id, 1)
        if lifecycle.is_queued(rollout):
            self.push(rollout)
        return entry

    def push(self, rollout: RolloutV2) -> None:
        """Put a rollout at the end of the queue."""
        self.queue[rollout.rollout_id] = None
        if rollout.run_id is not None:
            self.run_queues.setdefault(rollout.run_id, {})[rollout.rollout_id] = None

    def unqueue(self, rollout: RolloutV2) -> None:
        """Take a rollout out of the queue, if it is there."""
        self.queue.pop(rollout.rollout_id, None)
        if rollout.run_id is not None:
            queue = self.run_queues.get(rollout.run_id, {})
            queue.pop(rollout.rollout_id, None)
            if not queue:
                self.run_queues.pop(rollout.run_id, None)

    def begin(
        self, entry: RolloutEntry, worker_id: str | None, now: float, prefix: str = "at"
    ) -> AttemptedRollout:
        """Begin the next attempt of a rollout; ``prefix`` is how its id begins."""
        latest = entry.latest
        change, superseded = lifecycle.begin_attempt(
            entry.rollout, latest.attempt if latest is not None else None, new_id(prefix), worker_id, now
        )
        if superseded is not None:
            self.set_attempt(entry, superseded)
            self.journal(superseded)
        self.set_rollout(entry, change.rollout)
        self.set_attempt(entry, change.attempt)
        self.journal(change.rollout)
        self.journal(change.attempt)
        if worker_id is not None:
            self.see_worker(worker_id, now, None)
        return change.rollout.with_attempt(change.attempt)

    def take(
        self, limit: int, worker_id: str | None, run_id: str | None, prefix: str | None, now: float
    ) -> list[AttemptedRollout]:
        """Begin attempts of queued rollouts, unless the same request has begun some that are live."""
        if worker_id is not None and prefix is not None and (begun := self.begun(worker_id, prefix)):
            # Whoever was woken for new work, and gets this instead, must wake another.
            self.waiting.wake_workers(1)
            return begun
        queue = self.queue if run_id is None else self.run_queues.get(run_id, {})
        taken = [
            self.begin(self.rollouts[rollout_id], worker_id, now, prefix or "at")
            for rollout_id in list(islice(queue, max(limit, 0)))
        ]
        if taken and prefix is not None:
            self.waiting.wake_request((worker_id, prefix))
        return taken

    def begun(self, worker_id: str, prefix: str) -> list[AttemptedRollout]:
        """Return a worker's live attempts whose ids were made with ``prefix``, oldest first."""
        found: list[AttemptedRollout] = []
        for rollout_id, attempt_id in self.worker_attempts.get(worker_id, ()):
            if lifecycle.is_of_request(attempt_id, prefix):
                entry = self.rollouts[rollout_id]
                found.append(entry.rollout.with_attempt(entry.attempts[attempt_id].attempt))
        return found

    def sign_of_life(self, entry: RolloutEntry, attempt: AttemptEntry, now: float) -> None:
        """Renew the lease of an attempt, if it may."""
        change = lifecycle.sign_of_life(
            entry.rollout, attempt.attempt, is_latest=attempt is entry.latest, now=now
        )
        self.apply(entry, attempt, entry.rollout, change)

    def apply(
        self, entry: RolloutEntry, attempt: AttemptEntry, before: RolloutV2, change: lifecycle.Change
    ) -> None:
        """Store what an event made of a rollout and its attempt."""
        if change.attempt is not attempt.attempt:
            self.set_attempt(entry, change.attempt)
            self.journal(change.attempt)
        if change.rollout is not before:
            self.set_rollout(entry, change.rollout)
            self.journal(change.rollout)

    def set_rollout(self, entry: RolloutEntry, rollout: RolloutV2) -> None:
        """Replace a rollout, and keep queue, index and waiters in step."""
        before, entry.rollout = entry.rollout, rollout
        if rollout.resources_id != before.resources_id:
            self.use_resources(before.resources_id, -1)
            self.use_resources(rollout.resources_id, 1)
        if rollout.status == before.status:
            return
        name = rollout.rollout_id
        del self.by_status[before.status][name]
        self.by_status.setdefault(rollout.status, {})[name] = None
        if lifecycle.is_queued(rollout):
            # Also when it was queued before: a rollout that is sent back goes to the end.
            self.unqueue(rollout)
            self.push(rollout)
            self.waiting.wake_workers(1)
        elif lifecycle.is_queued(before):
            self.unqueue(rollout)
        if rollout.is_final:
            self.waiting.ended(name)

    def use_resources(self, resources_id: str | None, number: int) -> None:
        """A rollout names these resources, or does so no more."""
        if resources_id is not None:
            users = self.resources_users.get(resources_id, 0) + number
            if users:
                self.resources_users[resources_id] = users
            else:
                del self.resources_users[resources_id]

    def set_attempt(self, entry: RolloutEntry, attempt: Attempt) -> None:
        """Replace an attempt or add it, and keep count, expiry and its worker's load in step."""
        live = lifecycle.is_live(attempt)
        known = entry.attempts.get(attempt.attempt_id)
        if known is None:
            entry.latest = entry.attempts[attempt.attempt_id] = AttemptEntry(attempt)
            self.attempt_count += 1
            before = None
        else:
            before = known.attempt
            known.attempt = attempt
        if live and (before is None or not lifecycle.is_live(before)):
            self.watch(entry.rollout, attempt)
        key = (attempt.rollout_id, attempt.attempt_id)
        if (
            before is not None
            and before.worker_id is not None
            and (before.worker_id != attempt.worker_id or not live)
        ):
            self.worker_attempts.get(before.worker_id, {}).pop(key, None)
        if live and attempt.worker_id is not None:
            self.worker_attempts.setdefault(attempt.worker_id, {})[key] = None

    def add(self, attempt: AttemptEntry, span: Span) -> Span:
        """Add a new span, which the store owns, drawing its sequence id if it has none."""
        if not span.sequence_id:
            vars(span)["sequence_id"] = attempt.last_sequence_id + 1
        self.put_span(attempt, span)
        self.journal(span)
        return span

    def put_span(self, attempt: AttemptEntry, span: Span) -> None:
        """Store a span, replacing one of the same id."""
        if span.span_id not in attempt.spans:
            self.span_count += 1
        attempt.spans[span.span_id] = span
        attempt.sequence_ids.add(span.sequence_id)
        if span.sequence_id < attempt.last_sequence_id:
            attempt.sorted = False
        attempt.last_sequence_id = max(attempt.last_sequence_id, span.sequence_id)

    def see_worker(self, worker_id: str, now: float, stats: dict[str, Any] | None) -> None:
        """Record a sign of life of a worker."""
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = self.workers[worker_id] = Worker(worker_id=worker_id)
        # In place: a worker is seen at every dequeue, and only copies of it are handed out.
        worker.last_heartbeat_time = now
        if stats is not None:
            worker.heartbeat_stats = copy_value(stats)
        self.journal(worker)

    def describe(self, worker: Worker, now: float) -> Worker:
        """Return a worker with its status and what it has in hand."""
        attempts = self.worker_attempts.get(worker.worker_id)
        rollout_id, attempt_id = next(iter(attempts)) if attempts else (None, None)
        seen = worker.last_heartbeat_time
        silent = seen is None or now - seen > lifecycle.WORKER_SILENCE_SECONDS
        return worker.replace(
            status="unknown" if silent else "busy" if attempts else "idle",
            current_rollout_id=rollout_id,
            current_attempt_id=attempt_id,
            heartbeat_stats=copy_value(worker.heartbeat_stats),
        )
