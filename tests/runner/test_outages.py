"""A store that is away: nothing that was done is lost while it may come back, nothing spins, and little is said."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from lightning_core import AgentRunnerV2, InMemoryLightningStore, LitAgent, emit_reward, rollout
from lightning_core.emitter import find_reward_spans
from lightning_core.errors import ConfigurationError, StoreUnavailableError
from lightning_core.execution.event import StopEvent
from lightning_core.runner import outage
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM, AttemptedRollout, RolloutConfig

PATIENCE = 20.0


class Distant(InMemoryLightningStore):
    """A store that can be away; counts the calls that it refused meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.refused: dict[str, int] = {}
        self.run_over = False
        self.lose_answers = False
        self.requests: list[tuple[int, str | None]] = []

    def refuse(self, call: str) -> None:
        if self.away:
            self.refused[call] = self.refused.get(call, 0) + 1
            raise StoreUnavailableError("no route to the server")

    async def dequeue_rollouts(
        self,
        limit: int = 1,
        worker_id: str | None = None,
        wait: float = 0.0,
        *,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> list[AttemptedRollout]:
        self.refuse("dequeue")
        self.requests.append((limit, request_id))
        taken = await super().dequeue_rollouts(limit, worker_id, wait, run_id=run_id, request_id=request_id)
        if self.lose_answers:
            self.lose_answers = False
            raise StoreUnavailableError("connection reset")
        return taken

    async def add_spans(self, spans: Any) -> int:
        self.refuse("spans")
        return await super().add_spans(spans)

    async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
        self.refuse("report")
        return await super().update_attempt(*args, **keywords)

    async def renew_leases(self, *args: Any, **keywords: Any) -> Any:
        self.refuse("renew")
        return await super().renew_leases(*args, **keywords)

    async def update_worker(self, *args: Any, **keywords: Any) -> Any:
        self.refuse("worker")
        return await super().update_worker(*args, **keywords)

    async def get_latest_resources(self) -> Any:
        self.refuse("resources")
        return await super().get_latest_resources()


@pytest.fixture
async def store() -> Distant:
    store = Distant()
    await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")})
    return store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a tenth of their length."""
    monkeypatch.setattr(outage, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outage, "_LONGEST_PAUSE", 0.5)


def make_runner(**settings: Any) -> AgentRunnerV2[Any]:
    return AgentRunnerV2(DummyTracer(), **{"poll_interval": 3600.0, **settings})


class Gate:
    """Agents that begin, emit, wait to be let go, and emit again."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.ended = asyncio.Semaphore(0)
        self.agent: LitAgent[Any] = rollout(self._run)

    async def _run(self, task: Any, llm: LLM) -> float:
        emit_reward(0.25)
        self.begun.release()
        await self.go.wait()
        emit_reward(0.5)
        self.ended.release()
        return 0.75


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the store counts, and announces nothing
            await asyncio.sleep(0.005)


async def stored_rewards(store: InMemoryLightningStore, rollout_id: str) -> list[Any]:
    return [s.attributes["reward"] for s in find_reward_spans(await store.query_spans(rollout_id, "latest"))]


@pytest.mark.usefixtures("quick")
async def test_a_finished_result_outlasts_an_outage(store: Distant, caplog: pytest.LogCaptureFixture):
    """Agents go on, their spans arrive in order, results are reported; it is said twice in all, and nothing spins."""
    gate = Gate()
    enqueued = [await store.enqueue_rollout(number) for number in range(10)]
    event = StopEvent()
    runner = make_runner(concurrency=10, heartbeat_interval=0.05)
    with runner.run_context(agent=gate.agent, store=store):
        running = asyncio.create_task(runner.iter(event=event))
        for _ in enqueued:
            await gate.begun.acquire()
        store.away = True
        await until(lambda: store.refused.get("renew", 0) >= 2)
        gate.go.set()
        for _ in enqueued:
            await gate.ended.acquire()
        await until(lambda: store.refused.get("spans", 0) >= 30)
        store.away = False
        ids = [one.rollout_id for one in enqueued]
        done = await store.wait_for_rollouts(rollout_ids=ids, timeout=PATIENCE)
        event.set()
        await asyncio.wait_for(running, PATIENCE)
    assert [one.status for one in done] == ["succeeded"] * 10
    for one in enqueued:
        assert await stored_rewards(store, one.rollout_id) == [0.25, 0.5, 0.75]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2
    assert "away" in said[0]
    assert "back" in said[1]
    # With pauses that double; a loop without would have refused thousands.
    assert store.refused["spans"] < 300


@pytest.mark.usefixtures("quick")
async def test_a_report_is_tried_again_and_its_lease_renewed_meanwhile():
    reports = 0

    class Reluctant(Distant):
        async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
            nonlocal reports
            reports += 1
            if reports < 8:
                raise StoreUnavailableError("the disk is full")
            return await super().update_attempt(*args, **keywords)

    @rollout
    async def agent(task: Any, llm: LLM) -> float:
        return 1.0

    reluctant = Reluctant()
    await reluctant.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="m")})
    # Shorter than the tries take in all.
    enqueued = await reluctant.enqueue_rollout("task", config=RolloutConfig(unresponsive_seconds=0.3))
    with (runner := make_runner(max_rollouts=1)).run_context(agent=agent, store=reluctant):
        await asyncio.wait_for(runner.iter(), PATIENCE)
    (attempt,) = await reluctant.query_attempts(enqueued.rollout_id)
    assert attempt.status == "succeeded"
    assert reports == 8


