"""Store tests: the queue hands out every rollout once, in order."""

from __future__ import annotations

import asyncio

import pytest

from lightning_core.errors import UnserializableValueError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.types import RolloutConfig

from ._store_setup import FakeClock


class QueueTests:
    """Queue order, exactly-once dequeue, idempotent and atomic enqueue."""

    async def test_the_queue_is_first_in_first_out(self, store: LightningStore) -> None:
        """Also across single and several enqueues and dequeues."""
        first = await store.enqueue_rollout(0)
        more = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(1, 5)])
        assert [rollout.input for rollout in [first, *more]] == [0, 1, 2, 3, 4]
        taken = await store.dequeue_rollouts(2)
        assert [rollout.input for rollout in taken] == [0, 1]
        taken = await store.dequeue_rollouts(10)
        assert [rollout.input for rollout in taken] == [2, 3, 4]
        assert await store.dequeue_rollouts(10) == []
        assert await store.enqueue_rollouts([]) == []

    async def test_a_limit_of_zero_takes_nothing(self, store: LightningStore) -> None:
        """And the rollout stays in the queue."""
        await store.enqueue_rollout(0)
        assert await store.dequeue_rollouts(0) == []
        assert len(await store.dequeue_rollouts(1)) == 1

    async def test_work_of_one_run_is_taken_in_order(self, store: LightningStore) -> None:
        """Other runs' rollouts keep their places."""
        for number in range(6):
            await store.enqueue_rollout(number, run_id="even" if number % 2 == 0 else "odd")
        odd = await store.dequeue_rollouts(2, run_id="odd")
        assert [rollout.input for rollout in odd] == [1, 3]
        assert await store.dequeue_rollouts(2, run_id="none") == []
        rest = await store.dequeue_rollouts(10)
        assert [rollout.input for rollout in rest] == [0, 2, 4, 5]

    async def test_a_retried_rollout_goes_to_the_end_and_is_dequeued_once(
        self, store: LightningStore
    ) -> None:
        """Trap 7."""
        for number in range(3):
            await store.enqueue_rollout(number, config=RolloutConfig(max_attempts=2))
        first = await store.dequeue_rollout()
        assert first is not None
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        assert [rollout.input for rollout in await store.dequeue_rollouts(10)] == [1, 2, 0]
        assert await store.dequeue_rollouts(10) == []

    async def test_a_rollout_cancelled_while_queued_is_never_dequeued(self, store: LightningStore) -> None:
        """Trap 7."""
        rollouts = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(3)])
        await store.update_rollout(rollouts[1].rollout_id, status="cancelled")
        assert [rollout.input for rollout in await store.dequeue_rollouts(10)] == [0, 2]

    async def test_a_rollout_updated_while_queued_keeps_its_place(self, store: LightningStore) -> None:
        """Trap 7: it is dequeued once, with its new fields."""
        rollouts = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(3)])
        await store.update_rollout(rollouts[0].rollout_id, input="new", metadata={"a": 1})
        await store.update_rollout(rollouts[0].rollout_id, status="queuing")
        assert [rollout.input for rollout in await store.dequeue_rollouts(10)] == ["new", 1, 2]
        assert await store.dequeue_rollouts(10) == []

    async def test_a_rollout_sent_back_goes_to_the_end_once(self, store: LightningStore) -> None:
        """Trap 7: whether it was queued or being worked on, whose attempt then ends."""
        rollouts = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(3)])
        await store.update_rollout(rollouts[0].rollout_id, status="requeuing")
        taken = await store.dequeue_rollout()
        assert taken is not None
        assert taken.input == 1
        await store.update_rollout(taken.rollout_id, status="queuing")
        assert [rollout.input for rollout in await store.dequeue_rollouts(10)] == [2, 0, 1]
        assert await store.dequeue_rollouts(10) == []
        statuses = [attempt.status for attempt in await store.query_attempts(taken.rollout_id)]
        assert statuses == ["cancelled", "preparing"]

    async def test_start_attempt_takes_a_rollout_off_the_queue(self, store: LightningStore) -> None:
        """Trap 7."""
        rollout = await store.enqueue_rollout(0)
        await store.start_attempt(rollout.rollout_id)
        assert await store.dequeue_rollout() is None

    async def test_leases_that_expire_together_requeue_once_each(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Behind what waits already, and also where some were renewed and one has ended."""
        config = RolloutConfig(max_attempts=2, unresponsive_seconds=10)
        await store.enqueue_rollouts([EnqueueRequest(input=number, config=config) for number in range(5)])
        taken = await store.dequeue_rollouts(4)
        clock.advance(1)
        key = taken[1].rollout_id, taken[1].attempt.attempt_id
        assert await store.renew_leases("worker", [key]) == []
        await store.update_attempt(taken[3].rollout_id, "latest", status="succeeded")
        clock.advance(20)
        again = [rollout.input for rollout in await store.dequeue_rollouts(10)]
        assert again[0] == 4
        assert sorted(again[1:]) == [0, 1, 2]

    async def test_concurrent_workers_share_the_work_without_overlap(self, store: LightningStore) -> None:
        """Trap 7: many at once, with limits of one and of several."""
        await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(60)])

        async def work(number: int) -> list[int]:
            inputs: list[int] = []
            while taken := await store.dequeue_rollouts(1 + number % 3, f"w{number}"):
                inputs += [rollout.input for rollout in taken]
            return inputs

        shares = await asyncio.gather(*(work(number) for number in range(8)))
        assert sorted(number for share in shares for number in share) == list(range(60))

    async def test_a_cancelled_dequeue_loses_no_work(self, store: LightningStore) -> None:
        """Whenever the cancellation comes; the next worker need not wait for a lease to end."""
        rollout = await store.enqueue_rollout({"task": 1})
        for steps in range(12):
            dequeuing = asyncio.create_task(store.dequeue_rollouts(1, "cancelled"))
            for _ in range(steps):
                await asyncio.sleep(0)
            dequeuing.cancel()
            await asyncio.wait({dequeuing})
            if not dequeuing.cancelled():
                await store.update_rollout(rollout.rollout_id, status="requeuing")
            (taken,) = await store.dequeue_rollouts(1, "next", wait=30)
            assert taken.rollout_id == rollout.rollout_id
            await store.update_rollout(rollout.rollout_id, status="requeuing")

    # Enqueue

    async def test_an_idempotency_key_makes_a_repeated_enqueue_harmless(self, store: LightningStore) -> None:
        """The first one's rollout is returned, also within a call and after it has ended."""
        first = await store.enqueue_rollout({"x": 1}, idempotency_key="k")
        assert first.idempotency_key == "k"
        again = await store.enqueue_rollout({"x": 2}, idempotency_key="k")
        assert again == first
        both = await store.enqueue_rollouts(
            [EnqueueRequest(input=3, idempotency_key="l"), EnqueueRequest(input=4, idempotency_key="l")]
        )
        assert both[0].rollout_id == both[1].rollout_id
        assert len(await store.dequeue_rollouts(10)) == 2
        await store.update_rollout(first.rollout_id, status="succeeded")
        late = await store.enqueue_rollout({"x": 1}, idempotency_key="k")
        assert (late.rollout_id, late.status) == (first.rollout_id, "succeeded")
        assert await store.dequeue_rollouts(10) == []

    async def test_what_cannot_be_kept_is_refused_and_named(self, store: LightningStore) -> None:
        """Of several rollouts, all or none are enqueued."""
        if store.capabilities.python_values:
            pytest.skip("this store keeps any Python value")
        bad = {"items": [1, 2, object()]}
        with pytest.raises(UnserializableValueError, match=r"input\.items\[2\]"):
            await store.enqueue_rollouts([EnqueueRequest(input=1), EnqueueRequest(input=bad)])
        with pytest.raises(UnserializableValueError, match=r"metadata\.a"):
            await store.start_rollout(1, metadata={"a": {1, 2}})
        with pytest.raises(UnserializableValueError, match="input"):
            await store.enqueue_rollout({1: "keys are strings"})
        assert await store.query_rollouts() == []

    async def test_any_python_value_is_kept_where_promised(self, store: LightningStore) -> None:
        """``python_values`` means just that."""
        if not store.capabilities.python_values:
            pytest.skip("this store keeps JSON values only")
        value = {"set": {1, 2}, 3: (4, 5), "number": 1j}
        await store.enqueue_rollout(value)
        taken = await store.dequeue_rollout()
        assert taken is not None
        assert taken.input == value
