"""The rules of rollouts and attempts, as pure functions. No store decides any of this again.

A rollout waits in the queue (``queuing``, ``requeuing``), is worked on (``preparing``, ``running``) or is final
(``succeeded``, ``failed``, ``cancelled``). An attempt is live (``preparing``, ``running``), ``unresponsive``, or ended
for good. Functions take values and return new values; they change nothing. Times are seconds since the epoch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, get_args

from lightning_core.errors import ConfigurationError, FinalRolloutError, InvalidTransitionError
from lightning_core.types import (
    Attempt,
    AttemptStatus,
    FailureReason,
    RolloutConfig,
    RolloutStatus,
    RolloutV2,
)

__all__ = [
    "DEFAULT_LEASE_SECONDS",
    "LIVE_ATTEMPT_STATUSES",
    "QUEUED_STATUSES",
    "WORKER_SILENCE_SECONDS",
    "Change",
    "allowed_pending",
    "begin_attempt",
    "check_request",
    "deadline",
    "expire",
    "heartbeat",
    "is_live",
    "is_of_request",
    "is_queued",
    "is_retried",
    "report_attempt",
    "report_rollout",
    "request_prefix",
    "sign_of_life",
]

DEFAULT_LEASE_SECONDS = 60.0
WORKER_SILENCE_SECONDS = 60.0

QUEUED_STATUSES: frozenset[RolloutStatus] = frozenset({"queuing", "requeuing"})
_ROLLOUT_STATUSES: tuple[RolloutStatus, ...] = get_args(RolloutStatus)
_ATTEMPT_STATUSES: tuple[AttemptStatus, ...] = get_args(AttemptStatus)
_REASONS: tuple[FailureReason, ...] = get_args(FailureReason)
# What is assumed of an attempt whose reporter gives no reason.
_USUAL_REASONS: dict[AttemptStatus, FailureReason | None] = {
    "succeeded": None,
    "failed": "agent_error",
    "timeout": "timeout",
    "unresponsive": "unresponsive",
    "cancelled": "cancelled",
}
LIVE_ATTEMPT_STATUSES: frozenset[AttemptStatus] = frozenset({"preparing", "running"})
# Not the agent's fault, and most likely different the next time.
_LOSSES: frozenset[FailureReason | None] = frozenset({"unresponsive", "infrastructure"})
_ENDED_FOR_GOOD: frozenset[AttemptStatus] = frozenset({"succeeded", "cancelled"})


class Change(NamedTuple):
    """A rollout and its attempt after an event; either may be what it was."""

    rollout: RolloutV2
    attempt: Attempt


def is_queued(rollout: RolloutV2) -> bool:
    """Whether a worker may take the rollout."""
    return rollout.status in QUEUED_STATUSES


def is_live(attempt: Attempt) -> bool:
    """Whether the attempt holds a lease."""
    return attempt.status in LIVE_ATTEMPT_STATUSES


def is_retried(config: RolloutConfig, attempt: Attempt) -> bool:
    """Whether a rollout with this config gets another attempt after this one, its latest.

    After an attempt that was lost it does, ``max_losses`` times. Beyond that, and for all other endings,
    ``retry_condition`` and ``max_attempts`` decide, and those lost attempts do not count.
    """
    if is_live(attempt) or attempt.status in _ENDED_FOR_GOOD:
        return False
    if attempt.reason in _LOSSES and attempt.lost_before < config.max_losses:
        return True
    condition = config.retry_condition
    tries = attempt.sequence_id - min(attempt.lost_before, config.max_losses)
    return (attempt.status in condition or attempt.reason in condition) and tries < config.max_attempts


def deadline(config: RolloutConfig, attempt: Attempt) -> tuple[float, AttemptStatus]:
    """Return when a live attempt expires unless it shows a sign of life, and what it becomes then."""
    lease = config.unresponsive_seconds or DEFAULT_LEASE_SECONDS
    silent_since = attempt.start_time if attempt.last_heartbeat_time is None else attempt.last_heartbeat_time
    expiry = silent_since + lease
    if config.timeout_seconds is not None:
        limit = attempt.start_time + config.timeout_seconds
        if limit <= expiry:
            return limit, "timeout"
    return expiry, "unresponsive"


def begin_attempt(
    rollout: RolloutV2, previous: Attempt | None, attempt_id: str, worker_id: str | None, now: float
) -> tuple[Change, Attempt | None]:
    """Begin the next attempt of a rollout.

    Returns:
        The change, and the previous attempt if this one supersedes it while it was live.

    Raises:
        FinalRolloutError: If the rollout has ended.
    """
    if rollout.is_final:
        raise FinalRolloutError(
            f"rollout {rollout.rollout_id!r} has ended ({rollout.status}): no new attempt can begin; "
            "enqueue the task again instead"
        )
    superseded, lost_before = None, 0
    if previous is not None:
        lost_before = previous.lost_before + (previous.reason in _LOSSES)
        if is_live(previous):
            superseded = _ended(previous, "cancelled", now, "cancelled", {"detail": "superseded"})
    attempt = Attempt.trusted(
        {
            "rollout_id": rollout.rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": previous.sequence_id + 1 if previous is not None else 1,
            "start_time": now,
            "end_time": None,
            "status": "preparing",
            "worker_id": worker_id,
            "last_heartbeat_time": None,
            "reason": None,
            "metadata": {},
            "lost_before": lost_before,
        }
    )
    return Change(rollout.replace(status="preparing"), attempt), superseded


def check_request(worker_id: str | None, request_id: str | None) -> None:
    """Refuse a dequeue whose repetition could not be told.

    Raises:
        ConfigurationError: If there is a request and no worker.
    """
    if request_id is not None and worker_id is None:
        raise ConfigurationError(
            f"request_id={request_id!r} needs a worker_id: the request is looked up among the worker's attempts"
        )


def request_prefix(request_id: str | None) -> str | None:
    """Return how the ids of attempts begin that a call with this ``request_id`` begins, up to the last dash."""
    return None if request_id is None else f"at-{request_id}"


def is_of_request(attempt_id: str, prefix: str) -> bool:
    """Whether an attempt was begun by the request of which this is the :func:`request_prefix`."""
    # What follows the last dash is the attempt's own; the request's id may have dashes of its own.
    return attempt_id.rpartition("-")[0] == prefix


def sign_of_life(rollout: RolloutV2, attempt: Attempt, *, is_latest: bool, now: float) -> Change:
    """A span or a heartbeat of the attempt has arrived: renew its lease.

    An ``unresponsive`` attempt comes back to life while its rollout is not final and no newer attempt exists. Other
    ended attempts stay as they are, and so does a superseded one.
    """
    revivable = is_live(attempt) or attempt.status == "unresponsive"
    if rollout.is_final or not is_latest or not revivable:
        return Change(rollout, attempt)
    # A clock that jumps back, or a worker's clock that is behind, must not shorten the lease.
    seen = max(now, attempt.last_heartbeat_time or attempt.start_time)
    attempt = attempt.replace(status="running", end_time=None, last_heartbeat_time=seen, reason=None)
    if rollout.status != "running":
        rollout = rollout.replace(status="running")
    return Change(rollout, attempt)


def heartbeat(
    rollout: RolloutV2, attempt: Attempt, reported: float, *, is_latest: bool, now: float
) -> Change:
    """A heartbeat that says when it was sent, by a worker's clock: one that is ahead must not lengthen the lease."""
    return sign_of_life(rollout, attempt, is_latest=is_latest, now=min(now, reported))


