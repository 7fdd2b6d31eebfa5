"""The rules of the store contract once more, in plain Python, for the random histories to compare with.

It shares no code with ``lightning_core.store.lifecycle`` on purpose: what both get wrong in the same way must be
written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_core.types import RolloutConfig

__all__ = ["ModelAttempt", "ModelRollout", "StoreModel"]

_FINAL = ("succeeded", "failed", "cancelled")
_LIVE = ("preparing", "running")
_LOST = ("unresponsive", "infrastructure")
_USUAL = {
    "failed": "agent_error",
    "timeout": "timeout",
    "unresponsive": "unresponsive",
    "cancelled": "cancelled",
}


@dataclass
class ModelAttempt:
    """What the model knows of an attempt: ``spans`` maps span ids to sequence ids."""

    attempt_id: str
    start: float
    worker: str | None = None
    request: str | None = None
    seen: float | None = None
    status: str = "preparing"
    reason: str | None = None
    end: float | None = None
    spans: dict[str, int] = field(default_factory=dict[str, int])
    last_sequence_id: int = 0

    @property
    def live(self) -> bool:
        """Whether it holds a lease."""
        return self.status in _LIVE

    def finish(self, status: str, reason: str | None, now: float) -> None:
        """It has ended."""
        self.status = status
        self.reason = None if status == "succeeded" else reason or _USUAL[status]
        self.end = now


@dataclass
class ModelRollout:
    """What the model knows of a rollout."""

    rollout_id: str
    config: RolloutConfig
    key: str | None = None
    status: str = "queuing"
    end: float | None = None
    attempts: list[ModelAttempt] = field(default_factory=list[ModelAttempt])

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.status in _FINAL

    @property
    def latest(self) -> ModelAttempt | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None


class StoreModel:
    """The state that a store should be in.

    Attributes:
        rollouts: By id, in the order of creation.
        queue: Groups of rollout ids, oldest first; within a group any order is right.
        workers: When each worker was certainly seen last. A store may count more as a sign of life.
        states: What the algorithms of runs have saved.
    """

    def __init__(self) -> None:
        self.rollouts: dict[str, ModelRollout] = {}
        self.queue: list[set[str]] = []
        self.workers: dict[str, float] = {}
        self.states: dict[str, object] = {}

    def add(self, rollout: ModelRollout) -> None:
        """A rollout is enqueued."""
        self.rollouts[rollout.rollout_id] = rollout
        self.queue.append({rollout.rollout_id})

    def by_key(self, key: str | None) -> ModelRollout | None:
        """Return the rollout that has this idempotency key."""
        found = (rollout for rollout in self.rollouts.values() if key is not None and rollout.key == key)
        return next(found, None)

    def queued(self) -> list[str]:
        """Return the ids in the queue."""
        return [rollout_id for group in self.queue for rollout_id in group]

    def live_of(self, worker: str, request: str | None = None) -> list[str]:
        """Return the ids of a worker's live attempts, of one request only if it is given."""
        return [
            attempt.attempt_id
            for rollout in self.rollouts.values()
            for attempt in rollout.attempts
            if attempt.live and attempt.worker == worker and (request is None or attempt.request == request)
        ]

    def begun_by(self, rollout: ModelRollout, request: str | None) -> ModelAttempt | None:
        """Return the last attempt of a rollout that a request has begun."""
        begun = [a for a in rollout.attempts if request is not None and a.request == request]
        return begun[-1] if begun else None

    def set_status(self, rollout: ModelRollout, status: str, now: float) -> None:
        """Change a rollout's status and its place in the queue."""
        if rollout.status == status:
            return
        assert not rollout.final, "the model itself must not change a final state"
        rollout.status = status
        if rollout.final:
            rollout.end = now
        for group in self.queue:
            group.discard(rollout.rollout_id)
        if status in ("queuing", "requeuing"):
            self.queue.append({rollout.rollout_id})
        self.queue = [group for group in self.queue if group]

    def begin(self, rollout: ModelRollout, attempt: ModelAttempt) -> None:
        """A new attempt begins."""
        latest = rollout.latest
        if latest is not None and latest.live:
            latest.finish("cancelled", None, attempt.start)
        rollout.attempts.append(attempt)
        self.set_status(rollout, "preparing", attempt.start)
        if attempt.worker is not None:
            self.workers[attempt.worker] = attempt.start

    def live(
        self,
        rollout: ModelRollout,
        attempt: ModelAttempt,
        now: float,
        status: str = "running",
        sent: float | None = None,
    ) -> None:
        """A sign of life, sent by a clock that says ``sent``, or a report of a live status."""
        revived = attempt.status == "unresponsive" and not rollout.final
        if attempt is not rollout.latest or not (attempt.live or revived):
            return
        arrived = now if sent is None else min(sent, now)
        attempt.seen = max(arrived, attempt.start if attempt.seen is None else attempt.seen)
        if attempt.status == "running":
            status = "running"
        attempt.status, attempt.reason, attempt.end = status, None, None
        self.set_status(rollout, status, now)

    def end(
        self, rollout: ModelRollout, attempt: ModelAttempt, status: str, reason: str | None, now: float
    ) -> None:
        """An attempt has ended, and that counts."""
        attempt.finish(status, reason, now)
        config = rollout.config
        losses = [a for a in rollout.attempts if a.reason in _LOST]
        forgiven = losses[: config.max_losses]
        tries = [a for a in rollout.attempts if a not in forgiven]
        worth_it = status in config.retry_condition or attempt.reason in config.retry_condition
        if status in ("succeeded", "cancelled"):
            self.set_status(rollout, status, now)
        elif attempt in forgiven or (worth_it and len(tries) < config.max_attempts):
            self.set_status(rollout, "requeuing", now)
        else:
            self.set_status(rollout, "failed", now)

    def report(
        self, rollout: ModelRollout, attempt: ModelAttempt, status: str, reason: str | None, now: float
    ) -> None:
        """Somebody reports an attempt's status."""
        if status in _LIVE:
            self.live(rollout, attempt, now, status)
        elif (
            not rollout.final
            and attempt is rollout.latest
            and (attempt.live or attempt.status == "unresponsive")
        ):
            self.end(rollout, attempt, status, reason, now)

    def set_rollout(self, rollout: ModelRollout, status: str, now: float) -> bool:
        """Somebody sets a rollout's status; returns whether that is allowed."""
        if rollout.final or status == rollout.status:
            return True
        latest = rollout.latest
        live = latest is not None and latest.live
        if status in _LIVE:
            if latest is None or not live:
                return False
            latest.status = status
        elif latest is not None:
            if live:
                latest.finish(status if status in _FINAL else "cancelled", None, now)
            if status == "queuing":
                status = "requeuing"
        self.set_status(rollout, status, now)
        return True

    def expire(self, now: float) -> None:
        """Time has passed: leases and time limits run out."""
        before = len(self.queue)
        for rollout in self.rollouts.values():
            attempt, config = rollout.latest, rollout.config
            if attempt is None or not attempt.live:
                continue
            seen = attempt.start if attempt.seen is None else attempt.seen
            silence = seen + (config.unresponsive_seconds or 60.0)
            limit = attempt.start + (config.timeout_seconds or float("inf"))
            if min(silence, limit) <= now:
                self.end(rollout, attempt, "timeout" if limit <= silence else "unresponsive", None, now)
        # Those whose end is noticed together may be queued in any order.
        together = set[str]().union(*self.queue[before:])
        self.queue[before:] = [together] if together else []

    def enough(self, wanted: Sequence[str], quorum: float) -> bool:
        """Whether a wait for these rollouts has an end; what is deleted is not waited for."""
        pending = [key for key in wanted if key in self.rollouts and not self.rollouts[key].final]
        return len(wanted) - len(pending) >= quorum * len(wanted)

    def final_of(self, wanted: Sequence[str]) -> list[str]:
        """Return those that are there and final."""
        return [key for key in wanted if key in self.rollouts and self.rollouts[key].final]

    def vacuum(self, before: float) -> list[ModelRollout]:
        """Delete what ended before a time, and return it."""
        old = [r for r in self.rollouts.values() if r.end is not None and r.end < before]
        for rollout in old:
            del self.rollouts[rollout.rollout_id]
        self.workers = {worker: seen for worker, seen in self.workers.items() if seen >= before}
        return old
