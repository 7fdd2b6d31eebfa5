"""What the store tests share: a clock, and shorthands for the usual steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from lightning_core.store.base import LightningStore
from lightning_core.types import (
    AttemptedRollout,
    Event,
    Link,
    OtelResource,
    RolloutConfig,
    Span,
    SpanContext,
    TraceStatus,
)

__all__ = [
    "PATIENCE",
    "Clock",
    "FakeClock",
    "begin_waiting",
    "full_span",
    "in_threads",
    "make_span",
    "status_of",
    "take",
]

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


def full_span(rollout: AttemptedRollout) -> Span:
    """Return a span of the rollout's attempt that has every field, unusual values, and one field of its own."""
    context = SpanContext(trace_id="1" * 32, span_id="2" * 16, is_remote=True, trace_state={"a": "b"})
    span = Span(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        sequence_id=3,
        trace_id="1" * 32,
        span_id="2" * 16,
        parent_id="3" * 16,
        name='name with "quotes", 漢字 and \n lines',
        status=TraceStatus(status_code="ERROR", description="went wrong"),
        attributes={
            "text": "\u00e9\U0001f600\x00",
            "half a pair": "\ud800",
            "whole": 2**62,
            "real": 0.1,
            "one": 1.0,
            "flag": True,
            "ids": [1, 2, 3],
            "empty": [],
            "reals": [0.5, 1e-300],
            "limits": [float("inf"), float("-inf")],
        },
        events=[Event(name="event", attributes={"k": ["v"]}, timestamp=1.25), Event(name="bare")],
        links=[Link(context=context, attributes={"k": 1}), Link(context=context)],
        start_time=1_700_000_000.123456,
        end_time=None,
        context=context,
        parent=context,
        resource=OtelResource(attributes={"service.name": "s"}, schema_url="https://example.org"),
    )
    return Span.model_validate({**span.model_dump(), "extra_field": {"nested": [1, None]}})


async def take(store: LightningStore, worker_id: str = "worker", **config: Any) -> AttemptedRollout:
    """Enqueue a rollout with this config, and no losses that do not count, and dequeue the oldest one."""
    config.setdefault("max_losses", 0)
    await store.enqueue_rollout({"task": 1}, config=RolloutConfig(**config))
    rollout = await store.dequeue_rollout(worker_id)
    assert rollout is not None
    return rollout


async def status_of(store: LightningStore, rollout_id: str) -> tuple[str, list[str]]:
    """Return a rollout's status, and those of its attempts in order."""
    rollout = await store.get_rollout_by_id(rollout_id)
    assert rollout is not None
    return rollout.status, [attempt.status for attempt in await store.query_attempts(rollout_id)]


async def begin_waiting(*tasks: asyncio.Task[Any]) -> None:
    """Give tasks the time to begin to wait. Too little would not make a test fail, only test less."""
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)


def in_threads(*mains: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run coroutines, each in a thread and loop of its own, and raise the first error."""
    errors: list[BaseException] = []

    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(main,)) for main in mains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