def allowed_pending(number: int, quorum: float) -> int:
    """Return how many of ``number`` rollouts need not be final for a wait with this quorum to end.

    Raises:
        ConfigurationError: If ``quorum`` is not above 0 and at most 1.
    """
    if not 0 < quorum <= 1:
        raise ConfigurationError(f"quorum must be above 0 and at most 1, not {quorum!r}")
    # Rounded first: 0.9 of 10 is 9, though their product in floating point is a little more.
    needed = math.ceil(round(quorum * number, 9))
    return max(number - max(needed, 1), 0)


def expire(rollout: RolloutV2, attempt: Attempt, now: float) -> Change | None:
    """End a live attempt whose lease or time limit has run out; ``None`` if it has not."""
    if not is_live(attempt):
        return None
    due, status = deadline(rollout.config, attempt)
    if now < due:
        return None
    if status == "timeout":
        detail = f"the attempt ran longer than timeout_seconds={rollout.config.timeout_seconds:g}"
    else:
        lease = rollout.config.unresponsive_seconds or DEFAULT_LEASE_SECONDS
        detail = f"no span or heartbeat for {lease:g} s: the worker is stuck or gone"
    return _end(rollout, attempt, status, now, _USUAL_REASONS[status], {"detail": detail})


def report_attempt(
    rollout: RolloutV2,
    attempt: Attempt,
    status: AttemptStatus,
    *,
    is_latest: bool,
    now: float,
    reason: FailureReason | None = None,
) -> Change:
    """Somebody reports the attempt's status.

    Only the latest attempt of a rollout that is not final counts. An attempt that has ended for good stays as it
    is; an ``unresponsive`` one may still report its end, since its work was done and nobody has begun it again.
    ``reason`` says why it did not succeed; without one it is what the status makes likely.

    Raises:
        InvalidTransitionError: If there is no such status.
        ConfigurationError: If there is no such reason.
    """
    if reason is not None and reason not in _REASONS:
        raise ConfigurationError(f"{reason!r} is no reason of a failure: it is one of {', '.join(_REASONS)}")
    if status not in _ATTEMPT_STATUSES:
        raise InvalidTransitionError(
            f"attempt {attempt.attempt_id!r} cannot become {status!r}: an attempt is {', '.join(_ATTEMPT_STATUSES)}"
        )
    if status in LIVE_ATTEMPT_STATUSES:
        change = sign_of_life(rollout, attempt, is_latest=is_latest, now=now)
        if status == "preparing" and change.attempt is not attempt:
            # Preparing is no step back for an attempt that runs already.
            before = attempt.status if attempt.status == "running" else "preparing"
            running = before == "running"
            return Change(
                change.rollout if running else change.rollout.replace(status="preparing"),
                change.attempt.replace(status=before),
            )
        return change
    reportable = is_live(attempt) or attempt.status == "unresponsive"
    if rollout.is_final or not is_latest or not reportable:
        return Change(rollout, attempt)
    if status == "succeeded":
        reason = None
    return _end(rollout, attempt, status, now, reason or _USUAL_REASONS[status], {})