async def test_a_result_that_cannot_be_reported_in_time_is_said_to_be_lost(
    store: Distant, caplog: pytest.LogCaptureFixture
):
    gate = Gate()
    await store.enqueue_rollout("task")
    with (runner := make_runner(max_rollouts=1, retry_seconds=0.3)).run_context(
        agent=gate.agent, store=store
    ):
        running = asyncio.create_task(runner.iter())
        await gate.begun.acquire()
        store.away = True
        gate.go.set()
        await asyncio.wait_for(running, PATIENCE)
    assert "could not be reported" in caplog.text
    assert "spans of rollout" in caplog.text


async def test_a_runner_whose_store_stays_away_gives_up_once_it_has_nothing_to_do(store: Distant):
    """An orphan leaves; but not while its agents work."""
    gate = Gate()
    await store.enqueue_rollout("task")
    runner = make_runner(concurrency=2, retry_seconds=0.2, poll_interval=0.05)
    with runner.run_context(agent=gate.agent, store=store):
        running = asyncio.create_task(runner.iter())
        await gate.begun.acquire()
        store.away = True
        # It has been waiting for more work.
        await store.enqueue_rollout("more")
        await until(lambda: store.refused.get("dequeue", 0) >= 5)
        assert not running.done()
        gate.go.set()
        with pytest.raises(StoreUnavailableError, match="no route"):
            await asyncio.wait_for(running, PATIENCE)


async def test_a_store_that_refuses_for_another_reason_ends_the_runner():
    class Locked(Distant):
        async def dequeue_rollouts(self, *args: Any, **keywords: Any) -> Any:
            raise ConfigurationError("wrong token")

    gate = Gate()
    runner = make_runner()
    with (
        runner.run_context(agent=gate.agent, store=Locked()),
        pytest.raises(ConfigurationError, match="wrong token"),
    ):
        await asyncio.wait_for(runner.iter(), PATIENCE)


async def test_a_runner_leaves_when_the_store_says_that_the_run_is_over(store: Distant):
    """Rollouts that have begun are finished."""
    gate = Gate()
    first = await store.enqueue_rollout("first")
    with (runner := make_runner()).run_context(agent=gate.agent, store=store):
        running = asyncio.create_task(runner.iter())
        await gate.begun.acquire()
        store.run_over = True
        second = await store.enqueue_rollout("second")
        gate.go.set()
        await asyncio.wait_for(running, PATIENCE)
    found = await store.query_rollouts(rollout_ids=[first.rollout_id, second.rollout_id])
    assert [one.status for one in found] == ["succeeded", "queuing"]


async def test_nothing_is_tried_again_when_the_run_is_over(store: Distant):
    gate = Gate()
    await store.enqueue_rollout("task")
    with (runner := make_runner()).run_context(agent=gate.agent, store=store):
        running = asyncio.create_task(runner.iter())
        await gate.begun.acquire()
        store.run_over = store.away = True
        gate.go.set()
        await asyncio.wait_for(running, PATIENCE)
    assert store.refused["report"] == 1


async def test_a_cancelled_runner_does_not_wait_for_a_store_that_is_away(
    store: Distant, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outage, "LAST_SECONDS", 0.1)
    monkeypatch.setattr("lightning_core.runner.attempt.LAST_SECONDS", 0.1)
    gate = Gate()
    await store.enqueue_rollout("task")
    with (runner := make_runner()).run_context(agent=gate.agent, store=store):
        running = asyncio.create_task(runner.iter())
        await gate.begun.acquire()
        store.away = True
        begin = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, PATIENCE)
    assert time.monotonic() - begin < 10


@pytest.mark.usefixtures("quick")
async def test_work_whose_handing_out_was_not_heard_of_is_asked_for_again(store: Distant):
    """Trap 3: the reply to dequeue is lost. The lease is 60 s, and nobody waits for that."""
    gate = Gate()
    gate.go.set()
    store.lose_answers = True
    enqueued = await store.enqueue_rollout("task")
    with (runner := make_runner(max_rollouts=1)).run_context(agent=gate.agent, store=store):
        await asyncio.wait_for(runner.iter(), PATIENCE)
    (attempt,) = await store.query_attempts(enqueued.rollout_id)
    assert attempt.status == "succeeded"
    assert store.requests[0] == store.requests[1]


@pytest.mark.usefixtures("quick")
async def test_two_answers_are_never_to_the_same_request(store: Distant):
    gate = Gate()
    gate.go.set()
    for number in range(3):
        await store.enqueue_rollout(number)
    with (runner := make_runner(max_rollouts=3)).run_context(agent=gate.agent, store=store):
        await asyncio.wait_for(runner.iter(), PATIENCE)
    names = [request for _, request in store.requests]
    assert len(names) == len(set(names)) == 3
