"""What the store tests share: a clock, and shorthands for the usual steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from lightning_core.store.base import LightningStore
from lightning_core.types import AttemptedRollout, RolloutConfig, Span

__all__ = ["PATIENCE", "Clock", "FakeClock", "make_span", "status_of", "take"]

Clock: TypeAlias = Callable[[], float]
"""Tells the time, in seconds since the epoch."""

PATIENCE = 20.0
"""How long a test waits for something that should happen at once, in seconds."""


class FakeClock:
    """A clock whose time passes only when it is told so.

    Args:
        now: The time at first, in seconds since the epoch.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass, or turn it back."""
        self.now += seconds


def make_span(
    rollout: AttemptedRollout, span_id: str, *, sequence_id: int = 0, name: str = "call", **fields: Any
) -> Span:
    """Return a span of the rollout's attempt; short ``span_id`` are filled up to 16 digits."""
    values: dict[str, Any] = {"attributes": {"key": "value"}, "start_time": 1.0, "end_time": 2.0}
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        span_id=span_id.rjust(16, "0"),
        sequence_id=sequence_id,
        name=name,
        **(values | fields),
    )


async def take(store: LightningStore, worker_id: str = "worker", **config: Any) -> AttemptedRollout:
    """Enqueue a rollout with this config and dequeue the oldest one."""
    await store.enqueue_rollout({"task": 1}, config=RolloutConfig(**config))
    rollout = await store.dequeue_rollout(worker_id)
    assert rollout is not None
    return rollout


async def status_of(store: LightningStore, rollout_id: str) -> tuple[str, list[str]]:
    """Return a rollout's status, and those of its attempts in order."""
    rollout = await store.get_rollout_by_id(rollout_id)
    assert rollout is not None
    return rollout.status, [attempt.status for attempt in await store.query_attempts(rollout_id)]