def report_rollout(
    rollout: RolloutV2, latest: Attempt | None, status: RolloutStatus, now: float
) -> tuple[RolloutV2, Attempt | None]:
    """Somebody sets the rollout's status; the latest attempt follows.

    Raises:
        InvalidTransitionError: If there is no such status, or a rollout without a live attempt is said to be worked on.
    """
    if status not in _ROLLOUT_STATUSES:
        raise InvalidTransitionError(
            f"rollout {rollout.rollout_id!r} cannot become {status!r}: a rollout is {', '.join(_ROLLOUT_STATUSES)}"
        )
    if rollout.is_final or status == rollout.status:
        return rollout, latest
    live = latest is not None and is_live(latest)
    if status in ("preparing", "running"):
        if latest is None or not live:
            raise InvalidTransitionError(
                f"rollout {rollout.rollout_id!r} is {rollout.status} and has no live attempt, so it cannot be "
                f"{status}: call start_attempt or dequeue it"
            )
        return rollout.replace(status=status), latest.replace(status=status)
    if status in QUEUED_STATUSES:
        if latest is not None and live:
            latest = _ended(latest, "cancelled", now, "cancelled", {"detail": "requeued"})
        return rollout.replace(status=status if latest is None else "requeuing"), latest
    if latest is not None and live:
        ending: AttemptStatus = (
            "succeeded" if status == "succeeded" else "failed" if status == "failed" else "cancelled"
        )
        latest = _ended(latest, ending, now, _USUAL_REASONS[ending], {})
    return rollout.replace(status=status, end_time=now), latest


def _ended(
    attempt: Attempt,
    status: AttemptStatus,
    now: float,
    reason: FailureReason | None,
    metadata: dict[str, Any],
) -> Attempt:
    if metadata:
        metadata = attempt.metadata | metadata
    return attempt.replace(status=status, end_time=now, reason=reason, metadata=metadata or attempt.metadata)


def _end(
    rollout: RolloutV2,
    attempt: Attempt,
    status: AttemptStatus,
    now: float,
    reason: FailureReason | None,
    metadata: dict[str, Any],
) -> Change:
    attempt = _ended(attempt, status, now, reason, metadata)
    if status == "succeeded" or status == "cancelled":
        return Change(rollout.replace(status=status, end_time=now), attempt)
    if is_retried(rollout.config, attempt):
        return Change(rollout.replace(status="requeuing"), attempt)
    return Change(rollout.replace(status="failed", end_time=now), attempt)
