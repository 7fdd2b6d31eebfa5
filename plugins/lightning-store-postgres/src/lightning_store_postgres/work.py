"""What a transaction works on: rollouts and attempts that it has locked and read, and what is to be written of them.

The operations of a group run on these objects one after the other, in memory; see ``loading`` for how they get here,
and ``saving`` for where they go.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from psycopg.pq.abc import PGresult

from lightning_core.errors import UnknownAttemptError, UnknownRolloutError
from lightning_core.store import lifecycle
from lightning_core.store.lifecycle import Change
from lightning_core.types import Attempt, AttemptedRollout, RolloutV2

from .wire import Statement

__all__ = [
    "AttemptEntry",
    "Needs",
    "NewResources",
    "NewRollout",
    "Operation",
    "RolloutEntry",
    "Work",
    "new_id",
]

T_co = TypeVar("T_co", covariant=True)


class NewRollout(NamedTuple):
    """What a caller asks to create; ``config``, ``metadata`` and ``input`` are JSON texts."""

    mode: str | None
    resources_id: str | None
    run_id: str | None
    idempotency_key: str | None
    config: str
    metadata: str
    input: str


class NewResources(NamedTuple):
    """A version of resources to be written."""

    resources_id: str
    version: int
    create_time: float
    body: str


class Needs:
    """What the operations of a group must find in their :class:`Work`.

    Attributes:
        rollouts: Ids of rollouts.
        whole: Those of them whose input and metadata are needed, too.
        attempts: Ids of attempts of those rollouts, besides the latest ones.
        keys: Idempotency keys.
        new_rollouts: The most rollouts that may be created.
        requests: Workers and prefixes of attempt ids of repeatable dequeues.
        starts: Ids of rollouts and prefixes of attempt ids of repeatable starts of attempts.
        queue: How many queued rollouts to get, by run; ``None`` stands for any run.
        resources: Ids of resources.
        spans: For each (rollout id, attempt id), the ids and the sequence ids of spans to look for.
    """

    def __init__(self) -> None:
        self.rollouts: set[str] = set()
        self.whole: set[str] = set()
        self.attempts: set[str] = set()
        self.keys: set[str] = set()
        self.new_rollouts = 0
        self.requests: set[tuple[str, str]] = set()
        self.starts: set[tuple[str, str]] = set()
        self.queue: defaultdict[str | None, int] = defaultdict(int)
        self.resources: set[str] = set()
        self.spans: defaultdict[tuple[str, str], tuple[set[str], set[int]]] = defaultdict(
            lambda: (set(), set())
        )

    def attempt(self, rollout_id: str, attempt_id: str) -> None:
        """Need an attempt, or the latest, and its rollout."""
        self.rollouts.add(rollout_id)
        if attempt_id != "latest":
            self.attempts.add(attempt_id)


class AttemptEntry:
    """An attempt and what must be written of it.

    Attributes:
        span_ids: The spans that are known to be stored, if that was asked for.
        sequence_ids: Their sequence ids.
        changed: 0, or 1 if only the heartbeat and the last sequence id differ from what is stored, or 2.
    """

    __slots__ = ("attempt", "changed", "check_at", "last_span_seq", "new", "sequence_ids", "span_ids")

    def __init__(
        self, attempt: Attempt, *, last_span_seq: int = 0, check_at: float | None = None, new: bool = False
    ) -> None:
        self.attempt = attempt
        self.last_span_seq = last_span_seq
        self.check_at = check_at
        self.new = new
        self.changed = 0
        self.span_ids: set[str] = set()
        self.sequence_ids: set[int] = set()


class RolloutEntry:
    """A rollout and what must be written of it.

    Attributes:
        no: Its number.
        rollout: The rollout. Unless ``whole``, it has its id, status, end time, config and run, and nothing else.
        latest_seq: The sequence id of its latest attempt, 0 if it has none.
        attempts: Those of its attempts that were needed, by id.
        place: ``"keep"`` its place in the queue, ``"leave"`` the queue, or go to its ``"end"``.
        fields: Whether other columns than those of the status must be written.
        texts: Its config, metadata and input as JSON, if they are at hand.
    """

    __slots__ = (
        "attempts",
        "changed",
        "fields",
        "latest_seq",
        "new",
        "no",
        "place",
        "rollout",
        "texts",
        "whole",
    )

    def __init__(
        self, no: int, rollout: RolloutV2, latest_seq: int, *, whole: bool, new: bool = False
    ) -> None:
        self.no = no
        self.rollout = rollout
        self.latest_seq = latest_seq
        self.attempts: dict[str, AttemptEntry] = {}
        self.place = "keep"
        self.whole = whole
        self.new = new
        self.changed = False
        self.fields = False
        self.texts: tuple[str, str, str] | None = None

    @property
    def latest(self) -> AttemptEntry | None:
        """Its latest attempt."""
        for entry in self.attempts.values():
            if entry.attempt.sequence_id == self.latest_seq:
                return entry
        return None

    def begun(self, prefix: str) -> AttemptEntry | None:
        """Return the last attempt that the request with this prefix has begun."""
        found = [a for a in self.attempts.values() if lifecycle.is_of_request(a.attempt.attempt_id, prefix)]
        return max(found, key=lambda entry: entry.attempt.sequence_id, default=None)

    def attempt(self, attempt_id: str) -> AttemptEntry:
        """Return one of its attempts, or the latest.

        Raises:
            UnknownAttemptError: If it has no such attempt.
        """
        found = self.latest if attempt_id == "latest" else self.attempts.get(attempt_id)
        if found is None:
            latest = self.latest
            known = f"its latest is {latest.attempt.attempt_id!r}" if latest is not None else "it has none"
            raise UnknownAttemptError(
                f"rollout {self.rollout.rollout_id!r} has no attempt {attempt_id!r}; {known}"
            )
        return found


class Work:
    """The working set of one transaction.

    Attributes:
        now: The time, in seconds since the epoch.
        careful: Whether stored spans were looked for; otherwise all that are written are taken to be new.
        rollouts: What was read, by id.
        keys: The ids of the rollouts that have an idempotency key.
        numbers: Numbers for new rollouts.
        begun: What earlier dequeues began, by their worker and prefix.
        resources: The newest version and the time of creation of stored resources.
        queued: Rollouts that may be taken, oldest first, by the run they were looked for.
        requeued: Rollouts that were queued in this transaction, oldest first.
        ended: Ids of rollouts that ended.
        queued_runs: The runs of rollouts that were queued.
        requests: The repeatable dequeues that took something.
        first_due: When the first of the attempts that began is due, in seconds from now.
        extra: Further statements, and what to do with their results.
    """

    def __init__(self, now: float, *, careful: bool = False) -> None:
        self.now = now
        self.careful = careful
        self.rollouts: dict[str, RolloutEntry] = {}
        self.keys: dict[str, str] = {}
        self.numbers: deque[int] = deque()
        self.begun: dict[tuple[str, str], list[AttemptedRollout]] = {}
        self.resources: dict[str, tuple[int, float]] = {}
        self.queued: dict[str | None, list[RolloutEntry]] = {}
        self.requeued: dict[RolloutEntry, None] = {}
        self.spans: list[tuple[int, int, int, str, str, str, str]] = []
        self.counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.workers: dict[str, str | None] = {}
        self.new_resources: list[NewResources] = []
        self.extra: list[tuple[Statement, Callable[[PGresult], None]]] = []
        self.ended: list[str] = []
        self.queued_runs: list[str | None] = []
        self.requests: set[tuple[str, str]] = set()
        self.first_due: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        return not (
            self.spans
            or self.counts
            or self.workers
            or self.new_resources
            or self.extra
            or any(
                rollout.new
                or rollout.changed
                or rollout.fields
                or any(attempt.changed or attempt.new for attempt in rollout.attempts.values())
                for rollout in self.rollouts.values()
            )
        )

    def rollout(self, rollout_id: str) -> RolloutEntry:
        """Return a rollout.

        Raises:
            UnknownRolloutError: If there is none.
        """
        entry = self.rollouts.get(rollout_id)
        if entry is None:
            raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store")
        return entry

    def insert(self, new: NewRollout, rollout: RolloutV2) -> RolloutEntry:
        """Add a rollout."""
        entry = RolloutEntry(self.numbers.popleft(), rollout, 0, whole=True, new=True)
        entry.texts = (new.config, new.metadata, new.input)
        self.rollouts[rollout.rollout_id] = entry
        if new.idempotency_key is not None:
            self.keys[new.idempotency_key] = rollout.rollout_id
        self._count(rollout, 1)
        if lifecycle.is_queued(rollout):
            entry.place = "end"
            self.queued_runs.append(rollout.run_id)
        return entry

    def set_rollout(self, entry: RolloutEntry, after: RolloutV2) -> None:
        """Give a rollout another status, and keep queue and counts in step."""
        before, entry.rollout = entry.rollout, after
        if after.status == before.status:
            return
        entry.changed = True
        if lifecycle.is_queued(after):
            # Also when it was queued before: a rollout that is sent back goes to the end.
            entry.place = "end"
            self.queued_runs.append(after.run_id)
            self.requeued.pop(entry, None)
            self.requeued[entry] = None
        else:
            entry.place = "leave"
        if after.is_final:
            self.ended.append(after.rollout_id)
        self._count(before, -1)
        self._count(after, 1)

    def _count(self, rollout: RolloutV2, change: int) -> None:
        self.counts["", f"rollout {rollout.status}"] += change
        if rollout.run_id is not None:
            self.counts[f"run {rollout.run_id}", f"rollout {rollout.status}"] += change

    def set_attempt(self, rollout: RolloutEntry, entry: AttemptEntry, after: Attempt) -> None:
        """Replace an attempt, and have it looked at in time."""
        entry.attempt = after
        entry.changed = 2
        entry.check_at = None
        if lifecycle.is_live(after):
            entry.check_at, _ = lifecycle.deadline(rollout.rollout.config, after)
            self._watch(entry.check_at)

    def _watch(self, due: float) -> None:
        left = due - self.now
        if self.first_due is None or left < self.first_due:
            self.first_due = left

    def apply(self, rollout: RolloutEntry, attempt: AttemptEntry, change: Change) -> None:
        """Store what an event made of a rollout and its attempt."""
        before = rollout.rollout
        if change.rollout is not before:
            self.set_rollout(rollout, change.rollout)
        if change.attempt is not attempt.attempt:
            self.set_attempt(rollout, attempt, change.attempt)

    def show_life(self, rollout: RolloutEntry, entry: AttemptEntry) -> None:
        """Renew an attempt's lease, if the rules let it."""
        change = lifecycle.sign_of_life(
            rollout.rollout,
            entry.attempt,
            is_latest=entry.attempt.sequence_id == rollout.latest_seq,
            now=self.now,
        )
        if change.attempt.status == entry.attempt.status and change.rollout is rollout.rollout:
            if change.attempt is not entry.attempt:
                # The usual case. The time to check is left alone: it is moved when it comes up.
                entry.attempt = change.attempt
                entry.changed = max(entry.changed, 1)
        else:
            self.apply(rollout, entry, change)

    def begin(self, entry: RolloutEntry, worker_id: str | None, prefix: str = "at") -> AttemptedRollout:
        """Begin the next attempt of a rollout.

        Raises:
            FinalRolloutError: If the rollout has ended.
        """
        latest = entry.latest
        change, superseded = lifecycle.begin_attempt(
            entry.rollout, latest.attempt if latest is not None else None, new_id(prefix), worker_id, self.now
        )
        if latest is not None and superseded is not None:
            self.set_attempt(entry, latest, superseded)
        self.set_rollout(entry, change.rollout)
        attempt = change.attempt
        begun = entry.attempts[attempt.attempt_id] = AttemptEntry(attempt, new=True)
        self.set_attempt(entry, begun, attempt)
        entry.latest_seq = attempt.sequence_id
        entry.changed = True
        self.counts["", "attempts"] += 1
        if worker_id is not None:
            self.see_worker(worker_id)
        return entry.rollout.with_attempt(attempt)

    def take(self, limit: int, run_id: str | None) -> list[RolloutEntry]:
        """Return up to ``limit`` queued rollouts, oldest first."""
        candidates: Iterable[RolloutEntry] = (*self.queued.get(run_id, ()), *self.requeued)
        found: dict[RolloutEntry, None] = {}
        for entry in candidates:
            if len(found) >= limit:
                break
            if (
                lifecycle.is_queued(entry.rollout)
                and (run_id is None or entry.rollout.run_id == run_id)
                and entry.whole
            ):
                found[entry] = None
        return list(found)

    def expire(self, entries: Sequence[RolloutEntry]) -> None:
        """End the latest attempts of these rollouts if they are due, and look at the others again in time."""
        for entry in entries:
            latest = entry.latest
            if latest is None or not lifecycle.is_live(latest.attempt):
                continue
            change = lifecycle.expire(entry.rollout, latest.attempt, self.now)
            if change is not None:
                self.apply(entry, latest, change)
            else:
                # It has shown life since: look again when the renewed lease ends.
                self.set_attempt(entry, latest, latest.attempt)

    def see_worker(self, worker_id: str, stats: str | None = None) -> None:
        """Record a sign of life of a worker; ``stats`` of ``None`` leaves its statistics alone."""
        self.workers[worker_id] = stats if stats is not None else self.workers.get(worker_id)


class Operation(Protocol[T_co]):
    """Something that a caller asks for, as part of a group in one transaction.

    An operation that raises must have changed nothing.
    """

    @property
    def weight(self) -> int:
        """How much it writes, in bytes or so."""
        ...

    def ask(self, needs: Needs) -> None:
        """Say what must be read."""
        ...

    def run(self, work: Work) -> T_co:
        """Do it, in memory."""
        ...


def new_id(prefix: str) -> str:
    """Draw an id."""
    return f"{prefix}-{os.urandom(8).hex()}"
