"""Store tests: clocks that jump, and workers whose clock is wrong."""

from __future__ import annotations

import pytest

from lightning_core.store.base import LightningStore
from lightning_core.types import RolloutConfig

from ._store_setup import FakeClock, make_span, status_of, take


class ClockTests:
    """No clock makes an attempt expire early, live for ever, or changes what has ended."""

    async def test_a_heartbeat_from_a_clock_that_is_ahead_counts_as_now(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """A lease cannot be lengthened by a wrong clock."""
        rollout = await take(store, unresponsive_seconds=10)
        attempt = await store.update_attempt(
            rollout.rollout_id, "latest", last_heartbeat_time=clock.now + 1_000
        )
        assert (attempt.status, attempt.last_heartbeat_time) == ("running", clock.now)
        clock.advance(9)
        assert (await status_of(store, rollout.rollout_id))[0] == "running"
        clock.advance(1.1)
        assert await status_of(store, rollout.rollout_id) == ("failed", ["unresponsive"])

    @pytest.mark.parametrize("behind", [5, 1_000, 2_000_000_000])
    async def test_a_heartbeat_from_a_clock_that_is_behind_does_not_shorten_the_lease(
        self, store: LightningStore, clock: FakeClock, behind: float
    ) -> None:
        """Neither that of the dequeue, nor that of an earlier renewal."""
        rollout = await take(store, unresponsive_seconds=10)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        clock.advance(4)
        assert (await store.update_attempt(*key, last_heartbeat_time=clock.now - behind)).status == "running"
        clock.advance(5.9)
        assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        await store.renew_leases("worker", [key])
        await store.update_attempt(*key, last_heartbeat_time=clock.now - behind)
        clock.advance(9.9)
        assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        clock.advance(0.2)
        assert await status_of(store, rollout.rollout_id) == ("failed", ["unresponsive"])

    async def test_an_earlier_heartbeat_renews_from_when_it_was_sent(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """A heartbeat that was long under way is no sign of life now."""
        rollout = await take(store, unresponsive_seconds=10)
        clock.advance(8)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=clock.now - 3)
        assert attempt.last_heartbeat_time == clock.now - 3
        clock.advance(6.9)
        assert (await status_of(store, rollout.rollout_id))[0] == "running"
        clock.advance(0.2)
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    async def test_a_clock_that_jumps_back_does_not_shorten_a_lease(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """A renewal never makes a lease end earlier, nor does a first sign of life."""
        renewed = await take(store, unresponsive_seconds=10)
        clock.advance(8)
        await store.renew_leases("worker", [(renewed.rollout_id, renewed.attempt.attempt_id)])
        new = await take(store, unresponsive_seconds=10)
        clock.advance(-6)
        await store.renew_leases("worker", [(renewed.rollout_id, renewed.attempt.attempt_id)])
        await store.add_span(make_span(new, "a"))
        clock.advance(13)
        for rollout in (renewed, new):
            assert await status_of(store, rollout.rollout_id) == ("running", ["running"])
        clock.advance(3.1)
        for rollout in (renewed, new):
            assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    async def test_a_clock_that_jumps_to_and_fro_loses_nothing(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """What has expired stays so, what begins has its whole lease, and the order is that of events."""
        config = RolloutConfig(unresponsive_seconds=10, max_attempts=2, max_losses=0)
        for number in range(3):
            await store.enqueue_rollout(number, config=config)
        first = await store.dequeue_rollout("w")
        assert first is not None
        clock.advance(100_000)
        # The lease of the first one has run out: it waits behind the others.
        assert (await status_of(store, first.rollout_id))[0] == "requeuing"
        clock.advance(-200_000)
        assert await status_of(store, first.rollout_id) == ("requeuing", ["unresponsive"])
        taken = await store.dequeue_rollouts(9, "w")
        assert [rollout.input for rollout in taken] == [1, 2, 0]
        clock.advance(9)
        keys = [(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in taken]
        assert await store.renew_leases("w", keys[:2]) == []
        await store.add_spans([make_span(taken[0], "a"), make_span(taken[0], "b")])
        clock.advance(-5)
        await store.add_spans([make_span(taken[0], "c")])
        spans = await store.query_spans(taken[0].rollout_id)
        assert [(span.span_id[-1], span.sequence_id) for span in spans] == [("a", 1), ("b", 2), ("c", 3)]
        clock.advance(7)
        assert await store.renew_leases("w", keys) == [keys[2][1]]
        assert await status_of(store, first.rollout_id) == ("failed", ["unresponsive", "unresponsive"])
        clock.advance(-1_000)
        assert await status_of(store, first.rollout_id) == ("failed", ["unresponsive", "unresponsive"])
        assert (await store.update_attempt(*keys[1], status="succeeded")).status == "succeeded"
        [worker] = await store.query_workers()
        assert (worker.status, worker.current_attempt_id) == ("busy", keys[0][1])
