"""Store tests: random histories of several workers, compared with a model after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, TypeVar

from lightning_core.errors import FinalRolloutError, InvalidTransitionError, SpanConflictError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.store.encoding import decode_span, encode_span
from lightning_core.types import (
    FINAL_ROLLOUT_STATUSES,
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    RolloutConfig,
    RolloutStatus,
    RolloutV2,
    Span,
)

from ._store_model import ModelAttempt, ModelRollout, StoreModel
from ._store_setup import PATIENCE, Clock, FakeClock

__all__ = ["History", "MachineTests"]

T = TypeVar("T")


class MachineTests:
    """Whatever several workers, their clocks, lost answers and late reports do, the store is where the rules say."""

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
                max_examples=max(1, self.machine_examples * settings().max_examples // 100),
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
        self._ended: dict[str, str] = {}
        self._runner = asyncio.Runner()
        self._spans = 0
        self._attempt_ids: set[str] = set()
        # The rollouts of the step under way, and what the model knew of each when it was last compared.
        self._aimed: set[str] = set()
        self._compared: dict[str, object] = {}
        self._waiting: tuple[asyncio.Task[list[RolloutV2]], list[str], float] | None = None

    def do(self, call: Awaitable[T]) -> T:
        self.model.expire(self.clock.now)
        return self._runner.run(_patiently(call))

    def pick(self, number: int) -> ModelRollout | None:
        rollouts = list(self.model.rollouts.values())
        if not rollouts:
            return None
        rollout = rollouts[-1 - number % len(rollouts)]
        self._aimed.add(rollout.rollout_id)
        return rollout

    def pick_attempt(self, number: int) -> tuple[ModelRollout, ModelAttempt] | None:
        pairs = [(rollout, a) for rollout in self.model.rollouts.values() for a in rollout.attempts]
        if not pairs:
            return None
        pair = pairs[-1 - number % len(pairs)]
        self._aimed.add(pair[0].rollout_id)
        return pair

    # Putting work in and taking it out

    def enqueue(self, wanted: Sequence[tuple[RolloutConfig, str | None]]) -> None:
        requests = [EnqueueRequest(input=1, config=c, idempotency_key=key) for c, key in wanted]
        rollouts = self.do(self.store.enqueue_rollouts(requests))
        for rollout, (config, key) in zip(rollouts, wanted, strict=True):
            known = self.model.by_key(key)
            if known is None:
                assert rollout.rollout_id not in self.model.rollouts
                self.model.add(ModelRollout(rollout.rollout_id, config, key))
            else:
                assert rollout.rollout_id == known.rollout_id

    def start_rollout(self, config: RolloutConfig, key: str | None, worker: str) -> None:
        try:
            begun = self.do(self.store.start_rollout(1, config=config, worker_id=worker, idempotency_key=key))
        except FinalRolloutError:
            known = self.model.by_key(key)
            assert known is not None
            assert known.final
            assert known.latest is None
            return
        known = self.model.by_key(key)
        if known is None:
            self.model.rollouts[begun.rollout_id] = ModelRollout(begun.rollout_id, config, key)
        elif known.latest is not None:
            assert (begun.rollout_id, begun.attempt.attempt_id) == (
                known.rollout_id,
                known.latest.attempt_id,
            )
            return
        else:
            assert begun.rollout_id == known.rollout_id
        self._begun(begun, worker)

    def dequeue(self, limit: int, worker: str, request: str | None) -> None:
        taken = self.do(self.store.dequeue_rollouts(limit, worker, request_id=request))
        ids = sorted(rollout.attempt.attempt_id for rollout in taken)
        again = self.model.live_of(worker, request) if request is not None else []
        if again:
            assert ids == sorted(again), "not what the same request took before"
            return
        assert len(taken) == min(limit, len(self.model.queued()))
        for rollout in taken:
            assert rollout.rollout_id in self.model.queue[0], "taken out of turn, or twice"
            self._begun(rollout, worker, request)

    def start_attempt(self, rollout: ModelRollout, worker: str | None, request: str | None) -> None:
        known = self.model.begun_by(rollout, request)
        try:
            begun = self.do(self.store.start_attempt(rollout.rollout_id, worker, request_id=request))
        except FinalRolloutError:
            assert rollout.final
            assert known is None
            return
        if known is not None:
            assert begun.attempt.attempt_id == known.attempt_id, "not what the same request began before"
            assert (begun.status, begun.attempt.status) == (rollout.status, known.status)
            return
        assert not rollout.final
        self._begun(begun, worker, request)

    def _begun(self, begun: AttemptedRollout, worker: str | None, request: str | None = None) -> None:
        rollout, attempt_id = self.model.rollouts[begun.rollout_id], begun.attempt.attempt_id
        assert attempt_id not in self._attempt_ids, "an attempt id was used again"
        assert request is None or attempt_id.startswith(f"at-{request}-")
        self._attempt_ids.add(attempt_id)
        self.model.begin(rollout, ModelAttempt(attempt_id, self.clock.now, worker, request))
        assert begun.attempt.sequence_id == len(rollout.attempts)

    # Signs of life and reports

    def write(
        self,
        rollout: ModelRollout,
        attempt: ModelAttempt,
        times: int,
        repeat: bool,
        explicit: int,
        plain: bool,
    ) -> None:
        """Write a new span, with a sequence id of its own or none, along with all earlier ones if ``repeat``."""
        self._spans += 1
        new = f"{self._spans:016x}"
        batch = [*(attempt.spans if repeat else ()), new]
        spans = [_span(rollout, attempt, span_id, explicit if span_id == new else 0) for span_id in batch]
        for _ in range(times):
            is_new = new not in attempt.spans
            taken = is_new and explicit in attempt.spans.values()
            try:
                if plain:
                    written = self.do(self.store.add_spans(spans))
                else:
                    written = self.do(self.store.add_encoded_spans([encode_span(span) for span in spans]))
            except SpanConflictError:
                assert taken
                continue
            assert not taken
            assert written == is_new
            if is_new:
                attempt.spans[new] = explicit or attempt.last_sequence_id + 1
                attempt.last_sequence_id = max(attempt.last_sequence_id, attempt.spans[new])
            self.model.live(rollout, attempt, self.clock.now)

    def reserve(self, rollout: ModelRollout, attempt: ModelAttempt) -> None:
        number = self.do(self.store.get_next_span_sequence_id(rollout.rollout_id, attempt.attempt_id))
        attempt.last_sequence_id += 1
        assert number == attempt.last_sequence_id

    def renew(self, pairs: list[tuple[ModelRollout, ModelAttempt]], worker: str) -> None:
        keys = [(rollout.rollout_id, attempt.attempt_id) for rollout, attempt in pairs]
        lost = self.do(self.store.renew_leases(worker, keys))
        self.model.workers[worker] = self.clock.now
        for rollout, attempt in pairs:
            self.model.live(rollout, attempt, self.clock.now)
        assert lost == [attempt.attempt_id for _, attempt in pairs if not attempt.live]

    def heartbeat(self, rollout: ModelRollout, attempt: ModelAttempt, skew: float) -> None:
        """A heartbeat that says when it was sent, by a clock that is wrong by ``skew``."""
        sent = self.clock.now + skew
        self.do(self.store.update_attempt(rollout.rollout_id, attempt.attempt_id, last_heartbeat_time=sent))
        self.model.live(rollout, attempt, self.clock.now, sent=sent)

    def report(
        self,
        rollout: ModelRollout,
        attempt: ModelAttempt,
        status: AttemptStatus,
        reason: FailureReason | None,
    ) -> None:
        reported = self.do(
            self.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status=status, reason=reason)
        )
        self.model.report(rollout, attempt, status, reason, self.clock.now)
        assert (reported.status, reported.reason) == (attempt.status, attempt.reason)

    def set_rollout(self, rollout: ModelRollout, status: RolloutStatus) -> None:
        try:
            self.do(self.store.update_rollout(rollout.rollout_id, status=status))
        except InvalidTransitionError:
            assert not self.model.set_rollout(rollout, status, self.clock.now)
        else:
            assert self.model.set_rollout(rollout, status, self.clock.now)

    # Waiting, keeping and deleting

    def wait(self, rollouts: list[ModelRollout], quorum: float) -> None:
        """Wait for rollouts: in this step if enough are final, else in the background until enough are."""
        wanted = list(dict.fromkeys(rollout.rollout_id for rollout in rollouts))
        found = self.do(self.store.wait_for_rollouts(rollout_ids=wanted, timeout=0, quorum=quorum))
        assert [rollout.rollout_id for rollout in found] == self.model.final_of(wanted)
        if self._waiting is None:
            waiting = self.do(_begin(self.store.wait_for_rollouts(rollout_ids=wanted, quorum=quorum)))
            self._waiting = waiting, wanted, quorum

    def save_state(self, run_id: str, number: int) -> None:
        self.model.states[run_id] = state = {"step": number}
        self.do(self.store.save_run_state(run_id, state))
        for known in ("a", "b"):
            assert self.do(self.store.load_run_state(known)) == self.model.states.get(known)

    def vacuum(self, seconds: float) -> None:
        """Delete what ended so many seconds ago, but for what somebody waits for at the time."""
        before = self.clock.now - seconds
        wanted = self._waiting[1] if self._waiting is not None else []
        if any(r.end is not None and r.end < before for r in map(self.model.rollouts.get, wanted) if r):
            return
        deleted = self.do(self.store.vacuum(before=before))
        old = self.model.vacuum(before)
        counts: dict[str, int] = {}
        for rollout in old:
            counts[rollout.status] = counts.get(rollout.status, 0) + 1
            del self._ended[rollout.rollout_id]
            del self._compared[rollout.rollout_id]
        assert deleted.rollouts == counts
        assert deleted.attempts == sum(len(rollout.attempts) for rollout in old)
        assert deleted.spans == sum(len(a.spans) for rollout in old for a in rollout.attempts)

    # Comparing

    def check(self) -> None:
        """The store is where the model is: rollouts, counts and workers, and all of what this step has to do with."""
        self._check_rollouts()
        self._check_waiting()
        self.do(self._check_counts())
        for rollout in self.model.rollouts.values():
            known = _facts(rollout)
            if rollout.rollout_id in self._aimed or known != self._compared.get(rollout.rollout_id):
                self.do(self._check_rollout(rollout))
                self._compared[rollout.rollout_id] = known
        self._aimed.clear()

    def _check_rollouts(self) -> None:
        found = self.do(self.store.query_rollouts())
        assert [(r.rollout_id, r.status, r.end_time) for r in found] == [
            (r.rollout_id, r.status, r.end) for r in self.model.rollouts.values()
        ]
        statuses = {rollout.rollout_id: rollout.status for rollout in found}
        for rollout_id, status in self._ended.items():
            assert statuses[rollout_id] == status, "a final state has changed"
        self._ended = {key: value for key, value in statuses.items() if value in FINAL_ROLLOUT_STATUSES}

    def _check_waiting(self) -> None:
        """Who waits is woken when enough have ended, and not before."""
        if self._waiting is None:
            return
        waiting, wanted, quorum = self._waiting
        if self.model.enough(wanted, quorum):
            self._waiting = None
            found = self.do(waiting)
            assert [rollout.rollout_id for rollout in found] == self.model.final_of(wanted)
        else:
            assert not waiting.done()

    async def _check_counts(self) -> None:
        statistics = await self.store.statistics()
        counts: dict[str, int] = {}
        for rollout in self.model.rollouts.values():
            counts[rollout.status] = counts.get(rollout.status, 0) + 1
        attempts = [a for rollout in self.model.rollouts.values() for a in rollout.attempts]
        assert {key: number for key, number in statistics.rollouts.items() if number} == counts
        assert statistics.attempts == len(attempts)
        assert statistics.spans == sum(len(attempt.spans) for attempt in attempts)
        workers = {worker.worker_id: worker for worker in await self.store.query_workers()}
        for worker_id, seen in self.model.workers.items():
            live = self.model.live_of(worker_id)
            if self.clock.now - seen <= 60:
                worker = workers[worker_id]
                assert worker.status == ("busy" if live else "idle")
                assert worker.current_attempt_id in (live or [None])

    async def _check_rollout(self, rollout: ModelRollout) -> None:
        attempts = await self.store.query_attempts(rollout.rollout_id)
        assert [
            (a.attempt_id, a.status, a.reason, a.start_time, a.end_time, a.worker_id) for a in attempts
        ] == [(a.attempt_id, a.status, a.reason, a.start, a.end, a.worker) for a in rollout.attempts]
        assert [a.sequence_id for a in attempts] == list(range(1, len(attempts) + 1))
        spans = await self.store.query_spans(rollout.rollout_id)
        assert [(s.attempt_id, s.span_id, s.sequence_id) for s in spans] == [
            (attempt.attempt_id, span_id, sequence_id)
            for attempt in rollout.attempts
            for span_id, sequence_id in sorted(attempt.spans.items(), key=lambda item: item[1])
        ]

    def close(self) -> None:
        """At the end all is there once more, however it is asked for."""
        try:
            for rollout in self.model.rollouts.values():
                self.do(self._check_rollout(rollout))
                spans = self.do(self.store.query_spans(rollout.rollout_id))
                encoded = self.do(self.store.query_encoded_spans(rollout.rollout_id))
                assert [decode_span(span) for span in encoded] == spans
                latest = self.do(self.store.query_spans(rollout.rollout_id, "latest"))
                last = rollout.latest.attempt_id if rollout.latest is not None else None
                assert latest == [span for span in spans if span.attempt_id == last]
        finally:
            if self._waiting is not None:
                self._waiting[0].cancel()
                self._runner.run(asyncio.wait([self._waiting[0]]))
            self._runner.run(self.store.close())
            self._runner.close()


async def _patiently(call: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await call


async def _begin(call: Awaitable[T]) -> asyncio.Task[T]:
    """Begin to wait, and leave it at that."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    assert isinstance(task, asyncio.Task)
    return task


def _facts(rollout: ModelRollout) -> object:
    attempts = [
        (attempt.attempt_id, attempt.status, attempt.reason, attempt.end, len(attempt.spans))
        for attempt in rollout.attempts
    ]
    return rollout.status, attempts


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
