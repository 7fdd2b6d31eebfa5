"""Store tests: a vacuum deletes what is old and final, and nothing else is ever deleted."""

from __future__ import annotations

import asyncio

import pytest

from lightning_core.errors import UnknownRolloutError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.types import (
    AttemptedRollout,
    NamedResources,
    PromptTemplate,
    RolloutConfig,
    RolloutStatus,
    Run,
)

from ._store_setup import PATIENCE, FakeClock, begin_waiting, make_span, status_of, take


class VacuumTests:
    """Retention is explicit: what ended before a time goes, with all that belongs to it."""

    async def test_old_final_rollouts_go_with_all_that_is_theirs(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """And what was deleted is counted, and unknown from then on."""
        old = [await _ended(store, status) for status in ("succeeded", "failed", "cancelled", "failed")]
        clock.advance(100)
        kept = await _ended(store, "succeeded")
        deleted = await store.vacuum(before=clock.now - 50)
        assert deleted.rollouts == {"succeeded": 1, "failed": 2, "cancelled": 1}
        assert (deleted.attempts, deleted.spans, deleted.runs, deleted.resources) == (8, 12, 0, 0)
        for rollout in old:
            assert await store.get_rollout_by_id(rollout.rollout_id) is None
            assert await store.get_latest_attempt(rollout.rollout_id) is None
            assert await store.query_attempts(rollout.rollout_id) == []
            assert await store.query_spans(rollout.rollout_id) == []
            assert await store.query_encoded_spans(rollout.rollout_id, "latest") == []
            with pytest.raises(UnknownRolloutError, match=rollout.rollout_id):
                await store.add_spans([make_span(rollout, "1")])
            with pytest.raises(UnknownRolloutError):
                await store.update_rollout(rollout.rollout_id, metadata={"a": 1})
            key = rollout.rollout_id, rollout.attempt.attempt_id
            assert await store.renew_leases("w", [key]) == [key[1]]
        assert [r.rollout_id for r in await store.query_rollouts()] == [kept.rollout_id]
        assert len(await store.query_spans(kept.rollout_id)) == 3
        statistics = await store.statistics()
        assert (statistics.rollouts, statistics.attempts, statistics.spans) == ({"succeeded": 1}, 2, 3)

    async def test_what_ended_then_or_later_stays(self, store: LightningStore, clock: FakeClock) -> None:
        """``before`` is exclusive, and a second vacuum finds nothing."""
        first = await _ended(store, "succeeded")
        clock.advance(1)
        await _ended(store, "succeeded")
        assert (await store.vacuum(before=0)).model_dump(exclude_defaults=True) == {}
        assert (await store.vacuum(before=clock.now - 1)).rollouts == {}
        deleted = await store.vacuum(before=clock.now)
        assert (deleted.rollouts, deleted.attempts, deleted.spans) == ({"succeeded": 1}, 2, 3)
        assert await store.get_rollout_by_id(first.rollout_id) is None
        assert (await store.vacuum(before=clock.now)).rollouts == {}
        # The time when the deleted one's lease would have run out.
        clock.advance(1_000)
        assert len(await store.query_rollouts()) == 1

    async def test_live_work_is_left_alone_however_old(self, store: LightningStore, clock: FakeClock) -> None:
        """What is queued, waits for a retry or is worked on goes its way, in order."""
        config = RolloutConfig(max_attempts=2, unresponsive_seconds=100_000)
        await store.enqueue_rollouts([EnqueueRequest(input=n, config=config) for n in range(5)])
        running, retried, ended = await store.dequeue_rollouts(3, "w")
        await store.add_spans([make_span(rollout, "a") for rollout in (running, retried, ended)])
        await store.update_attempt(retried.rollout_id, "latest", status="failed")
        await store.update_rollout(ended.rollout_id, status="succeeded")
        clock.advance(1_000)
        deleted = await store.vacuum(before=clock.now)
        assert (deleted.rollouts, deleted.attempts, deleted.spans) == ({"succeeded": 1}, 1, 1)
        assert await status_of(store, running.rollout_id) == ("running", ["running"])
        assert (await store.add_span(make_span(running, "b"))).sequence_id == 2
        done = await store.update_attempt(running.rollout_id, "latest", status="succeeded")
        assert done.status == "succeeded"
        assert len(await store.query_spans(retried.rollout_id)) == 1
        await store.enqueue_rollout(5)
        assert [rollout.input for rollout in await store.dequeue_rollouts(9)] == [3, 4, 1, 5]
        assert [rollout.input for rollout in await store.query_rollouts()] == [0, 1, 3, 4, 5]
        ids = [rollout.rollout_id for rollout in reversed(await store.query_rollouts())]
        assert [r.input for r in await store.query_rollouts(rollout_ids=ids)] == [0, 1, 3, 4, 5]

    async def test_a_lease_that_ran_out_meanwhile_is_not_old(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """A rollout becomes final when that is noticed, here by the vacuum itself."""
        rollout = await take(store, unresponsive_seconds=10)
        clock.advance(1_000)
        assert (await store.vacuum(before=clock.now)).rollouts == {}
        assert (await status_of(store, rollout.rollout_id))[0] == "failed"

    async def test_idempotency_keys_of_deleted_rollouts_are_free(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Those of others are not."""
        old = await store.enqueue_rollout(1, idempotency_key="old")
        live = await store.enqueue_rollout(2, idempotency_key="live")
        await store.update_rollout(old.rollout_id, status="cancelled")
        clock.advance(10)
        await store.vacuum(before=clock.now)
        new = await store.enqueue_rollout(3, idempotency_key="old")
        assert (new.input, new.rollout_id != old.rollout_id) == (3, True)
        assert (await store.enqueue_rollout(4, idempotency_key="live")).rollout_id == live.rollout_id
        assert [rollout.input for rollout in await store.dequeue_rollouts(9)] == [2, 3]

    async def test_runs_that_ended_go_with_their_states(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """Those that have not, or not long ago, stay."""
        now = clock.now
        await store.save_run(Run(run_id="old", status="failed", start_time=now, end_time=now))
        await store.save_run(Run(run_id="open", start_time=now))
        await store.save_run(Run(run_id="new", status="succeeded", start_time=now, end_time=now + 100))
        for run_id in ("old", "open", "new"):
            await store.save_run_state(run_id, {"of": run_id})
        assert (await store.vacuum(before=now + 50)).runs == 1
        assert [run.run_id for run in await store.query_runs()] == ["open", "new"]
        assert await store.load_run_state("old") is None
        assert await store.load_run_state("open") == {"of": "open"}
        assert await store.load_run_state("new") == {"of": "new"}
        assert (await store.statistics()).runs == 2

    async def test_rollouts_of_a_run_are_counted_without_the_deleted(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """In the statistics and queries of that run."""
        for number in range(3):
            await store.enqueue_rollout(number, run_id="run")
        first = await store.dequeue_rollout(run_id="run")
        assert first is not None
        await store.update_rollout(first.rollout_id, status="succeeded")
        clock.advance(10)
        await store.vacuum(before=clock.now)
        assert (await store.statistics(run_id="run")).rollouts == {"queuing": 2}
        assert [rollout.input for rollout in await store.query_rollouts(run_id="run")] == [1, 2]
        assert [r.input for r in await store.dequeue_rollouts(9, run_id="run")] == [1, 2]

    async def test_workers_that_were_not_seen_since_go(self, store: LightningStore, clock: FakeClock) -> None:
        """They are there again when they come back."""
        await store.update_worker("old", heartbeat_stats={"cpu": 1})
        await take(store, "taker")
        clock.advance(10)
        await store.update_worker("new")
        assert (await store.vacuum(before=clock.now)).workers == 2
        assert [worker.worker_id for worker in await store.query_workers()] == ["new"]
        again = await store.update_worker("old")
        assert (again.status, again.heartbeat_stats) == ("idle", {})
        assert (await store.statistics()).workers == 2

    async def test_resources_that_nobody_can_need_go(self, store: LightningStore, clock: FakeClock) -> None:
        """The latest stay, those that a remaining rollout names, and those updated since."""
        resources: NamedResources = {"prompt": PromptTemplate(template="{x}")}
        for name in ("unused", "of-old", "of-live", "of-both", "updated", "latest"):
            await store.update_resources(name, resources)
        old = [await store.enqueue_rollout(1, resources_id=name) for name in ("of-old", "of-both")]
        for name in ("of-live", "of-both"):
            await store.enqueue_rollout(1, resources_id=name)
        moved = await store.enqueue_rollout(1, resources_id="unused")
        await store.update_rollout(moved.rollout_id, resources_id="of-live")
        for rollout in old:
            await store.update_rollout(rollout.rollout_id, status="cancelled")
        clock.advance(10)
        await store.update_resources("updated", resources)
        latest = await store.update_resources("latest", resources)
        clock.advance(10)
        assert (await store.vacuum(before=clock.now - 15)).resources == 2
        for name in ("unused", "of-old"):
            assert await store.get_resources_by_id(name) is None
        for name in ("of-live", "of-both", "updated"):
            assert await store.get_resources_by_id(name) is not None
        assert (await store.vacuum(before=clock.now)).resources == 1
        assert await store.get_resources_by_id("updated") is None
        assert await store.get_latest_resources() == latest
        assert (await store.statistics()).resources == 3

    async def test_a_deleted_rollout_is_not_waited_for(self, store: LightningStore, clock: FakeClock) -> None:
        """A wait that was under way ends without it; a new one does not know it."""
        old = await _ended(store, "succeeded")
        live = await take(store, unresponsive_seconds=1_000)
        ids = [old.rollout_id, live.rollout_id]
        waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids))
        await begin_waiting(waiting)
        clock.advance(10)
        assert (await store.vacuum(before=clock.now)).rollouts == {"succeeded": 1}
        await begin_waiting(waiting)
        await store.update_attempt(live.rollout_id, "latest", status="failed")
        async with asyncio.timeout(PATIENCE):
            assert [rollout.rollout_id for rollout in await waiting] == [live.rollout_id]
        with pytest.raises(UnknownRolloutError, match=old.rollout_id):
            await store.wait_for_rollouts(rollout_ids=ids, timeout=0)

    async def test_others_go_on_while_much_is_deleted(self, store: LightningStore, clock: FakeClock) -> None:
        """What is written meanwhile is all there, and only what was old is gone."""
        old = [EnqueueRequest(input="old", idempotency_key=f"old{n}") for n in range(1_200)]
        await store.enqueue_rollouts(old)
        rollouts = await store.dequeue_rollouts(1_200, "w")
        for start in range(0, 1_200, 100):
            part = rollouts[start : start + 100]
            await store.add_spans([make_span(rollout, span_id) for rollout in part for span_id in "ab"])
            await asyncio.gather(*(store.update_rollout(r.rollout_id, status="succeeded") for r in part))
        clock.advance(10)
        vacuum = asyncio.create_task(store.vacuum(before=clock.now))
        for number in range(20):
            await store.enqueue_rollout(number, idempotency_key=f"new{number}")
            rollout = await store.dequeue_rollout("w")
            assert rollout is not None
            await store.add_spans([make_span(rollout, "a")])
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        deleted = await vacuum
        assert (deleted.rollouts, deleted.attempts, deleted.spans) == ({"succeeded": 1_200}, 1_200, 2_400)
        assert [rollout.input for rollout in await store.query_rollouts()] == list(range(20))
        statistics = await store.statistics()
        assert (statistics.rollouts, statistics.attempts, statistics.spans) == ({"succeeded": 20}, 20, 20)


async def _ended(store: LightningStore, status: RolloutStatus) -> AttemptedRollout:
    """Return a rollout that has ended so, with two attempts and three spans."""
    first = await take(store, "ended", max_attempts=2)
    await store.add_spans([make_span(first, "a"), make_span(first, "b")])
    second = await store.start_attempt(first.rollout_id, "ended")
    await store.add_spans([make_span(second, "a")])
    await store.update_rollout(first.rollout_id, status=status)
    return second
