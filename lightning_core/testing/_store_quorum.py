"""Store tests: a wait that does not need every rollout."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_core.errors import ConfigurationError, UnknownRolloutError
from lightning_core.store.base import EnqueueRequest, LightningStore

from ._store_setup import PATIENCE, FakeClock, begin_waiting, take


class QuorumTests:
    """A waiter wakes as soon as enough rollouts have ended."""

    async def test_the_slowest_are_not_waited_for(self, store: LightningStore) -> None:
        """With nine tenths of ten, the ninth end wakes."""
        ids = await _enqueue(store, 10)
        waiting = _wait(store, ids, 0.9)
        for number in (9, 8, 7, 6, 5, 4, 3, 2):
            await store.update_rollout(ids[number], status="succeeded")
        await begin_waiting(waiting)
        await store.update_rollout(ids[0], status="failed")
        async with asyncio.timeout(PATIENCE):
            assert [rollout.input for rollout in await waiting] == [0, 2, 3, 4, 5, 6, 7, 8, 9]

    async def test_all_that_is_final_is_returned(self, store: LightningStore) -> None:
        """Also what is more than the quorum, in the order asked for, each once."""
        ids = await _enqueue(store, 4)
        for number in (3, 0, 2):
            await store.update_rollout(ids[number], status="cancelled")
        asked = [ids[3], ids[1], ids[0], ids[2], ids[3]]
        for quorum in (0.01, 0.5, 0.75):
            found = await store.wait_for_rollouts(rollout_ids=asked, quorum=quorum)
            assert [rollout.input for rollout in found] == [3, 0, 2]
        found = await store.wait_for_rollouts(rollout_ids=asked, quorum=0.76, timeout=0)
        assert [rollout.input for rollout in found] == [3, 0, 2]
        assert await store.wait_for_rollouts(rollout_ids=[], quorum=0.5) == []

    async def test_a_quorum_that_is_not_met_in_time_returns_what_there_is(
        self, store: LightningStore
    ) -> None:
        """It is no error: the caller sees how many there are."""
        ids = await _enqueue(store, 4)
        await store.update_rollout(ids[1], status="succeeded")
        found = await store.wait_for_rollouts(rollout_ids=ids, quorum=0.5, timeout=0.1)
        assert [rollout.input for rollout in found] == [1]

    async def test_an_id_that_is_asked_for_twice_counts_once(self, store: LightningStore) -> None:
        """Or one of four would be three quarters."""
        ids = await _enqueue(store, 4)
        waiting = _wait(store, [ids[0]] * 9 + ids, 0.75)
        await store.update_rollout(ids[0], status="succeeded")
        await store.update_rollout(ids[1], status="succeeded")
        await begin_waiting(waiting)
        await store.update_rollout(ids[2], status="succeeded")
        async with asyncio.timeout(PATIENCE):
            assert [rollout.input for rollout in await waiting] == [0, 1, 2]

    async def test_each_waiter_has_its_own_quorum(self, store: LightningStore) -> None:
        """Several wait for the same rollouts, and one gives up."""
        ids = await _enqueue(store, 4)
        waiting = [_wait(store, ids, quorum) for quorum in (0.25, 0.5, 0.5, 1.0)]
        await begin_waiting(*waiting)
        waiting.pop(1).cancel()
        for number in range(4):
            await store.update_rollout(ids[number], status="succeeded")
            if number != 2:
                async with asyncio.timeout(PATIENCE):
                    found = await waiting.pop(0)
                assert [rollout.input for rollout in found] == list(range(number + 1))
            if waiting:
                await begin_waiting(*waiting)

    async def test_an_expired_lease_counts_as_any_other_end(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Whoever notices it."""
        rollout = await take(store, unresponsive_seconds=10)
        other = await take(store, unresponsive_seconds=100)
        waiting = _wait(store, [rollout.rollout_id, other.rollout_id], 0.5)
        await begin_waiting(waiting)
        clock.advance(11)
        assert (await store.statistics()).rollouts == {"failed": 1, "preparing": 1}
        async with asyncio.timeout(PATIENCE):
            assert [found.rollout_id for found in await waiting] == [rollout.rollout_id]

    @pytest.mark.parametrize(
        ("number", "quorum", "needed"), [(3, 1 / 3, 1), (3, 2 / 3, 2), (10, 0.9, 9), (100, 0.07, 7)]
    )
    async def test_a_share_is_not_rounded_up_by_floating_point(
        self, store: LightningStore, number: int, quorum: float, needed: int
    ) -> None:
        """0.07 × 100 is a little more than 7 in floating point."""
        ids = await _enqueue(store, number)
        waiting = _wait(store, ids, quorum)
        for rollout_id in ids[: needed - 1]:
            await store.update_rollout(rollout_id, status="succeeded")
        await begin_waiting(waiting)
        await store.update_rollout(ids[needed - 1], status="succeeded")
        async with asyncio.timeout(PATIENCE):
            assert len(await waiting) == needed

    @pytest.mark.parametrize("quorum", [0, -0.5, 1.01, 90, float("nan")])
    async def test_a_quorum_out_of_range_is_refused(self, store: LightningStore, quorum: Any) -> None:
        """At once, also where there is nothing to wait for."""
        ids = await _enqueue(store, 1)
        await store.update_rollout(ids[0], status="succeeded")
        for asked in (ids, []):
            with pytest.raises(ConfigurationError, match="quorum"):
                await store.wait_for_rollouts(rollout_ids=asked, quorum=quorum, timeout=0)
        with pytest.raises(UnknownRolloutError, match="ro-none"):
            await store.wait_for_rollouts(rollout_ids=[*ids, "ro-none"], quorum=0.5)


async def _enqueue(store: LightningStore, number: int) -> list[str]:
    rollouts = await store.enqueue_rollouts([EnqueueRequest(input=n) for n in range(number)])
    return [rollout.rollout_id for rollout in rollouts]


def _wait(store: LightningStore, ids: list[str], quorum: float) -> asyncio.Task[Any]:
    return asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, quorum=quorum))
