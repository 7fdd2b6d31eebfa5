"""Store tests: a call whose answer was lost is made again, and does no harm."""

from __future__ import annotations

import asyncio

import pytest

from lightning_core.errors import ConfigurationError, FinalRolloutError
from lightning_core.store.base import EnqueueRequest, LightningStore
from lightning_core.types import AttemptedRollout, RolloutConfig, Run

from ._store_setup import PATIENCE, FakeClock, begin_waiting, make_span, status_of, take


class RepeatTests:
    """Requests that are sent again take no second helping; see also the tests of spans and of the queue."""

    # Dequeue

    async def test_the_same_request_again_returns_the_same_attempts(self, store: LightningStore) -> None:
        """Trap 3: the reply to a dequeue was lost; whatever the limit now, nothing more is taken."""
        await _enqueue(store, 6)
        taken = await store.dequeue_rollouts(2, "w", request_id="r")
        assert [rollout.input for rollout in taken] == [0, 1]
        ids = [rollout.attempt.attempt_id for rollout in taken]
        assert all(attempt_id.startswith("at-r-") for attempt_id in ids)
        assert len(set(ids)) == 2
        for limit in (1, 2, 5):
            again = await store.dequeue_rollouts(limit, "w", request_id="r")
            assert sorted(rollout.attempt.attempt_id for rollout in again) == sorted(ids)
        assert (await store.statistics()).attempts == 2
        await store.add_span(make_span(taken[0], "a"))
        again = await store.dequeue_rollouts(2, "w", 0.0, request_id="r")
        assert {rollout.input: rollout.attempt.status for rollout in again} == {0: "running", 1: "preparing"}
        assert [rollout.input for rollout in await store.dequeue_rollouts(9, "w")] == [2, 3, 4, 5]

    async def test_requests_are_told_apart(self, store: LightningStore) -> None:
        """By their worker and their whole id, whatever characters it is made of."""
        requests = ["r", "r-1", "R", "%", "_", "r_", "r%", "r.", "r'", "é", "0" * 64]
        await _enqueue(store, len(requests) + 1)
        taken = {
            request: await store.dequeue_rollouts(1, "w", request_id=request)
            for request in reversed(requests)
        }
        other = await store.dequeue_rollouts(1, "other", request_id="r")
        assert [rollout.input for rollout in other] == [len(requests)]
        for request, rollouts in taken.items():
            again = await store.dequeue_rollouts(5, "w", request_id=request)
            assert again == rollouts, f"request {request!r} got what another one took"

    async def test_a_request_again_returns_only_what_is_live(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        """And takes new work when all has ended, under ids that no attempt has had."""
        config = RolloutConfig(max_attempts=3, unresponsive_seconds=10)
        await store.enqueue_rollouts([EnqueueRequest(input=number, config=config) for number in range(3)])
        seen: set[str] = set()

        async def ask() -> list[int]:
            rollouts = await store.dequeue_rollouts(2, "w", request_id="r")
            seen.update(rollout.attempt.attempt_id for rollout in rollouts)
            return sorted(rollout.input for rollout in rollouts)

        assert await ask() == [0, 1]
        [first, second, _] = await store.query_rollouts()
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        assert await ask() == [1]
        assert len(seen) == 2
        clock.advance(11)
        # Both have ended: one failed, one fell silent. They wait for another attempt behind the third.
        assert await ask() == [0, 2]
        assert len(seen) == 4
        clock.advance(11)
        assert (await status_of(store, second.rollout_id))[0] == "requeuing"
        await ask()
        assert len(seen) == 6
        attempts = [a for r in await store.query_rollouts() for a in await store.query_attempts(r.rollout_id)]
        assert sorted(a.attempt_id for a in attempts) == sorted(seen)

    async def test_a_superseded_attempt_is_not_returned_again(self, store: LightningStore) -> None:
        """Somebody else has its rollout now."""
        await _enqueue(store, 2)
        [first] = await store.dequeue_rollouts(1, "w", request_id="r")
        await store.start_attempt(first.rollout_id, "w")
        assert [r.input for r in await store.dequeue_rollouts(1, "w", request_id="r")] == [1]

    async def test_a_request_needs_a_worker(self, store: LightningStore) -> None:
        """It is refused, whether there is work or not, and takes none."""
        with pytest.raises(ConfigurationError, match="worker_id"):
            await store.dequeue_rollouts(1, request_id="r")
        await _enqueue(store, 1)
        with pytest.raises(ConfigurationError, match="worker_id"):
            await store.dequeue_rollouts(1, request_id="r", wait=PATIENCE)
        assert await store.dequeue_rollout() is not None

    async def test_a_request_of_a_run_that_waits_is_answered_again(self, store: LightningStore) -> None:
        """Waiting and runs work as without a request."""
        waiting = asyncio.create_task(
            store.dequeue_rollouts(2, "w", 10 * PATIENCE, run_id="mine", request_id="r")
        )
        await begin_waiting(waiting)
        await store.enqueue_rollout(0, run_id="other")
        await store.enqueue_rollout(1, run_id="mine")
        async with asyncio.timeout(PATIENCE):
            taken = await waiting
            assert [rollout.input for rollout in taken] == [1]
            again = await store.dequeue_rollouts(2, "w", 10 * PATIENCE, run_id="mine", request_id="r")
        assert again == taken

    async def test_one_request_twice_at_once_takes_work_once(self, store: LightningStore) -> None:
        """Trap 3: the connection broke while the call waited, so the same call is made again beside it."""
        for number in range(3):
            waiting = [
                asyncio.create_task(store.dequeue_rollouts(1, "w", 10 * PATIENCE, request_id=f"r{number}"))
                for _ in range(2)
            ]
            await begin_waiting(*waiting)
            await store.enqueue_rollout(number)
            async with asyncio.timeout(PATIENCE):
                first, second = await asyncio.gather(*waiting)
            assert [rollout.input for rollout in first] == [number]
            assert second == first
        assert (await store.statistics()).attempts == 3

    async def test_one_request_twice_at_once_keeps_no_work_from_others(self, store: LightningStore) -> None:
        """Both calls get one rollout, and the next one wakes another worker at once."""
        # A lease that ends first, or every new one would wake all who wait.
        await take(store, "first", unresponsive_seconds=50)
        requests = [("w", "r"), ("w", "r"), ("other", "r")]
        waiting: list[asyncio.Task[list[AttemptedRollout]]] = []
        for worker, request in requests:
            call = store.dequeue_rollouts(1, worker, 10 * PATIENCE, request_id=request)
            waiting.append(asyncio.create_task(call))
            await begin_waiting(*waiting)
        await _enqueue(store, 2)
        async with asyncio.timeout(PATIENCE):
            first, second, other = await asyncio.gather(*waiting)
        assert second == first
        assert sorted(rollout.input for rollout in first + other) == [0, 1]

    async def test_a_cancelled_request_loses_nothing(self, store: LightningStore) -> None:
        """Whenever the cancellation comes, in the wait or in the answer: another worker gets the work at once."""
        for number in range(10):
            waiting = asyncio.create_task(store.dequeue_rollouts(1, "w", PATIENCE, request_id=f"r{number}"))
            await asyncio.sleep(0)
            rollout = await store.enqueue_rollout(number)
            for _ in range(number):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                await store.update_rollout(rollout.rollout_id, status="requeuing")
            [taken] = await store.dequeue_rollouts(1, "next", PATIENCE)
            assert taken.rollout_id == rollout.rollout_id
            done = await store.update_attempt(
                rollout.rollout_id, taken.attempt.attempt_id, status="succeeded"
            )
            assert done.status == "succeeded"
        assert await store.dequeue_rollouts(9) == []

    # Start

    async def test_a_start_again_returns_the_same_attempt(self, store: LightningStore) -> None:
        """Whatever has become of it."""
        first = await _start(store)
        assert first.idempotency_key == "k"
        assert await _start(store) == first
        assert (await store.enqueue_rollout("other", idempotency_key="k")).rollout_id == first.rollout_id
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        again = await _start(store)
        assert (again.status, again.attempt.attempt_id, again.attempt.status) == (
            "requeuing",
            first.attempt.attempt_id,
            "failed",
        )
        second = await store.dequeue_rollout("w")
        assert second is not None
        assert await _start(store) == second
        await store.update_attempt(first.rollout_id, "latest", status="succeeded")
        last = await _start(store)
        assert (last.status, last.attempt.attempt_id) == ("succeeded", second.attempt.attempt_id)
        assert (await store.statistics()).rollouts == {"succeeded": 1}
        assert (await store.start_rollout(1)).rollout_id != (await store.start_rollout(1)).rollout_id

    async def test_starting_what_is_enqueued_takes_it_off_the_queue(self, store: LightningStore) -> None:
        """The keys are the same; what has ended without an attempt cannot be started."""
        queued = await store.enqueue_rollout(0, idempotency_key="k")
        started = await _start(store)
        assert (started.rollout_id, started.input, started.attempt.sequence_id) == (queued.rollout_id, 0, 1)
        assert (started.status, started.attempt.worker_id) == ("preparing", "w")
        assert await store.dequeue_rollout() is None
        assert await _start(store) == started
        cancelled = await store.enqueue_rollout(0, idempotency_key="l")
        await store.update_rollout(cancelled.rollout_id, status="cancelled")
        with pytest.raises(FinalRolloutError):
            await store.start_rollout(0, idempotency_key="l")

    async def test_starts_at_once_begin_one_rollout(self, store: LightningStore) -> None:
        """Nobody sees it without its attempt."""
        started = await asyncio.gather(*(_start(store) for _ in range(8)))
        assert len({(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in started}) == 1
        statistics = await store.statistics()
        assert (statistics.rollouts, statistics.attempts) == ({"preparing": 1}, 1)

    # Attempts

    async def test_an_attempt_that_is_asked_for_again_is_the_same(self, store: LightningStore) -> None:
        """Trap 3: the reply to a start was lost; whatever has become of the attempt, no other one begins."""
        rollout = await take(store, "first", max_attempts=2)
        second = await store.start_attempt(rollout.rollout_id, "w", request_id="r")
        assert (second.attempt.sequence_id, second.attempt.worker_id) == (2, "w")
        assert second.attempt.attempt_id.startswith("at-r-")
        assert await store.start_attempt(rollout.rollout_id, "w", request_id="r") == second
        assert await store.start_attempt(rollout.rollout_id, request_id="r") == second
        assert await status_of(store, rollout.rollout_id) == ("preparing", ["cancelled", "preparing"])
        third = await store.start_attempt(rollout.rollout_id, "w")
        fourth = await store.start_attempt(rollout.rollout_id, "w")
        assert [third.attempt.sequence_id, fourth.attempt.sequence_id] == [3, 4]
        again = await store.start_attempt(rollout.rollout_id, "w", request_id="r")
        assert (again.attempt.attempt_id, again.attempt.status) == (second.attempt.attempt_id, "cancelled")
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        last = await store.start_attempt(rollout.rollout_id, "w", request_id="r")
        assert (last.status, last.attempt) == ("succeeded", again.attempt)
        with pytest.raises(FinalRolloutError):
            await store.start_attempt(rollout.rollout_id, "w", request_id="s")
        assert (await store.statistics()).attempts == 4

    async def test_requests_for_attempts_are_told_apart(self, store: LightningStore) -> None:
        """By the rollout and the whole id, whatever characters it is made of; of a worker there need be none."""
        requests = ["r", "r-1", "R", "%", "_", "r_", "r%", "r.", "r'", "é", "0" * 64]
        one, other = await store.enqueue_rollouts([EnqueueRequest(input=number) for number in range(2)])
        ids: dict[tuple[str, str], str] = {}
        for rollout in (one, other):
            for request in reversed(requests):
                begun = await store.start_attempt(rollout.rollout_id, request_id=request)
                ids[rollout.rollout_id, request] = begun.attempt.attempt_id
        assert len(set(ids.values())) == 2 * len(requests)
        for (rollout_id, request), attempt_id in ids.items():
            again = await store.start_attempt(rollout_id, request_id=request)
            assert (again.rollout_id, again.attempt.attempt_id) == (rollout_id, attempt_id)

    async def test_one_request_for_an_attempt_many_times_at_once_begins_one(
        self, store: LightningStore
    ) -> None:
        """The connection broke while the call was carried out, so the same call is made again beside it."""
        rollout = await store.enqueue_rollout(1)
        begun = await asyncio.gather(
            *(store.start_attempt(rollout.rollout_id, "w", request_id="r") for _ in range(8))
        )
        assert len({one.attempt.attempt_id for one in begun}) == 1
        assert (await store.statistics()).attempts == 1

    # Reports

    async def test_reports_again_change_nothing(self, store: LightningStore, clock: FakeClock) -> None:
        """Trap 4: the second one comes late, when another attempt has begun."""
        rollout = await take(store, max_attempts=3)
        key = rollout.rollout_id, rollout.attempt.attempt_id
        first = await store.update_attempt(*key, status="failed", metadata={"a": 1}, reason="infrastructure")
        again = await store.update_attempt(*key, status="failed", metadata={"a": 1}, reason="infrastructure")
        assert again == first
        second = await store.dequeue_rollout("w")
        assert second is not None
        clock.advance(5)
        assert await store.update_attempt(*key, status="failed", metadata={"a": 1}) == first
        assert await status_of(store, rollout.rollout_id) == ("preparing", ["failed", "preparing"])
        done = await store.update_rollout(rollout.rollout_id, status="succeeded", metadata={"b": 1})
        clock.advance(5)
        late = await store.update_rollout(rollout.rollout_id, status="succeeded", metadata={"b": 1})
        assert late == done

    async def test_saving_again_changes_nothing(self, store: LightningStore) -> None:
        """Runs, their states and workers are replaced by what they are already."""
        run = Run(run_id="run", settings={"a": 1})
        for _ in range(2):
            await store.save_run(run)
            await store.save_run_state("run", {"step": 1})
            await store.update_worker("w", heartbeat_stats={"cpu": 1.0})
        assert await store.query_runs() == [run]
        assert await store.load_run_state("run") == {"step": 1}
        assert (await store.statistics()).workers == 1


async def _enqueue(store: LightningStore, number: int) -> None:
    await store.enqueue_rollouts([EnqueueRequest(input=n) for n in range(number)])


async def _start(store: LightningStore) -> AttemptedRollout:
    return await store.start_rollout(
        1, config=RolloutConfig(max_attempts=2), worker_id="w", idempotency_key="k"
    )
