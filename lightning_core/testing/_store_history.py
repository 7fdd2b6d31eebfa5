"""Store tests: random histories of several workers, compared with a model after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from lightning_core.errors import FinalRolloutError, InvalidTransitionError, SpanConflictError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.types import (
    FINAL_ROLLOUT_STATUSES,
    AttemptedRollout,
    AttemptStatus,
    RolloutConfig,
    RolloutStatus,
    Span,
)

from ._store_model import ModelAttempt, ModelRollout, StoreModel
from ._store_setup import PATIENCE, Clock, FakeClock

__all__ = ["ATTEMPT_STATUSES", "CONFIGS", "ROLLOUT_STATUSES", "History", "MachineTests"]

T = TypeVar("T")

CONFIGS = [
    RolloutConfig(),
    RolloutConfig(max_attempts=3, unresponsive_seconds=10),
    RolloutConfig(max_attempts=2, unresponsive_seconds=30, timeout_seconds=40),
    RolloutConfig(max_attempts=5, unresponsive_seconds=10, retry_condition=["unresponsive"]),
]
ATTEMPT_STATUSES: list[AttemptStatus] = [
    "preparing",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "timeout",
    "unresponsive",
]
ROLLOUT_STATUSES: list[RolloutStatus] = [
    "queuing",
    "requeuing",
    "preparing",
    "running",
    "succeeded",
    "failed",
    "cancelled",
]


class MachineTests:
    """Whatever several workers, a clock and late reports do, the store is where the rules say."""

    machine_examples: ClassVar[int] = 60
    machine_steps: ClassVar[int] = 30

    def test_random_histories_follow_the_rules(self, make_store: Callable[[Clock], LightningStore]) -> None:
        """Traps 3 to 7, 12, 13 and 17 in any combination."""
        # Here, so that the other tests do without hypothesis.
        from hypothesis import HealthCheck, settings
        from hypothesis.stateful import run_state_machine_as_test

        from ._store_machine import StoreMachine

        class Machine(StoreMachine):
            def __init__(self) -> None:
                clock = FakeClock()
                super().__init__(History(make_store(clock), clock))

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.machine_examples,
                stateful_step_count=self.machine_steps,
                deadline=None,
                # The same histories every time: a failure in CI can be seen again.
                derandomize=True,
                database=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )


class History:
    """A store and its model, taken through the same steps."""

    def __init__(self, store: LightningStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.model = StoreModel()
        self.ended: dict[str, str] = {}
        self._runner = asyncio.Runner()
        self._spans = 0

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        self.model.expire(self.clock.now)
        return self._runner.run(asyncio.wait_for(call, PATIENCE))

    def pick(self, number: int) -> ModelRollout | None:
        rollouts = list(self.model.rollouts.values())
        return rollouts[-1 - number % len(rollouts)] if rollouts else None

    def pick_attempt(self, number: int) -> tuple[ModelRollout, ModelAttempt] | None:
        pairs = [(rollout, a) for rollout in self.model.rollouts.values() for a in rollout.attempts]
        return pairs[-1 - number % len(pairs)] if pairs else None

    def enqueue(self, configs: list[RolloutConfig]) -> None:
        requests = [EnqueueRequest(input=1, config=config) for config in configs]
        for rollout in self.do(self.store.enqueue_rollouts(requests)):
            self.model.add(ModelRollout(rollout.rollout_id, rollout.config))

    def dequeue(self, limit: int, worker: int) -> None:
        taken = self.do(self.store.dequeue_rollouts(limit, f"w{worker}"))
        assert len(taken) == min(limit, len(self.model.queued()))
        for rollout in taken:
            assert rollout.rollout_id in self.model.queue[0], "taken out of turn, or twice"
            self._begun(rollout)

    def start_attempt(self, rollout: ModelRollout) -> None:
        try:
            begun = self.do(self.store.start_attempt(rollout.rollout_id))
        except FinalRolloutError:
            assert rollout.final
        else:
            assert not rollout.final
            self._begun(begun)

    def _begun(self, begun: AttemptedRollout) -> None:
        rollout = self.model.rollouts[begun.rollout_id]
        self.model.begin(rollout, begun.attempt.attempt_id, self.clock.now)
        assert begun.attempt.sequence_id == len(rollout.attempts)

    def write(self, rollout: ModelRollout, attempt: ModelAttempt, repeat: bool, explicit: int) -> None:
        """Write a new span, with a sequence id of its own or none, along with all earlier ones if ``repeat``."""
        self._spans += 1
        new = f"{self._spans:016x}"
        taken = explicit in attempt.spans.values()
        batch = [*(attempt.spans if repeat else ()), new]
        spans = [_span(rollout, attempt, span_id, explicit if span_id == new else 0) for span_id in batch]
        try:
            assert self.do(self.store.add_spans(spans)) == 1
        except SpanConflictError:
            assert taken
            return
        assert not taken
        attempt.spans[new] = explicit or attempt.last_sequence_id + 1
        attempt.last_sequence_id = max(attempt.last_sequence_id, attempt.spans[new])
        self.model.live(rollout, attempt, self.clock.now)

    def reserve(self, rollout: ModelRollout, attempt: ModelAttempt) -> None:
        number = self.do(self.store.get_next_span_sequence_id(rollout.rollout_id, attempt.attempt_id))
        attempt.last_sequence_id += 1
        assert number == attempt.last_sequence_id

    def renew(self, pairs: list[tuple[ModelRollout, ModelAttempt]], worker: int) -> None:
        keys = [(rollout.rollout_id, attempt.attempt_id) for rollout, attempt in pairs]
        lost = self.do(self.store.renew_leases(f"w{worker}", keys))
        for rollout, attempt in pairs:
            self.model.live(rollout, attempt, self.clock.now)
        expected = [a.attempt_id for _, a in pairs if a.status not in ("preparing", "running")]
        assert lost == expected

    def report(self, rollout: ModelRollout, attempt: ModelAttempt, status: AttemptStatus) -> None:
        reported = self.do(self.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status=status))
        self.model.report(rollout, attempt, status, self.clock.now)
        assert reported.status == attempt.status

    def set_rollout(self, rollout: ModelRollout, status: RolloutStatus) -> None:
        try:
            self.do(self.store.update_rollout(rollout.rollout_id, status=status))
        except InvalidTransitionError:
            assert not self.model.set_rollout(rollout, status)
        else:
            assert self.model.set_rollout(rollout, status)

    def check(self) -> None:
        """The store is where the model is."""
        self.do(self._check())

    async def _check(self) -> None:
        found = {rollout.rollout_id: rollout.status for rollout in await self.store.query_rollouts()}
        assert found == {key: rollout.status for key, rollout in self.model.rollouts.items()}
        for rollout_id, status in self.ended.items():
            assert found[rollout_id] == status, "a final state has changed"
        self.ended = {key: status for key, status in found.items() if status in FINAL_ROLLOUT_STATUSES}
        for rollout in self.model.rollouts.values():
            attempts = await self.store.query_attempts(rollout.rollout_id) if rollout.attempts else []
            assert [(a.attempt_id, a.status) for a in attempts] == [
                (a.attempt_id, a.status) for a in rollout.attempts
            ]

    def close(self) -> None:
        """At the end every span is there, in order, and the counts are right."""
        try:
            written = 0
            for rollout in self.model.rollouts.values():
                expected = [
                    (attempt.attempt_id, span_id, sequence_id)
                    for attempt in rollout.attempts
                    for span_id, sequence_id in sorted(attempt.spans.items(), key=lambda item: item[1])
                ]
                spans = self.do(self.store.query_spans(rollout.rollout_id))
                assert [(s.attempt_id, s.span_id, s.sequence_id) for s in spans] == expected
                latest = self.do(self.store.query_spans(rollout.rollout_id, "latest"))
                last = rollout.latest.attempt_id if rollout.latest is not None else None
                assert latest == [span for span in spans if span.attempt_id == last]
                written += len(spans)
            statistics = self.do(self.store.statistics())
            assert statistics.spans == written
            assert statistics.attempts == sum(len(r.attempts) for r in self.model.rollouts.values())
            assert sum(statistics.rollouts.values()) == len(self.model.rollouts)
        finally:
            self._runner.run(self.store.close())
            self._runner.close()


def _span(rollout: ModelRollout, attempt: ModelAttempt, span_id: str, sequence_id: int) -> Span:
    return Span.from_attributes(
        rollout_id=rollout.rollout_id,
        attempt_id=attempt.attempt_id,
        span_id=span_id,
        sequence_id=sequence_id,
        attributes={"n": 1},
        start_time=0.0,
        end_time=0.0,
    )
