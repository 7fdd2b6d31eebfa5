"""What each call of the store does to its working set. The rules are those of ``lifecycle``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psycopg.pq.abc import PGresult

from lightning_core.errors import FinalRolloutError, UnknownAttemptError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.base import UNSET, Maybe
from lightning_core.store.encoding import decode, decode_config
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    ResourcesUpdate,
    RolloutStatus,
    RolloutV2,
)

from .wire import Statement
from .work import Needs, NewResources, NewRollout, Work, new_id

__all__ = [
    "Begin",
    "Dequeue",
    "Enqueue",
    "Execute",
    "Look",
    "RenewLeases",
    "ReserveSequenceId",
    "SeeWorker",
    "Start",
    "UpdateAttempt",
    "UpdateResources",
    "UpdateRollout",
]

_LIGHT = 500
"""What an operation without much of its own weighs, in bytes or so."""


def _new_rollout(new: NewRollout, status: RolloutStatus, now: float) -> RolloutV2:
    return RolloutV2.trusted(
        {
            "rollout_id": new_id("ro"),
            "input": decode(new.input),
            "start_time": now,
            "end_time": None,
            "mode": new.mode,
            "resources_id": new.resources_id,
            "status": status,
            "config": decode_config(new.config),
            "metadata": {} if new.metadata == "{}" else decode(new.metadata),
            "run_id": new.run_id,
            "idempotency_key": new.idempotency_key,
        }
    )


def _weigh(new: NewRollout) -> int:
    return _LIGHT + len(new.input) + len(new.metadata)


@dataclass(frozen=True)
class Enqueue:
    """Put rollouts at the end of the queue."""

    new: Sequence[NewRollout]

    @property
    def weight(self) -> int:
        """How much it writes, in bytes or so."""
        return sum(map(_weigh, self.new))

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.new_rollouts += len(self.new)
        needs.keys.update(item.idempotency_key for item in self.new if item.idempotency_key is not None)

    def run(self, work: Work) -> list[RolloutV2]:
        """Do it."""
        rollouts: list[RolloutV2] = []
        for item in self.new:
            known = work.keys.get(item.idempotency_key) if item.idempotency_key is not None else None
            if known is None:
                rollouts.append(work.insert(item, _new_rollout(item, "queuing", work.now)).rollout.detached())
            else:
                rollouts.append(work.rollout(known).rollout.detached())
        return rollouts


@dataclass(frozen=True)
class Start:
    """Create a rollout and its first attempt."""

    new: NewRollout
    worker_id: str | None

    @property
    def weight(self) -> int:
        """How much it writes, in bytes or so."""
        return _weigh(self.new)

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.new_rollouts += 1
        if self.new.idempotency_key is not None:
            needs.keys.add(self.new.idempotency_key)

    def run(self, work: Work) -> AttemptedRollout:
        """Do it."""
        key = self.new.idempotency_key
        known = work.keys.get(key) if key is not None else None
        if known is None:
            entry = work.insert(self.new, _new_rollout(self.new, "preparing", work.now))
        else:
            entry = work.rollout(known)
            if (latest := entry.latest) is not None:
                return entry.rollout.with_attempt(latest.attempt)
        return work.begin(entry, self.worker_id)


@dataclass(frozen=True)
class Dequeue:
    """Take rollouts out of the queue.

    Attributes:
        prefix: How the ids of the attempts begin, if the call may be repeated.
    """

    limit: int
    worker_id: str | None
    run_id: str | None
    prefix: str | None
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        if self.limit:
            needs.queue[self.run_id] += self.limit
        if self.prefix is not None and self.worker_id is not None:
            needs.requests.add((self.worker_id, self.prefix))

    def run(self, work: Work) -> list[AttemptedRollout]:
        """Do it."""
        request = (self.worker_id or "", self.prefix or "")
        if self.prefix is not None and (begun := self._begun(work, request)):
            return begun
        taken = work.take(self.limit, self.run_id)
        found = [work.begin(entry, self.worker_id, self.prefix or "at") for entry in taken]
        if self.prefix is not None and found:
            # Whoever waits with the same request is to get the same.
            work.begun[request] = found
            work.requests.add(request)
        return found

    def _begun(self, work: Work, request: tuple[str, str]) -> list[AttemptedRollout]:
        found: list[AttemptedRollout] = []
        for rollout in work.begun.get(request, ()):
            entry = work.rollouts.get(rollout.rollout_id)
            attempt = rollout.attempt
            if entry is not None:
                # Something else of the group has changed it, for instance its lease was over.
                changed = entry.attempts.get(attempt.attempt_id)
                attempt = changed.attempt if changed is not None else attempt
                if entry.latest_seq != attempt.sequence_id:
                    continue
            if lifecycle.is_live(attempt):
                found.append(rollout.replace(status=attempt.status).with_attempt(attempt))
        return found


@dataclass(frozen=True)
class Begin:
    """Begin a new attempt of a rollout.

    Attributes:
        prefix: How the id of the attempt begins, if the call may be repeated.
    """

    rollout_id: str
    worker_id: str | None
    prefix: str | None
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.rollouts.add(self.rollout_id)
        needs.whole.add(self.rollout_id)
        if self.prefix is not None:
            needs.starts.add((self.rollout_id, self.prefix))

    def run(self, work: Work) -> AttemptedRollout:
        """Do it."""
        entry = work.rollout(self.rollout_id)
        begun = entry.begun(self.prefix) if self.prefix is not None else None
        if begun is not None:
            return entry.rollout.with_attempt(begun.attempt)
        return work.begin(entry, self.worker_id, self.prefix or "at")


@dataclass(frozen=True)
class UpdateRollout:
    """Change fields of a rollout.

    Attributes:
        fields: The new ``input``, ``mode``, ``resources_id`` and ``config``, as far as they are given.
        metadata: What to merge into the metadata.
    """

    rollout_id: str
    fields: dict[str, Any]
    status: Maybe[RolloutStatus]
    metadata: dict[str, Any] | None
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.rollouts.add(self.rollout_id)
        needs.whole.add(self.rollout_id)

    def run(self, work: Work) -> RolloutV2:
        """Do it."""
        entry = work.rollout(self.rollout_id)
        rollout = entry.rollout
        if self.fields and rollout.is_final:
            raise FinalRolloutError(
                f"rollout {self.rollout_id!r} has ended ({rollout.status}): only its metadata can still change, "
                f"not {', '.join(self.fields)}"
            )
        rollout = rollout.replace(**self.fields)
        if self.metadata is not None:
            rollout = rollout.replace(metadata=rollout.metadata | self.metadata)
        latest = entry.latest
        before = attempt = latest.attempt if latest is not None else None
        if self.status is not UNSET:
            rollout, attempt = lifecycle.report_rollout(rollout, attempt, self.status, work.now)
        if self.fields or self.metadata is not None:
            entry.fields = True
        work.set_rollout(entry, rollout)
        if latest is not None and attempt is not None and attempt is not before:
            work.set_attempt(entry, latest, attempt)
        if "config" in self.fields and latest is not None and lifecycle.is_live(latest.attempt):
            work.set_attempt(entry, latest, latest.attempt)
        return rollout.detached()


@dataclass(frozen=True)
class UpdateAttempt:
    """Report on an attempt."""

    rollout_id: str
    attempt_id: str | Literal["latest"]
    status: Maybe[AttemptStatus]
    worker_id: Maybe[str | None]
    heartbeat_time: Maybe[float]
    metadata: dict[str, Any] | None
    reason: FailureReason | None
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.attempt(self.rollout_id, self.attempt_id)

    def run(self, work: Work) -> Attempt:
        """Do it."""
        entry = work.rollout(self.rollout_id)
        found = entry.attempt(self.attempt_id)
        is_latest = found.attempt.sequence_id == entry.latest_seq
        rollout, attempt = entry.rollout, found.attempt
        if self.worker_id is not UNSET:
            attempt = attempt.replace(worker_id=self.worker_id)
        if self.metadata is not None:
            attempt = attempt.replace(metadata=attempt.metadata | self.metadata)
        if self.heartbeat_time is not UNSET:
            rollout, attempt = lifecycle.heartbeat(
                rollout, attempt, self.heartbeat_time, is_latest=is_latest, now=work.now
            )
        if self.status is not UNSET:
            rollout, attempt = lifecycle.report_attempt(
                rollout, attempt, self.status, is_latest=is_latest, now=work.now, reason=self.reason
            )
        work.apply(entry, found, lifecycle.Change(rollout, attempt))
        return attempt.detached()


@dataclass(frozen=True)
class RenewLeases:
    """Renew leases, and return the ids of the attempts that are not live."""

    worker_id: str
    attempts: Sequence[tuple[str, str]]
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        for rollout_id, attempt_id in self.attempts:
            needs.attempt(rollout_id, attempt_id)

    def run(self, work: Work) -> list[str]:
        """Do it."""
        work.see_worker(self.worker_id)
        lost: list[str] = []
        for rollout_id, attempt_id in self.attempts:
            try:
                entry = work.rollout(rollout_id)
                attempt = entry.attempt(attempt_id)
            except (UnknownRolloutError, UnknownAttemptError):
                lost.append(attempt_id)
                continue
            work.show_life(entry, attempt)
            if not lifecycle.is_live(attempt.attempt):
                lost.append(attempt_id)
        return lost


@dataclass(frozen=True)
class ReserveSequenceId:
    """Draw a sequence id for a span to come."""

    rollout_id: str
    attempt_id: str
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.attempt(self.rollout_id, self.attempt_id)

    def run(self, work: Work) -> int:
        """Do it."""
        attempt = work.rollout(self.rollout_id).attempt(self.attempt_id)
        attempt.last_span_seq += 1
        attempt.changed = max(attempt.changed, 1)
        return attempt.last_span_seq


@dataclass(frozen=True)
class UpdateResources:
    """Store the next version of resources."""

    resources_id: str
    body: str

    @property
    def weight(self) -> int:
        """How much it writes, in bytes or so."""
        return _LIGHT + len(self.body)

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        needs.resources.add(self.resources_id)

    def run(self, work: Work) -> ResourcesUpdate:
        """Do it."""
        version, create_time = work.resources.get(self.resources_id, (0, work.now))
        version += 1
        work.resources[self.resources_id] = (version, create_time)
        work.new_resources.append(NewResources(self.resources_id, version, create_time, self.body))
        if version == 1:
            work.counts["", "resources"] += 1
        return ResourcesUpdate(
            resources_id=self.resources_id,
            resources=decode(self.body),
            version=version,
            create_time=create_time,
            update_time=work.now,
        )


@dataclass(frozen=True)
class SeeWorker:
    """Record a sign of life of a worker; ``stats`` of ``None`` leaves its statistics alone."""

    worker_id: str
    stats: str | None
    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Nothing is needed."""

    def run(self, work: Work) -> None:
        """Do it."""
        work.see_worker(self.worker_id, self.stats)


@dataclass(frozen=True)
class Look:
    """Nothing by itself: whatever is due is expired before any operation."""

    weight: int = _LIGHT

    def ask(self, needs: Needs) -> None:
        """Nothing is needed."""

    def run(self, work: Work) -> None:
        """Do nothing."""


class Execute:
    """Run a statement of its own, and return what ``read`` makes of its result."""

    def __init__(self, statement: Statement, read: Callable[[PGresult], Any] | None = None) -> None:
        self.statement = statement
        self.read = read
        self.weight = _LIGHT + sum(len(p.value or b"") for p in statement.parameters)
        self.result: Any = None

    def ask(self, needs: Needs) -> None:
        """Nothing is needed."""

    def run(self, work: Work) -> Execute:
        """Have it run, and return where the result will be."""
        work.extra.append((self.statement, self._keep))
        return self

    def _keep(self, result: PGresult) -> None:
        self.result = self.read(result) if self.read is not None else None
