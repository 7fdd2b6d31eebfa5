"""The data store: who gets a task, which report counts, and what outlives a restart."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import threading
from typing import Any

import pytest
from lightning_legacy import ServerDataStore
from pydantic import BaseModel

from lightning_core import InMemoryLightningStore
from lightning_core.errors import (
    ConfigurationError,
    InvalidOutcomeError,
    StoreUnavailableError,
    UnknownRolloutError,
    UnserializableValueError,
)
from lightning_core.types import LLM, ResourcesUpdate, Rollout, RolloutV2, Task, Triplet

LEASE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def data(clock: Clock) -> ServerDataStore:
    return make(InMemoryLightningStore(clock=clock), clock)


def make(store: InMemoryLightningStore, clock: Clock, max_requeues: int = 2) -> ServerDataStore:
    return ServerDataStore(store, task_timeout_seconds=LEASE, max_requeues=max_requeues, clock=clock)


async def claim(data: ServerDataStore) -> Task:
    task = await data.get_next_task()
    assert task is not None
    return task


def report(task: Task | str, reward: float | None = 1.0, **more: Any) -> Rollout:
    return Rollout(rollout_id=task if isinstance(task, str) else task.rollout_id, final_reward=reward, **more)


async def test_tasks_come_in_the_order_of_the_queue_with_all_that_was_given(
    data: ServerDataStore, clock: Clock
):
    first = await data.add_task({"q": 1}, "val", "rs-1", {"difficulty": "hard"})
    clock.now += 5
    second = await data.add_task("two")
    clock.now += 5
    assert await claim(data) == Task(
        rollout_id=first,
        input={"q": 1},
        mode="val",
        resources_id="rs-1",
        create_time=clock.now - 10,
        last_claim_time=clock.now,
        num_claims=1,
        metadata={"difficulty": "hard"},
    )
    assert (await claim(data)).rollout_id == second
    assert await data.get_next_task() is None


async def test_samples_become_what_the_client_will_get(data: ServerDataStore):
    class Question(BaseModel):
        text: str

    @dataclasses.dataclass
    class Other:
        numbers: tuple[int, int]

    class Array:
        def tolist(self) -> list[float]:
            return [0.5]

    for sample in (Question(text="1+1?"), Other((1, 2)), {"array": Array()}):
        await data.add_task(sample)
    assert [(await claim(data)).input for _ in range(3)] == [
        {"text": "1+1?"},
        {"numbers": [1, 2]},
        {"array": [0.5]},
    ]


@pytest.mark.parametrize(("sample", "metadata"), [({"x": object()}, None), (1, {"x": object()})])
async def test_what_cannot_be_sent_is_refused_when_it_is_queued(
    data: ServerDataStore, sample: Any, metadata: Any
):
    place = "metadata" if metadata else "sample"
    with pytest.raises(UnserializableValueError, match=f"{place} cannot be sent to a client.*object"):
        await data.add_task(sample, metadata=metadata)
    assert await data.get_next_task() is None


async def test_an_unknown_mode_is_refused(data: ServerDataStore):
    with pytest.raises(ConfigurationError, match="mode must be"):
        await data.add_task(1, mode="training")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "settings",
    [{"task_timeout_seconds": 0}, {"task_timeout_seconds": math.inf}, {"max_requeues": -1}],
    ids=str,
)
def test_numbers_out_of_range_are_named(settings: dict[str, Any]):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        ServerDataStore(**settings)


async def test_a_stale_task_is_handed_out_again(
    data: ServerDataStore, clock: Clock, caplog: pytest.LogCaptureFixture
):
    rollout_id = await data.add_task(1)
    await claim(data)
    clock.now += LEASE - 0.1
    assert await data.get_next_task() is None
    assert caplog.records == []
    clock.now += 0.1
    with caplog.at_level(logging.WARNING):
        again = await claim(data)
    assert (again.rollout_id, again.num_claims, again.last_claim_time) == (rollout_id, 2, clock.now)
    assert f"no client has reported on task {rollout_id} within 10 s" in caplog.text


async def test_a_task_is_given_up_after_so_many_requeues_and_says_why(
    data: ServerDataStore, clock: Clock, caplog: pytest.LogCaptureFixture
):
    rollout_id = await data.add_task({"q": 1}, metadata={"difficulty": "hard"})
    for claims in range(1, 4):
        assert (await claim(data)).num_claims == claims
        clock.now += LEASE
    with caplog.at_level(logging.ERROR):
        assert await data.get_next_task() is None
    assert f"task {rollout_id} is given up: it was handed out 3 times" in caplog.text
    [result] = await data.retrieve_completed_rollouts()
    assert (result.rollout_id, result.final_reward) == (rollout_id, None)
    assert result.metadata["status"] == "abandoned"
    assert "handed out 3 times, and no client reported within 10 s" in result.metadata["reason"]
    assert result.task is not None
    assert (result.task.input, result.task.num_claims) == ({"q": 1}, 3)
    assert result.task.metadata == {"difficulty": "hard"}
    assert await data.retrieve_completed_rollouts() == []


async def test_without_requeues_a_task_is_handed_out_once(clock: Clock):
    data = make(InMemoryLightningStore(clock=clock), clock, max_requeues=0)
    rollout_id = await data.add_task(1)
    await claim(data)
    clock.now += LEASE
    assert await data.get_next_task() is None
    result = await data.retrieve_rollout(rollout_id)
    assert result is not None
    assert "handed out once," in result.metadata["reason"]


async def test_the_first_report_counts_and_no_other(data: ServerDataStore):
    await data.add_task(1)
    task = await claim(data)
    triplet = Triplet(prompt=[1], response=[2], reward=0.5)
    assert await data.store_rollout(report(task, 1.0, triplets=[triplet], metadata={"n": 1}))
    assert not await data.store_rollout(report(task, 2.0))
    assert await data.retrieve_completed_rollouts() == [
        report(task, 1.0, triplets=[triplet], metadata={"n": 1})
    ]
    assert not await data.store_rollout(report(task, 3.0))
    assert await data.retrieve_completed_rollouts() == []


async def test_of_reports_at_once_one_counts(clock: Clock):
    class Slow(InMemoryLightningStore):
        async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
            found = await super().get_rollout_by_id(rollout_id)
            await asyncio.sleep(0)
            return found

    data = make(Slow(clock=clock), clock)
    await data.add_task(1)
    task = await claim(data)
    counted = await asyncio.gather(*(data.store_rollout(report(task, float(n))) for n in range(20)))
    assert sum(counted) == 1
    [result] = await data.retrieve_completed_rollouts()
    assert result.final_reward == float(counted.index(True))


async def test_a_late_report_on_a_requeued_task_counts_and_takes_it_out_of_the_queue(
    data: ServerDataStore, clock: Clock
):
    await data.add_task(1)
    task = await claim(data)
    clock.now += LEASE
    assert data.get_processing_tasks() == {}
    assert await data.store_rollout(report(task))
    assert await data.get_next_task() is None
    assert await data.retrieve_completed_rollouts() == [report(task)]


async def test_of_two_clients_with_one_task_the_first_to_report_counts(data: ServerDataStore, clock: Clock):
    await data.add_task(1)
    first = await claim(data)
    clock.now += LEASE
    second = await claim(data)
    assert await data.store_rollout(report(first, 1.0))
    assert not await data.store_rollout(report(second, 2.0))
    assert data.get_processing_tasks() == {}
    clock.now += 10 * LEASE
    assert await data.get_next_task() is None
    assert await data.retrieve_completed_rollouts() == [report(first, 1.0)]


async def test_a_report_on_a_task_that_was_given_up_does_not_count(data: ServerDataStore, clock: Clock):
    await data.add_task(1)
    for _ in range(3):
        task = await claim(data)
        clock.now += LEASE
    assert await data.receive(report(task)) == "late"
    [result] = await data.retrieve_completed_rollouts()
    assert result.metadata["status"] == "abandoned"


async def test_a_report_that_loses_the_race_against_the_last_expiry_does_not_count(clock: Clock):
    class Slow(InMemoryLightningStore):
        async def update_rollout(self, *args: Any, **kwargs: Any) -> RolloutV2:
            clock.now += LEASE
            return await super().update_rollout(*args, **kwargs)

    data = make(Slow(clock=clock), clock, max_requeues=0)
    await data.add_task(1)
    task = await claim(data)
    assert await data.receive(report(task)) == "late"
    [result] = await data.retrieve_completed_rollouts()
    assert (result.final_reward, result.metadata["status"]) == (None, "abandoned")


async def test_an_unknown_task_is_named(data: ServerDataStore):
    with pytest.raises(UnknownRolloutError, match="knows no task 'ro-else'"):
        await data.store_rollout(report("ro-else"))
    with pytest.raises(UnknownRolloutError, match="knows no task 'ro-else'"):
        await data.requeue_task(Task(rollout_id="ro-else", input=1))
    with pytest.raises(UnknownRolloutError, match="knows no task 'ro-else'"):
        await data.wait_for_rollout("ro-else", timeout=0)
    assert await data.retrieve_rollout("ro-else") is None


@pytest.mark.parametrize("reward", [math.nan, math.inf])
async def test_a_reward_that_is_no_number_is_refused_and_the_task_goes_on(
    data: ServerDataStore, reward: float
):
    await data.add_task(1)
    task = await claim(data)
    with pytest.raises(InvalidOutcomeError, match=f"final_reward of rollout '{task.rollout_id}' is {reward}"):
        await data.store_rollout(report(task, reward))
    assert await data.store_rollout(report(task, 0.0))


async def test_rollouts_of_others_in_the_same_store_are_left_alone(clock: Clock):
    store = InMemoryLightningStore(clock=clock)
    other = await store.enqueue_rollout("not of v0.1", run_id="run-1")
    data = make(store, clock)
    assert await data.get_next_task() is None
    with pytest.raises(UnknownRolloutError):
        await data.store_rollout(report(other.rollout_id))
    await store.update_rollout(other.rollout_id, status="succeeded")
    assert await data.retrieve_rollout(other.rollout_id) is None
    assert await data.retrieve_completed_rollouts() == []


async def test_results_are_retrieved_once(data: ServerDataStore):
    first, second, third = [await data.add_task(number) for number in range(3)]
    assert await data.retrieve_rollout(first) is None
    for _ in range(2):
        await data.store_rollout(report(await claim(data)))
    assert await data.retrieve_rollout(first) == report(first)
    assert await data.retrieve_rollout(first) is None
    assert await data.retrieve_completed_rollouts() == [report(second)]
    assert await data.retrieve_rollout(second) is None
    assert await data.retrieve_rollout(third) is None


async def test_memory_forgets_a_retrieved_report_and_a_durable_store_keeps_it(durable: str):
    for spec, kept in (("memory", False), (durable, True)):
        data = ServerDataStore(spec)
        await data.add_task(1)
        task = await claim(data)
        await data.store_rollout(report(task, logs=["a long log"]))
        assert len(await data.retrieve_completed_rollouts()) == 1
        rollout = await data.store.get_rollout_by_id(task.rollout_id)
        assert rollout is not None
        assert ("a long log" in str(rollout.metadata)) is kept
        assert not await data.store_rollout(report(task))
        await data.close()


async def test_whoever_waits_for_a_result_gets_it(data: ServerDataStore):
    rollout_id = await data.add_task(1)
    assert await data.wait_for_rollout(rollout_id, timeout=0) is None
    waiting = asyncio.create_task(data.wait_for_rollout(rollout_id))
    await data.store_rollout(report(await claim(data)))
    assert await waiting == report(rollout_id)
    assert await data.wait_for_rollout(rollout_id) is None


async def test_whoever_waits_for_a_task_that_is_given_up_is_told(caplog: pytest.LogCaptureFixture):
    data = ServerDataStore(task_timeout_seconds=0.05, max_requeues=0)
    rollout_id = await data.add_task(1)
    await claim(data)
    result = await data.wait_for_rollout(rollout_id, timeout=60)
    assert result is not None
    assert result.metadata["status"] == "abandoned"


async def test_a_retrieval_that_is_cancelled_loses_no_result(clock: Clock):
    class Gated(InMemoryLightningStore):
        waiting = threading.Event()
        closed = False

        async def update_rollout(self, *args: Any, **kwargs: Any) -> RolloutV2:
            updated = await super().update_rollout(*args, **kwargs)
            if self.closed:
                self.closed = False
                self.waiting.set()
                await asyncio.Event().wait()
            return updated

    store = Gated(clock=clock)
    data = make(store, clock)
    for number in range(3):
        await data.add_task(number)
    tasks = [await claim(data) for _ in range(3)]
    for task in tasks:
        await data.store_rollout(report(task))
    store.closed = True
    retrieving = asyncio.create_task(data.retrieve_completed_rollouts())
    await asyncio.to_thread(store.waiting.wait, 60)
    retrieving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await retrieving
    assert await data.retrieve_completed_rollouts() == [report(task) for task in tasks]
    assert await data.retrieve_completed_rollouts() == []


async def test_a_task_that_is_requeued_by_hand_goes_to_the_end_and_is_not_counted_as_lost(
    data: ServerDataStore, clock: Clock
):
    first, second = await data.add_task(1), await data.add_task(2)
    await data.requeue_task(await claim(data))
    assert (await claim(data)).rollout_id == second
    for claims in range(2, 5):
        task = await claim(data)
        assert (task.rollout_id, task.num_claims) == (first, claims)
        clock.now += LEASE / 2
        await data.store_rollout(report(second))
        clock.now += LEASE / 2
    assert await data.get_next_task() is None


async def test_a_claim_of_another_client_is_not_taken_away(data: ServerDataStore, clock: Clock):
    await data.add_task(1)
    stale = await claim(data)
    clock.now += LEASE
    current = await claim(data)
    await data.requeue_task(stale)
    assert data.get_processing_tasks() == {current.rollout_id: current}
    await data.requeue_task(current)
    assert data.get_processing_tasks() == {}
    await data.requeue_task(current)
    assert (await claim(data)).num_claims == 3


async def test_a_result_is_not_requeued(data: ServerDataStore):
    await data.add_task(1)
    task = await claim(data)
    await data.store_rollout(report(task))
    await data.requeue_task(task)
    assert await data.get_next_task() is None


async def test_resources_are_kept_by_id_and_the_last_are_the_latest(data: ServerDataStore):
    assert await data.get_latest_resources() is None
    small, large = (LLM(endpoint="http://127.0.0.1:1/v1", model=name) for name in ("small", "large"))
    await data.update_resources(ResourcesUpdate(resources_id="rs-1", resources={"main_llm": small}))
    added = await data.add_resources({"main_llm": large})
    first = await data.get_resources_by_id("rs-1")
    assert first is not None
    assert first.resources == {"main_llm": small}
    assert await data.get_latest_resources() == added == await data.get_resources_by_id(added.resources_id)
    assert await data.get_resources_by_id("rs-else") is None


async def test_a_store_that_is_away_for_a_moment_costs_no_result(clock: Clock):
    class Flaky(InMemoryLightningStore):
        away = False

        async def query_rollouts(self, **filters: Any) -> list[RolloutV2]:
            if self.away:
                raise StoreUnavailableError("the disk is full")
            return await super().query_rollouts(**filters)

    store = Flaky(clock=clock)
    store.away = True
    data = make(store, clock, max_requeues=0)
    with pytest.raises(StoreUnavailableError):
        await data.get_next_task()
    store.away = False
    rollout_id = await data.add_task(1)
    await claim(data)
    clock.now += LEASE
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await data.get_next_task()
    store.away = False
    clock.now += 1
    assert [result.rollout_id for result in await data.retrieve_completed_rollouts()] == [rollout_id]


async def test_everything_outlives_a_restart(durable: str):
    data = ServerDataStore(durable, task_timeout_seconds=3600)
    ids = [await data.add_task(number) for number in range(4)]
    await data.update_resources(ResourcesUpdate(resources_id="rs-1", resources={}))
    for _ in range(2):
        await data.store_rollout(report(await claim(data)))
    assert await data.retrieve_rollout(ids[0]) == report(ids[0])
    held = await claim(data)
    await data.close()

    data = ServerDataStore(durable, task_timeout_seconds=3600)
    assert await data.retrieve_completed_rollouts() == [report(ids[1])]
    assert data.get_processing_tasks() == {held.rollout_id: held}
    assert not await data.store_rollout(report(ids[0], 7.0))
    assert await data.store_rollout(report(held))
    assert (await claim(data)).rollout_id == ids[3]
    latest = await data.get_latest_resources()
    assert latest is not None
    assert latest.resources_id == "rs-1"
    await data.close()


async def test_a_claim_of_before_a_restart_gets_stale_in_time(durable: str, caplog: pytest.LogCaptureFixture):
    data = ServerDataStore(durable, task_timeout_seconds=0.5, max_requeues=0)
    rollout_id = await data.add_task(1)
    await claim(data)
    await data.close()
    data = ServerDataStore(durable)
    result = await data.wait_for_rollout(rollout_id, timeout=60)
    assert result is not None
    assert "within 0.5 s" in result.metadata["reason"]
    assert await data.retrieve_completed_rollouts() == []
    await data.close()


async def test_a_store_that_was_given_is_not_closed():
    store = InMemoryLightningStore()
    data = ServerDataStore(store)
    await data.close()
    await store.statistics()


def test_it_works_on_several_loops_and_threads_at_once():
    data = ServerDataStore()
    counted: list[bool] = []

    async def work(number: int) -> None:
        for _ in range(20):
            await data.add_task(number)
            counted.append(await data.store_rollout(report(await claim(data))))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counted == [True] * 80
    assert len(asyncio.run(data.retrieve_completed_rollouts())) == 80
