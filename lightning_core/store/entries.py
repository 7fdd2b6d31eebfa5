"""What one rollout and one attempt are to the memory store, and how new records are made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from lightning_core.errors import SpanConflictError
from lightning_core.store.base import EnqueueRequest
from lightning_core.store.lifecycle import is_of_request
from lightning_core.types import (
    Attempt,
    Deletion,
    ResourcesUpdate,
    RolloutConfig,
    RolloutV2,
    Run,
    RunState,
    Span,
    Worker,
)
from lightning_core.types._model import copy_value

__all__ = [
    "AttemptEntry",
    "Record",
    "RolloutEntry",
    "conflict",
    "new_id",
    "new_rollout",
    "refuse_conflicts",
]

Record: TypeAlias = RolloutV2 | Attempt | Span | ResourcesUpdate | Worker | Run | RunState | Deletion
"""Everything that a store keeps, and the deletion of some of it."""


class AttemptEntry:
    """An attempt and its spans."""

    __slots__ = ("attempt", "last_sequence_id", "sequence_ids", "sorted", "spans")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.spans: dict[str, Span] = {}
        self.sequence_ids: set[int] = set()
        self.last_sequence_id = 0
        self.sorted = True

    def ordered(self) -> Iterable[Span]:
        """The spans in the order of their sequence ids."""
        if not self.sorted:
            self.spans = dict(sorted(self.spans.items(), key=lambda item: item[1].sequence_id))
            self.sorted = True
        return self.spans.values()


class RolloutEntry:
    """A rollout and its attempts, oldest first."""

    __slots__ = ("attempts", "latest", "number", "rollout")

    def __init__(self, rollout: RolloutV2, number: int) -> None:
        self.rollout = rollout
        self.number = number
        self.attempts: dict[str, AttemptEntry] = {}
        self.latest: AttemptEntry | None = None

    def begun(self, prefix: str) -> AttemptEntry | None:
        """Return the last attempt that the request with this prefix has begun."""
        attempts = reversed(self.attempts.values())
        return next((a for a in attempts if is_of_request(a.attempt.attempt_id, prefix)), None)


def new_id(prefix: str) -> str:
    """Make an id that nobody else makes."""
    return f"{prefix}-{os.urandom(8).hex()}"


# Most rollouts have one of a few configs. Stored records are never changed, so those that are equal are kept once.
_configs: dict[tuple[Any, ...], RolloutConfig] = {}


def _shared(config: RolloutConfig) -> RolloutConfig:
    key = (
        config.timeout_seconds,
        config.unresponsive_seconds,
        config.max_attempts,
        tuple(config.retry_condition),
        config.max_losses,
    )
    known = _configs.get(key)
    if known is None:
        if len(_configs) >= 1_000:
            return config.detached()
        known = _configs[key] = config.detached()
    return known


def conflict(span: Span) -> SpanConflictError:
    """The error for a span whose sequence id another span has."""
    return SpanConflictError(
        f"span {span.span_id!r} claims sequence id {span.sequence_id} of attempt {span.attempt_id!r}, "
        "which another span has; leave it at 0 to have one drawn"
    )


def new_rollout(request: EnqueueRequest, now: float) -> RolloutV2:
    """Make a queued rollout, which shares nothing with the request."""
    return RolloutV2.trusted(
        {
            "rollout_id": new_id("ro"),
            "input": copy_value(request.input),
            "start_time": now,
            "end_time": None,
            "mode": request.mode,
            "resources_id": request.resources_id,
            "status": "queuing",
            "config": _shared(request.config),
            "metadata": copy_value(request.metadata) if request.metadata else {},
            "run_id": request.run_id,
            "idempotency_key": request.idempotency_key,
        }
    )


def refuse_conflicts(spans: Sequence[Span], attempts: Sequence[AttemptEntry]) -> None:
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
            raise conflict(span)
        seen.add((name, span.span_id))
        claimed.add((name, wanted))
        last[name] = max(drawn, wanted)
