"""Store tests: waiting, threads and event loops, and that no call costs more the more is stored."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lightning_core.errors import StoreClosedError, UnknownRolloutError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.store.encoding import encode_span
from lightning_core.types import RolloutConfig

from ._store_setup import PATIENCE, Clock, FakeClock, begin_waiting, in_threads, make_span, take


class WaitingTests:
    """Waiting is event-driven and cheap, wherever the event comes from."""

    async def test_waiting_without_time_returns_at_once(self, store: LightningStore) -> None:
        """``timeout=0`` gives what is final now, in the order asked for, each once."""
        rollouts = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(4)])
        ids = [rollout.rollout_id for rollout in rollouts]
        assert await store.wait_for_rollouts(rollout_ids=ids, timeout=0) == []
        for number in (0, 2, 3):
            await store.update_rollout(ids[number], status="succeeded")
        asked = [ids[3], ids[1], ids[0], ids[3]]
        found = await store.wait_for_rollouts(rollout_ids=asked, timeout=0)
        assert [rollout.input for rollout in found] == [3, 0]
        assert await store.wait_for_rollouts(rollout_ids=[]) == []
        with pytest.raises(UnknownRolloutError, match="ro-none"):
            await store.wait_for_rollouts(rollout_ids=[ids[0], "ro-none"], timeout=0)

    async def test_waiting_for_many_holds_no_thread_for_each_and_keeps_its_time(
        self, store: LightningStore
    ) -> None:
        """Trap 9: 10,000 ids, and a time limit that is kept."""
        ids: list[str] = []
        for start in range(0, 10_000, 1_000):
            requests = [EnqueueRequest(input=number) for number in range(start, start + 1_000)]
            ids += [rollout.rollout_id for rollout in await store.enqueue_rollouts(requests)]
        await store.update_rollout(ids[7], status="failed")
        threads = threading.active_count()
        waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, timeout=0.3))
        started = time.monotonic()
        await asyncio.sleep(0.1)
        assert threading.active_count() <= threads + 4
        found = await waiting
        # Generous, since a machine may be busy; one wait after the other would take an hour.
        assert time.monotonic() - started < PATIENCE / 2
        assert [rollout.input for rollout in found] == [7]
        # One more is enough here, and wakes at once.
        waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, quorum=2 / 10_000))
        await begin_waiting(waiting)
        await store.update_rollout(ids[9_999], status="cancelled")
        async with asyncio.timeout(PATIENCE):
            assert [rollout.input for rollout in await waiting] == [7, 9_999]

    async def test_waiting_ends_when_the_last_rollout_ends(self, store: LightningStore) -> None:
        """However the end comes about: a report, a cancellation, or a failure."""
        await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(3)])
        taken = await store.dequeue_rollouts(3)
        ids = [rollout.rollout_id for rollout in taken]
        waiting = [asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids)) for _ in range(2)]
        await store.update_attempt(ids[0], "latest", status="succeeded")
        await store.update_rollout(ids[1], status="cancelled")
        one = await store.wait_for_rollouts(rollout_ids=ids[:2], timeout=PATIENCE)
        assert len(one) == 2
        assert not any(task.done() for task in waiting)
        await store.update_attempt(ids[2], "latest", status="failed")
        async with asyncio.timeout(PATIENCE):
            for task in waiting:
                assert [rollout.input for rollout in await task] == [0, 1, 2]

    async def test_rollouts_that_end_while_a_wait_begins_are_not_missed(self, store: LightningStore) -> None:
        """One before it is registered, another while it looks again: each look alone misses one of the two."""
        await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(120)])
        taken = await store.dequeue_rollouts(120)
        ids = [rollout.rollout_id for rollout in taken]

        async def end(first: int, steps: int) -> None:
            for rollout_id in ids[first : first + 3]:
                await store.update_attempt(rollout_id, "latest", status="succeeded")
                for _ in range(steps):
                    await asyncio.sleep(0)

        for first in range(0, 120, 3):
            asked = ids[first : first + 3]
            ending = asyncio.create_task(end(first, first // 3))
            async with asyncio.timeout(PATIENCE):
                done = await store.wait_for_rollouts(rollout_ids=asked)
                await ending
            assert [rollout.rollout_id for rollout in done] == asked

    async def test_a_lease_that_runs_out_ends_waiting(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 3: nobody else need look; here time is real."""
        store = make_store(time.time)
        rollout = await take(store, unresponsive_seconds=0.1)
        found = await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=PATIENCE)
        assert [rollout.status for rollout in found] == ["failed"]
        await take(store, unresponsive_seconds=0.1, max_attempts=2)
        started = time.monotonic()
        again = await store.dequeue_rollouts(wait=PATIENCE)
        assert [rollout.attempt.sequence_id for rollout in again] == [2]
        assert time.monotonic() - started < PATIENCE / 2
        await store.close()

    async def test_a_lease_that_begins_while_one_waits_ends_waiting_too(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 3: the worker that took the work dies, and nobody but the one who waits is left."""
        store = make_store(time.time)
        config = RolloutConfig(unresponsive_seconds=0.1, max_losses=0)
        rollout = await store.enqueue_rollout(1, config=config)
        waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await begin_waiting(waiting)
        await store.dequeue_rollout("w")
        async with asyncio.timeout(PATIENCE):
            assert [found.status for found in await waiting] == ["failed"]
        await store.close()

    async def test_an_idle_worker_wakes_when_work_arrives(self, store: LightningStore) -> None:
        """An enqueue, a retry and a rollout sent back all wake; ``wait`` is only an upper bound."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(3):
                waiting = asyncio.create_task(store.dequeue_rollouts(5, "w", wait=10 * PATIENCE))
                await begin_waiting(waiting)
                await store.enqueue_rollout(1, config=RolloutConfig(max_attempts=2))
                [first] = await waiting
                waiting = asyncio.create_task(store.dequeue_rollouts(5, "w", wait=10 * PATIENCE))
                await begin_waiting(waiting)
                await store.update_attempt(first.rollout_id, "latest", status="failed")
                [second] = await waiting
                waiting = asyncio.create_task(store.dequeue_rollouts(5, "w", wait=10 * PATIENCE))
                await begin_waiting(waiting)
                await store.update_rollout(second.rollout_id, status="requeuing")
                [third] = await waiting
                assert first.rollout_id == second.rollout_id == third.rollout_id

    async def test_several_idle_workers_share_what_arrives(self, store: LightningStore) -> None:
        """Each gets one, though the work comes in one go; a worker that gave up takes none with it."""
        waiting = [asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE)) for _ in range(4)]
        await begin_waiting(*waiting)
        waiting[0].cancel()
        await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(3)])
        async with asyncio.timeout(PATIENCE):
            taken = await asyncio.gather(*waiting[1:])
        assert sorted(rollout.input for [rollout] in taken) == [0, 1, 2]

    async def test_a_cancelled_wait_for_work_takes_none_with_it(self, store: LightningStore) -> None:
        """Whenever the cancellation comes, another worker that waits gets the work at once."""
        for number in range(10):
            first = asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE))
            await asyncio.sleep(0.01)
            second = asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE))
            await asyncio.sleep(0.01)
            await store.enqueue_rollout(number)
            for _ in range(number):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            if not first.cancelled():
                [taken] = await first
                await store.update_rollout(taken.rollout_id, status="requeuing")
            async with asyncio.timeout(PATIENCE):
                assert [rollout.input for rollout in await second] == [number]

    async def test_a_cancelled_wait_for_rollouts_leaves_the_others_waiting(
        self, store: LightningStore
    ) -> None:
        """Those that wait for the same rollouts are woken all the same, and the store forgets who left."""
        rollouts = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(2)])
        ids = [rollout.rollout_id for rollout in rollouts]
        for number in range(2):
            left = [asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids)) for _ in range(3)]
            stays = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids[: number + 1]))
            await begin_waiting(*left, stays)
            for task in left:
                task.cancel()
            await store.update_rollout(ids[number], status="succeeded")
            async with asyncio.timeout(PATIENCE):
                assert [rollout.input for rollout in await stays] == list(range(number + 1))
            await asyncio.wait(left)
            if number == 0:
                assert all(task.cancelled() for task in left)

    async def test_an_idle_worker_of_a_run_is_not_woken_for_others_work(self, store: LightningStore) -> None:
        """Nor does it keep that work from the others."""
        async with asyncio.timeout(PATIENCE):
            mine = asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE, run_id="mine"))
            await begin_waiting(mine)
            other = asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE, run_id="other"))
            await begin_waiting(other)
            await store.enqueue_rollout(1, run_id="other")
            assert [rollout.input for rollout in await other] == [1]
            assert not mine.done()
            await store.enqueue_rollout(2, run_id="mine")
            assert [rollout.input for rollout in await mine] == [2]

    async def test_waiting_for_work_keeps_its_time(self, store: LightningStore) -> None:
        """An empty queue gives an empty list when the time is over."""
        started = time.monotonic()
        assert await store.dequeue_rollouts(wait=0.1) == []
        assert 0.09 < time.monotonic() - started < PATIENCE

    async def test_closing_ends_all_waiting(self, store: LightningStore) -> None:
        """With an error, since what was waited for will not be seen."""
        rollout = await store.enqueue_rollout(1)
        await store.dequeue_rollout()
        waiting = [
            asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id])),
            asyncio.create_task(store.dequeue_rollouts(wait=10 * PATIENCE)),
        ]
        await begin_waiting(*waiting)
        await store.close()
        async with asyncio.timeout(PATIENCE):
            for task in waiting:
                with pytest.raises(StoreClosedError):
                    await task

    # Threads and event loops

    def test_one_store_serves_a_hundred_event_loops_in_turn(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 28: nothing of an earlier loop is kept, though ids of loops are used again."""
        store = make_store(FakeClock())

        async def cycle(number: int) -> None:
            waiting = asyncio.create_task(store.dequeue_rollouts(wait=PATIENCE))
            await asyncio.sleep(0)
            await store.enqueue_rollout(number)
            [rollout] = await waiting
            assert rollout.input == number
            await store.add_span(make_span(rollout, "a"))
            end = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
            await asyncio.sleep(0)
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            assert len(await end) == 1

        for number in range(100):
            asyncio.run(asyncio.wait_for(cycle(number), PATIENCE))
        assert asyncio.run(store.statistics()).rollouts == {"succeeded": 100}
        asyncio.run(store.close())

    def test_a_loop_that_was_closed_while_it_waited_harms_nobody(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 28: what it waited for happens later, on another loop."""
        store = make_store(FakeClock())
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(store.dequeue_rollouts(wait=PATIENCE))
        loop.run_until_complete(asyncio.sleep(0.05))
        waiting.cancel()
        loop.run_until_complete(asyncio.wait([waiting]))
        loop.close()

        async def use() -> None:
            await store.enqueue_rollout(1)
            assert await store.dequeue_rollout() is not None
            await store.close()

        asyncio.run(use())

    def test_several_threads_with_loops_of_their_own_share_the_work(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 28: nothing is lost or handed out twice, and one thread's work wakes another's wait."""
        store, producers, each = make_store(time.time), 2, 20
        done: list[tuple[str, int]] = []

        async def produce(number: int) -> None:
            ids = [(await store.enqueue_rollout(f"{number}-{n}")).rollout_id for n in range(each)]
            impatient = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids))
            half = await store.wait_for_rollouts(rollout_ids=ids, timeout=PATIENCE, quorum=0.5)
            assert len(half) >= each / 2
            impatient.cancel()
            finished = await store.wait_for_rollouts(rollout_ids=ids, timeout=PATIENCE)
            assert [rollout.input for rollout in finished] == [f"{number}-{n}" for n in range(each)]

        async def consume(number: int) -> None:
            while len(done) < producers * each:
                for rollout in await store.dequeue_rollouts(3, f"w{number}", wait=0.2):
                    spans = [make_span(rollout, f"{n:x}") for n in range(3)]
                    stored = await store.add_spans(spans[:2])
                    key = rollout.rollout_id, rollout.attempt.attempt_id
                    assert await store.renew_leases(f"w{number}", [key]) == []
                    stored += await store.add_encoded_spans([encode_span(span) for span in spans])
                    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
                    done.append((rollout.input, stored))

        in_threads(
            *(lambda n=n: produce(n) for n in range(producers)), *(lambda n=n: consume(n) for n in range(3))
        )
        expected = {(f"{number}-{n}", 3) for number in range(producers) for n in range(each)}
        assert len(done) == len(expected)
        assert set(done) == expected
        statistics = asyncio.run(store.statistics())
        assert (statistics.rollouts, statistics.spans) == (
            {"succeeded": producers * each},
            3 * producers * each,
        )
        asyncio.run(store.close())

    # Cost

    def test_no_call_costs_more_the_more_is_stored(
        self, make_store: Callable[[Clock], LightningStore]
    ) -> None:
        """Trap 10: counted in steps of the interpreter, the same work costs as much among 40 times as many."""
        few, many = (_count_steps(make_store, number) for number in (50, 2_000))
        assert many < 1.5 * few, f"{few} steps among 50 rollouts, {many} among 2,000"


def _count_steps(make_store: Callable[[Clock], LightningStore], stored: int) -> int:
    """Count what the interpreter does, in all threads, for some cycles among so many live and queued rollouts."""
    steps, counting = 0, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        # The event loop's own steps depend on the timing of threads; those of its callers do not.
        if not counting or frame.f_globals.get("__name__", "").startswith(
            ("asyncio", "selectors", "threading")
        ):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            steps += 1
        return trace

    async def work() -> None:
        nonlocal counting
        config = RolloutConfig(unresponsive_seconds=1_000)
        for mode in ("queued", "live"):
            requests = [EnqueueRequest(input=1, config=config, run_id="other") for _ in range(stored)]
            await store.enqueue_rollouts(requests)
            if mode == "queued":
                await store.dequeue_rollouts(stored, "other")
        counting = True
        sys.settrace(trace)
        for number in range(5):
            await store.enqueue_rollout(number, run_id="mine")
            rollout = await store.dequeue_rollout("w", run_id="mine")
            assert rollout is not None
            await store.add_span(make_span(rollout, "a"))
            await store.renew_leases("w", [(rollout.rollout_id, rollout.attempt.attempt_id)])
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id])
            await store.query_rollouts(status=["succeeded"], limit=1)
            await store.get_latest_attempt(rollout.rollout_id)
            await store.query_workers()
            await store.statistics()
        counting = False
        await store.close()

    before = sys.gettrace()
    threading.settrace(trace)
    try:
        store = make_store(FakeClock())
        asyncio.run(work())
    finally:
        sys.settrace(before)
        threading.settrace(before)
    return steps
