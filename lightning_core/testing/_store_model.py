"""The rules of the store contract once more, in plain Python, for the random histories to compare with.

It shares no code with ``lightning_core.store.lifecycle`` on purpose: what both get wrong in the same way must be
written twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_core.types import RolloutConfig

__all__ = ["ModelAttempt", "ModelRollout", "StoreModel"]

_FINAL = ("succeeded", "failed", "cancelled")
_LIVE = ("preparing", "running")


@dataclass
class ModelAttempt:
    """What the model knows of an attempt: ``spans`` maps span ids to sequence ids."""

    attempt_id: str
    start: float
    seen: float | None = None
    status: str = "preparing"
    spans: dict[str, int] = field(default_factory=dict[str, int])
    last_sequence_id: int = 0


@dataclass
class ModelRollout:
    """What the model knows of a rollout."""

    rollout_id: str
    config: RolloutConfig
    status: str = "queuing"
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
        rollouts: By id.
        queue: Groups of rollout ids, oldest first; within a group any order is right.
    """

    def __init__(self) -> None:
        self.rollouts: dict[str, ModelRollout] = {}
        self.queue: list[set[str]] = []

    def add(self, rollout: ModelRollout) -> None:
        """A rollout is enqueued."""
        self.rollouts[rollout.rollout_id] = rollout
        self.queue.append({rollout.rollout_id})

    def queued(self) -> list[str]:
        """Return the ids in the queue."""
        return [rollout_id for group in self.queue for rollout_id in group]

    def set_status(self, rollout: ModelRollout, status: str) -> None:
        """Change a rollout's status and its place in the queue."""
        if rollout.status == status:
            return
        assert not rollout.final, "the model itself must not change a final state"
        rollout.status = status
        for group in self.queue:
            group.discard(rollout.rollout_id)
        if status in ("queuing", "requeuing"):
            self.queue.append({rollout.rollout_id})
        self.queue = [group for group in self.queue if group]

    def begin(self, rollout: ModelRollout, attempt_id: str, now: float) -> None:
        """A new attempt begins."""
        latest = rollout.latest
        if latest is not None and latest.status in _LIVE:
            latest.status = "cancelled"
        rollout.attempts.append(ModelAttempt(attempt_id, now))
        self.set_status(rollout, "preparing")

    def live(self, rollout: ModelRollout, attempt: ModelAttempt, now: float, status: str = "running") -> None:
        """A sign of life, or a report of a live status."""
        revived = attempt.status == "unresponsive" and not rollout.final
        if attempt is not rollout.latest or not (attempt.status in _LIVE or revived):
            return
        attempt.seen = max(now, attempt.seen or now)
        if attempt.status == "running":
            status = "running"
        attempt.status = status
        self.set_status(rollout, status)

    def end(self, rollout: ModelRollout, attempt: ModelAttempt, status: str) -> None:
        """An attempt has ended, and that counts."""
        attempt.status = status
        if status in ("succeeded", "cancelled"):
            self.set_status(rollout, status)
        elif status in rollout.config.retry_condition and len(rollout.attempts) < rollout.config.max_attempts:
            self.set_status(rollout, "requeuing")
        else:
            self.set_status(rollout, "failed")

    def report(self, rollout: ModelRollout, attempt: ModelAttempt, status: str, now: float) -> None:
        """Somebody reports an attempt's status."""
        if status in _LIVE:
            self.live(rollout, attempt, now, status)
        elif not rollout.final and attempt is rollout.latest and attempt.status in (*_LIVE, "unresponsive"):
            self.end(rollout, attempt, status)

    def set_rollout(self, rollout: ModelRollout, status: str) -> bool:
        """Somebody sets a rollout's status; returns whether that is allowed."""
        if rollout.final or status == rollout.status:
            return True
        latest = rollout.latest
        live = latest is not None and latest.status in _LIVE
        if status in _LIVE:
            if latest is None or not live:
                return False
            latest.status = status
        elif latest is not None:
            if live:
                latest.status = status if status in _FINAL else "cancelled"
            if status == "queuing":
                status = "requeuing"
        self.set_status(rollout, status)
        return True

    def expire(self, now: float) -> None:
        """Time has passed: leases and time limits run out."""
        before = len(self.queue)
        for rollout in self.rollouts.values():
            attempt, config = rollout.latest, rollout.config
            if attempt is None or attempt.status not in _LIVE:
                continue
            seen = attempt.start if attempt.seen is None else attempt.seen
            silence = seen + (config.unresponsive_seconds or 60.0)
            limit = attempt.start + (config.timeout_seconds or float("inf"))
            if min(silence, limit) <= now:
                self.end(rollout, attempt, "timeout" if limit <= silence else "unresponsive")
        # Those whose end is noticed together may be queued in any order.
        together = set[str]().union(*self.queue[before:])
        self.queue[before:] = [together] if together else []
