"""What ``AgentRunnerV2`` adds to the contract of runners: what it says, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from lightning_core import AgentRunnerV2, Hook, InMemoryLightningStore, LitAgent, emit_reward, rollout
from lightning_core.errors import (
    ConfigurationError,
    StoreUnavailableError,
)
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.outage import Outage
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM, RolloutConfig

RESOURCES = {"llm": LLM(endpoint="http://localhost/v1", model="m")}


@pytest.fixture
async def store() -> InMemoryLightningStore:
    store = InMemoryLightningStore()
    await store.add_resources(RESOURCES)
    return store


def runner(**settings: Any) -> AgentRunnerV2[Any]:
    return AgentRunnerV2(DummyTracer(), **settings)


async def run_one(store: InMemoryLightningStore, agent: LitAgent[Any], **keywords: Any) -> tuple[Any, Any]:
    """Enqueue one task, run it, and return the rollout and its latest attempt."""
    hooks = keywords.pop("hooks", None)
    settings = keywords.pop("settings", {})
    enqueued = await store.enqueue_rollout("task", **keywords)
    with runner(max_rollouts=1, **settings).run_context(agent=agent, store=store, hooks=hooks) as worker:
        await worker.iter()
    return (
        await store.get_rollout_by_id(enqueued.rollout_id),
        await store.get_latest_attempt(enqueued.rollout_id),
    )


async def test_retry_after_failure_until_max_attempts(store: InMemoryLightningStore):
    calls = 0

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("not yet")
        return 1.0

    enqueued = await store.enqueue_rollout("task", config=RolloutConfig(max_attempts=3))
    with runner(max_rollouts=3).run_context(agent=agent, store=store) as worker:
        await worker.iter()
    done = await store.get_rollout_by_id(enqueued.rollout_id)
    attempts = await store.query_attempts(enqueued.rollout_id)
    assert done is not None
    assert done.status == "succeeded"
    assert [attempt.status for attempt in attempts] == ["failed", "failed", "succeeded"]


async def test_spans_that_cannot_be_stored_fail_the_attempt_which_is_lost():
    class Full(InMemoryLightningStore):
        async def add_spans(self, spans: Any) -> int:
            raise StoreUnavailableError("no space left")

    store = Full()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> None:
        emit_reward(1.0)

    done, attempt = await run_one(store, agent, settings={"retry_seconds": 0})
    assert done.status == "requeuing"
    assert (attempt.status, attempt.reason) == ("failed", "infrastructure")
    assert "no space left" in attempt.metadata["error"]


async def test_when_agent_and_store_both_fail_the_loss_is_seen(caplog: pytest.LogCaptureFixture):
    class Full(InMemoryLightningStore):
        async def add_spans(self, spans: Any) -> int:
            raise StoreUnavailableError("no space left")

    store = Full()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> None:
        raise KeyError("agent trouble")

    _, attempt = await run_one(store, agent, settings={"retry_seconds": 0})
    assert (attempt.status, attempt.reason) == ("failed", "agent_error")
    assert "no space left" in attempt.metadata["lost_spans"]
    assert any(each.levelname == "ERROR" and "no space left" in each.getMessage() for each in caplog.records)


async def test_when_the_report_fails_the_agents_error_is_still_seen(caplog: pytest.LogCaptureFixture):
    class Unreachable(InMemoryLightningStore):
        async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
            raise StoreUnavailableError("the store is away")

    store = Unreachable()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> None:
        raise KeyError("agent trouble")

    await run_one(store, agent, settings={"retry_seconds": 0})
    assert "the store is away" in caplog.text
    assert "agent trouble" in caplog.text


async def test_spans_that_cannot_be_read_for_hooks_stop_neither_them_nor_the_report(caplog: Any):
    class Unreadable(InMemoryLightningStore):
        async def query_spans(self, *args: Any, **keywords: Any) -> Any:
            raise OSError("connection reset")

    store = Unreadable()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    ended: list[Any] = []

    class Last(Hook):
        async def on_rollout_end(self, *, spans: Any, **keywords: Any) -> None:
            ended.append(spans)

    done, _ = await run_one(store, agent, hooks=[Last()])
    assert done.status == "succeeded"
    assert ended == [[]]
    assert "connection reset" in caplog.text


async def test_a_task_that_has_ended_has_no_heartbeat_and_is_not_cancelled(store: InMemoryLightningStore):
    """Trap 3: a lease that is renewed for ever never expires."""
    taken = await store.start_rollout("task")
    beats = Heartbeat(store, "w", 60.0, Outage("w", 1.0, over=lambda: False))
    released = asyncio.Event()
    task = asyncio.create_task(released.wait())
    beats.watch(taken, task)
    assert beats.watched == [(taken.rollout_id, taken.attempt.attempt_id)]
    released.set()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert beats.watched == []
    await beats.stop()


def test_a_runner_without_agent_or_store_says_what_to_do():
    worker = runner()
    with pytest.raises(ConfigurationError, match="init"):
        worker.get_agent()
    with pytest.raises(ValueError, match="init_worker"):
        worker.get_store()
    assert worker.get_worker_id() == "Worker-Unknown"
    with pytest.raises(RuntimeError, match="iter"):
        worker.run()


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"max_rollouts": -1},
        {"poll_interval": 0},
        {"heartbeat_interval": -1},
        {"retry_seconds": -1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        runner(**settings)


async def test_missing_resources_say_what_to_do(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    _, attempt = await run_one(InMemoryLightningStore(), agent)
    assert "initial_resources" in attempt.metadata["error"]
    assert "reason" not in attempt.metadata


async def test_an_unusable_result_is_named(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        return "a string"

    _, attempt = await run_one(store, agent)
    assert "the agent returned a str ('a string')" in attempt.metadata["error"]


async def test_an_attempt_that_the_store_has_timed_out_is_a_timeout_for_hooks_too():
    """Its heartbeat may hear that the attempt is over before its own timer goes off."""
    ended: list[Any] = []
    heard, calls, limit = threading.Event(), 0, 0.1
    begin = time.monotonic()

    class Last(Hook):
        async def on_rollout_end(self, *, rollout: Any, **keywords: Any) -> None:
            ended.append(rollout.attempt)

    class Watched(InMemoryLightningStore):
        async def renew_leases(self, worker_id: str, attempts: Any) -> list[str]:
            nonlocal calls
            lost = await super().renew_leases(worker_id, attempts)
            calls += bool(lost)
            if calls == 2:
                # What the first call said has been passed on.
                heard.set()
            return lost

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        # Holds the runner's loop up, and with it its timer.
        assert heard.wait(10)
        await asyncio.Event().wait()
        return 1.0

    store = Watched()
    await store.add_resources(RESOURCES)
    config, settings = RolloutConfig(timeout_seconds=limit), {"heartbeat_interval": 0.01}
    _, attempt = await run_one(store, agent, hooks=[Last()], config=config, settings=settings)
    assert time.monotonic() - begin > limit
    assert [(one.status, one.reason) for one in ended] == [("timeout", "timeout")]
    assert (attempt.status, attempt.reason) == ("timeout", "timeout")
