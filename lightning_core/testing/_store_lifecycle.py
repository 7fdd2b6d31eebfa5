"""Store tests: final states, leases, retries and late reports."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from lightning_core.errors import (
    FinalRolloutError,
    InvalidTransitionError,
    UnknownAttemptError,
    UnknownRolloutError,
)
from lightning_core.store.base import LightningStore
from lightning_core.types import AttemptedRollout, AttemptStatus, RolloutConfig, RolloutStatus

from ._store_setup import FakeClock, make_span, status_of, take

_FINAL: list[RolloutStatus] = ["succeeded", "failed", "cancelled"]
_ENDINGS: list[AttemptStatus] = ["succeeded", "failed", "cancelled", "timeout", "unresponsive"]
_ANY_STATUS: list[RolloutStatus] = ["queuing", "requeuing", "preparing", "running", *_FINAL]


class LifecycleTests:
    """Final states absorb, leases expire, and only the latest attempt counts."""

    async def test_a_rollout_goes_from_queue_to_success(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """The usual way, with the status and times of each step."""
        start = clock.now
        rollout = await store.enqueue_rollout({"x": [1, None, "é"]}, mode="val", metadata={"a": 1})
        assert (rollout.status, rollout.start_time, rollout.end_time) == ("queuing", start, None)
        assert (rollout.input, rollout.mode, rollout.metadata) == ({"x": [1, None, "é"]}, "val", {"a": 1})
        clock.advance(1)
        taken = await store.dequeue_rollout("w")
        assert taken is not None
        assert (taken.rollout_id, taken.status, taken.attempt.status) == (
            rollout.rollout_id,
            "preparing",
            "preparing",
        )
        assert (taken.attempt.sequence_id, taken.attempt.worker_id, taken.attempt.start_time) == (
            1,
            "w",
            start + 1,
        )
        await store.add_span(make_span(taken, "1"))
        assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        clock.advance(1)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (attempt.status, attempt.end_time) == ("succeeded", start + 2)
        done = await store.get_rollout_by_id(rollout.rollout_id)
        assert done is not None
        assert (done.status, done.end_time, done.input) == ("succeeded", start + 2, {"x": [1, None, "é"]})

    async def test_start_rollout_does_not_pass_the_queue(self, store: LightningStore) -> None:
        """A started rollout has its first attempt, and nobody else is given it."""
        rollout = await store.start_rollout({"x": 1}, "train", worker_id="w", run_id="r")
        assert (rollout.status, rollout.attempt.sequence_id, rollout.attempt.worker_id, rollout.run_id) == (
            "preparing",
            1,
            "w",
            "r",
        )
        assert await store.dequeue_rollout() is None
        assert await store.get_latest_attempt(rollout.rollout_id) == rollout.attempt

    @pytest.mark.parametrize("final", _FINAL)
    async def test_final_states_absorb_late_reports(
        self, store: LightningStore, clock: FakeClock, final: RolloutStatus
    ) -> None:
        """Trap 4: whoever reports late, a final rollout keeps its status and its end time."""
        rollout = await take(store, max_attempts=5)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        ended = await store.update_rollout(rollout.rollout_id, status=final)
        assert ended.status == final
        clock.advance(5)
        for status in _ANY_STATUS:
            assert (await store.update_rollout(rollout.rollout_id, status=status)).status == final
        for attempt_status in ("preparing", "running", *_ENDINGS):
            await store.update_attempt(*key, status=attempt_status)
        await store.update_attempt(*key, last_heartbeat_time=clock.now)
        await store.add_span(make_span(rollout, "1"))
        assert await store.renew_leases("worker", [key]) == [rollout.attempt.attempt_id]
        clock.advance(1_000)
        after = await store.get_rollout_by_id(rollout.rollout_id)
        assert after is not None
        assert (after.status, after.end_time) == (final, ended.end_time)
        assert await store.dequeue_rollout() is None
        assert (await status_of(store, rollout.rollout_id))[1] == [final]

    @pytest.mark.parametrize("status", _ENDINGS)
    async def test_the_end_of_an_attempt_without_retries_ends_its_rollout(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        """Trap 1: a cancelled attempt ends the rollout cancelled, never succeeded."""
        rollout = await take(store)
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status=status)
        expected = status if status in ("succeeded", "cancelled") else "failed"
        assert await status_of(store, rollout.rollout_id) == (expected, [status])
        assert await store.dequeue_rollout() is None

    async def test_a_failure_is_retried_until_attempts_run_out(self, store: LightningStore) -> None:
        """``max_attempts`` counts all attempts, the first one included."""
        rollout = await take(store, max_attempts=2)
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert await status_of(store, rollout.rollout_id) == ("requeuing", ["failed"])
        again = await store.dequeue_rollout()
        assert again is not None
        assert (again.rollout_id, again.attempt.sequence_id) == (rollout.rollout_id, 2)
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert await status_of(store, rollout.rollout_id) == ("failed", ["failed", "failed"])

    async def test_only_endings_of_the_retry_condition_are_retried(self, store: LightningStore) -> None:
        """``retry_condition`` names the endings worth another attempt."""
        rollout = await take(store, max_attempts=3, retry_condition=["timeout"])
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    # Leases

    async def test_expired_lease_requeues_once_and_another_worker_gets_it(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 3: a runner that is killed after dequeue does not keep the rollout for ever."""
        rollout = await take(store, "dead", max_attempts=2, unresponsive_seconds=10)
        clock.advance(9.9)
        assert await store.dequeue_rollout("alive") is None
        clock.advance(0.2)
        # Waits, since whoever looks after leases may be about to put it back into the queue.
        [again] = await store.dequeue_rollouts(1, "alive", wait=30)
        assert (again.rollout_id, again.attempt.sequence_id, again.attempt.worker_id) == (
            rollout.rollout_id,
            2,
            "alive",
        )
        assert await store.dequeue_rollout("alive") is None
        first, _ = await store.query_attempts(rollout.rollout_id)
        assert (first.status, first.reason) == ("unresponsive", "unresponsive")

    async def test_expired_lease_without_retries_fails(self, store: LightningStore, clock: FakeClock) -> None:
        """The default lease is 60 seconds, and whoever looks first sees the rollout failed."""
        rollout = await take(store)
        clock.advance(59)
        assert await status_of(store, rollout.rollout_id) == ("preparing", ["preparing"])
        clock.advance(2)
        [found] = await store.query_rollouts(status=["failed"])
        assert (found.rollout_id, found.end_time) == (rollout.rollout_id, clock.now)

    @pytest.mark.parametrize("sign", ["span", "heartbeat", "renewal", "status"])
    async def test_signs_of_life_renew_the_lease(
        self, store: LightningStore, clock: FakeClock, sign: str
    ) -> None:
        """Spans, heartbeats, renewals and reports each count, and silence after them does not."""
        rollout = await take(store, unresponsive_seconds=10)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        for number in range(5):
            clock.advance(6)
            if sign == "span":
                await store.add_spans([make_span(rollout, str(number))])
            elif sign == "heartbeat":
                await store.update_attempt(*key, last_heartbeat_time=clock.now)
            elif sign == "renewal":
                assert await store.renew_leases("worker", [key]) == []
            else:
                await store.update_attempt(*key, status="running")
        assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        clock.advance(10.1)
        assert await status_of(store, rollout.rollout_id) == ("failed", ["unresponsive"])

    async def test_heartbeats_do_not_extend_the_time_limit(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """``timeout_seconds`` is measured from the start of the attempt."""
        rollout = await take(store, timeout_seconds=20, unresponsive_seconds=15)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        clock.advance(10)
        assert await store.renew_leases("worker", [key]) == []
        clock.advance(10.1)
        assert await store.renew_leases("worker", [key]) == [rollout.attempt.attempt_id]
        assert await status_of(store, rollout.rollout_id) == ("failed", ["timeout"])

    async def test_a_shortened_lease_counts_at_once(self, store: LightningStore, clock: FakeClock) -> None:
        """A new config applies to the attempt that is live."""
        rollout = await take(store, unresponsive_seconds=100)
        config = RolloutConfig(unresponsive_seconds=5, max_losses=0)
        await store.update_rollout(rollout.rollout_id, config=config)
        clock.advance(6)
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    # Late signs of life

    async def test_a_span_revives_an_unresponsive_attempt_and_takes_it_off_the_queue(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 5, the allowed half: the rollout waits for a retry, and nobody has begun one."""
        rollout = await _unresponsive(store, clock)
        await store.add_span(make_span(rollout, "1"))
        assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        assert await store.dequeue_rollout() is None
        clock.advance(11)
        assert await status_of(store, rollout.rollout_id) == ("requeuing", ["unresponsive"])

    async def test_an_unresponsive_attempt_may_still_report_success(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Its work was done, and nobody has begun it again."""
        rollout = await _unresponsive(store, clock)
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        assert await status_of(store, rollout.rollout_id) == ("succeeded", ["succeeded"])
        assert await store.dequeue_rollout() is None

    async def test_nothing_revives_a_superseded_attempt(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 5: once a newer attempt exists, the older one's writes are evidence and no more."""
        rollout = await _unresponsive(store, clock)
        newer = await store.dequeue_rollout("other")
        assert newer is not None
        key = rollout.rollout_id, rollout.attempt.attempt_id
        await store.add_span(make_span(rollout, "1"))
        await store.update_attempt(*key, status="succeeded", metadata={"late": True})
        assert await store.renew_leases("worker", [key]) == [rollout.attempt.attempt_id]
        assert await status_of(store, rollout.rollout_id) == ("preparing", ["unresponsive", "preparing"])
        assert len(await store.query_spans(*key)) == 1
        old, _ = await store.query_attempts(rollout.rollout_id)
        assert old.metadata["late"] is True

    async def test_a_span_never_revives_an_attempt_of_a_failed_rollout(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 5: the rollout has failed with its attempt; the span is kept all the same."""
        rollout = await take(store, unresponsive_seconds=10)
        clock.advance(11)
        await store.add_span(make_span(rollout, "1"))
        assert await status_of(store, rollout.rollout_id) == ("failed", ["unresponsive"])
        assert len(await store.query_spans(rollout.rollout_id)) == 1

    async def test_a_span_never_revives_a_timed_out_attempt(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Trap 5: a time limit is final for the attempt, though its rollout is retried."""
        rollout = await take(store, timeout_seconds=5, max_attempts=2)
        clock.advance(6)
        await store.add_span(make_span(rollout, "1"))
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        assert await status_of(store, rollout.rollout_id) == ("requeuing", ["timeout"])
        assert await store.dequeue_rollout() is not None

    async def test_start_attempt_supersedes_a_live_one(self, store: LightningStore) -> None:
        """Only the newest attempt is live, and it decides."""
        first = await take(store)
        second = await store.start_attempt(first.rollout_id, "other")
        assert second.attempt.sequence_id == 2
        assert await status_of(store, first.rollout_id) == ("preparing", ["cancelled", "preparing"])
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="failed")
        await store.update_attempt(first.rollout_id, second.attempt.attempt_id, status="succeeded")
        assert await status_of(store, first.rollout_id) == ("succeeded", ["cancelled", "succeeded"])

    @pytest.mark.parametrize("how", ["started", "dequeued"])
    async def test_a_report_on_the_latest_attempt_meets_no_older_one(
        self, store: LightningStore, clock: FakeClock, how: str
    ) -> None:
        """Whichever comes first, the report or a retry beside it: the latest attempt is the one that then counts."""
        for number in range(24):
            rollout = await take(store, max_attempts=2, unresponsive_seconds=10)
            if how == "dequeued":
                clock.advance(11)

            async def retry(rollout_id: str = rollout.rollout_id, steps: int = number // 3) -> None:
                for _ in range(steps):
                    await asyncio.sleep(0)
                if how == "dequeued":
                    await store.dequeue_rollouts(1, "other")
                    return
                with suppress(FinalRolloutError):
                    await store.start_attempt(rollout_id, "other")

            _, reported = await asyncio.gather(
                retry(), store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            )
            status, attempts = await status_of(store, rollout.rollout_id)
            assert (status, attempts[-1]) == ("succeeded", "succeeded")
            assert (reported.status, reported.sequence_id) == ("succeeded", len(attempts))

    # Changing fields, and errors

    async def test_fields_change_and_metadata_is_merged(self, store: LightningStore) -> None:
        """``None`` is a value; what is not given stays."""
        rollout = await store.enqueue_rollout({"x": 1}, "train", "res", metadata={"a": 1, "b": 1})
        config = RolloutConfig(max_attempts=7)
        await store.update_rollout(
            rollout.rollout_id, {"x": 2}, None, config=config, metadata={"b": 2, "c": [3]}
        )
        changed = await store.get_rollout_by_id(rollout.rollout_id)
        assert changed is not None
        assert (changed.input, changed.mode, changed.resources_id) == ({"x": 2}, None, "res")
        assert (changed.config, changed.metadata) == (config, {"a": 1, "b": 2, "c": [3]})
        taken = await store.dequeue_rollout()
        assert taken is not None
        await store.update_attempt(taken.rollout_id, "latest", worker_id="w", metadata={"a": 1})
        attempt = await store.update_attempt(taken.rollout_id, "latest", metadata={"b": 2})
        assert (attempt.worker_id, attempt.metadata, attempt.status) == (
            "w",
            {"a": 1, "b": 2},
            "preparing",
        )

    async def test_only_metadata_of_a_final_rollout_changes(self, store: LightningStore) -> None:
        """Anything else is refused, and changes nothing."""
        rollout = await store.enqueue_rollout({"x": 1})
        await store.update_rollout(rollout.rollout_id, status="cancelled")
        changed = await store.update_rollout(rollout.rollout_id, metadata={"note": "late"})
        assert changed.metadata == {"note": "late"}
        with pytest.raises(FinalRolloutError):
            await store.update_rollout(rollout.rollout_id, input={"x": 2})
        with pytest.raises(FinalRolloutError):
            await store.start_attempt(rollout.rollout_id)
        after = await store.get_rollout_by_id(rollout.rollout_id)
        assert after is not None
        assert after.input == {"x": 1}

    async def test_a_rollout_without_live_attempt_cannot_be_running(self, store: LightningStore) -> None:
        """The refusal changes nothing, and the rollout is dequeued as before."""
        rollout = await store.enqueue_rollout({"x": 1})
        with pytest.raises(InvalidTransitionError):
            await store.update_rollout(rollout.rollout_id, status="running", metadata={"a": 1})
        after = await store.get_rollout_by_id(rollout.rollout_id)
        assert after is not None
        assert (after.status, after.metadata) == ("queuing", {})
        assert await store.dequeue_rollout() is not None

    async def test_an_unknown_status_is_refused(self, store: LightningStore) -> None:
        """A misspelled status must not leave a rollout in a state that nobody knows."""
        rollout = await take(store)
        wrong: Any = "succeded"
        with pytest.raises(InvalidTransitionError, match="succeded"):
            await store.update_rollout(rollout.rollout_id, status=wrong)
        with pytest.raises(InvalidTransitionError, match="succeded"):
            await store.update_attempt(rollout.rollout_id, "latest", status=wrong)
        [kept] = await store.query_rollouts()
        assert kept.status == "preparing"

    async def test_unknown_rollouts_and_attempts_are_errors(self, store: LightningStore) -> None:
        """Writes name what is unknown; reads find nothing."""
        for call in (
            store.start_attempt("ro-none"),
            store.update_rollout("ro-none", status="failed"),
            store.update_attempt("ro-none", "latest", status="failed"),
            store.get_next_span_sequence_id("ro-none", "at-none"),
        ):
            with pytest.raises(UnknownRolloutError, match="ro-none"):
                await call
        queued = await store.enqueue_rollout({"x": 1})
        for call in (
            store.update_attempt(queued.rollout_id, "latest", status="failed"),
            store.update_attempt(queued.rollout_id, "at-none", status="failed"),
            store.get_next_span_sequence_id(queued.rollout_id, "at-none"),
        ):
            with pytest.raises(UnknownAttemptError):
                await call
        assert await store.get_rollout_by_id("ro-none") is None
        assert await store.get_latest_attempt("ro-none") is None
        assert await store.get_latest_attempt(queued.rollout_id) is None
        assert await store.query_attempts("ro-none") == []
        assert await store.query_spans("ro-none") == []
        assert await store.renew_leases("w", [("ro-none", "at-none")]) == ["at-none"]


async def _unresponsive(store: LightningStore, clock: FakeClock) -> AttemptedRollout:
    """Return a rollout that waits for its second attempt, since its first one fell silent."""
    rollout = await take(store, max_attempts=2, unresponsive_seconds=10)
    clock.advance(11)
    assert await status_of(store, rollout.rollout_id) == ("requeuing", ["unresponsive"])
    return rollout
