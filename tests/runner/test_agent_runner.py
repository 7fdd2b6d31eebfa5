"""What becomes of a rollout in the runner: every ending is recorded, whatever the agent or the store does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import Any

import pytest

from lightning_core import AgentRunnerV2, Hook, InMemoryLightningStore, LitAgent, emit_reward, rollout
from lightning_core.emitter import find_final_reward, find_reward_spans
from lightning_core.errors import (
    ConfigurationError,
    InvalidOutcomeError,
    NoResourcesError,
    RolloutTimeoutError,
    StoreClosedError,
    StoreUnavailableError,
    VetoRollout,
)
from lightning_core.execution.event import StopEvent
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.outage import Outage
from lightning_core.tracer import DummyTracer
from lightning_core.types import LLM, RolloutConfig, Span, SpanNames

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


async def rewards(store: InMemoryLightningStore, rollout_id: str) -> list[float]:
    spans = await store.query_spans(rollout_id, "latest")
    return [span.attributes["reward"] for span in find_reward_spans(spans)]


# Endings


async def test_returned_reward_is_stored_and_the_rollout_succeeds(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 0.5

    done, attempt = await run_one(store, agent)
    assert (done.status, attempt.status) == ("succeeded", "succeeded")
    assert await rewards(store, done.rollout_id) == [0.5]


@pytest.mark.parametrize("sync", [False, True])
async def test_agent_error_fails_the_rollout_with_its_reason(store: InMemoryLightningStore, sync: bool):
    def fail() -> float:
        raise KeyError("no such tool")

    @rollout
    def sync_agent(task: str, llm: LLM) -> float:
        return fail()

    @rollout
    async def async_agent(task: str, llm: LLM) -> float:
        return fail()

    done, attempt = await run_one(store, sync_agent if sync else async_agent)
    assert (done.status, attempt.status) == ("failed", "failed")
    assert attempt.reason == "agent_error"
    assert "no such tool" in attempt.metadata["error"]
    assert "in fail" in attempt.metadata["traceback"]
    spans = await store.query_spans(done.rollout_id, "latest")
    assert [span.name for span in spans] == [SpanNames.EXCEPTION.value]


async def test_missing_resources_fail_the_rollout_and_say_so():
    """Trap 2: without resources the rollout must not stay `preparing`."""
    store = InMemoryLightningStore()

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    done, attempt = await run_one(store, agent)
    assert done.status == "failed"
    assert attempt.reason == "no_resources"
    assert "initial_resources" in attempt.metadata["error"]


async def test_unknown_resources_id_fails_the_rollout_and_names_it(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    done, attempt = await run_one(store, agent, resources_id="gone")
    assert done.status == "failed"
    assert attempt.reason == "no_resources"
    assert "'gone'" in attempt.metadata["error"]


@pytest.mark.parametrize("result", ["a string", float("nan"), float("inf"), {"reward": 1}, [1.0], object()])
async def test_an_unusable_result_fails_the_rollout(store: InMemoryLightningStore, result: Any):
    """Trap 18: NaN must not reach a training batch; a string is no reward."""

    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        return result

    done, attempt = await run_one(store, agent)
    assert done.status == "failed"
    assert attempt.reason == "agent_error"
    assert "the agent returned a" in attempt.metadata["error"]
    assert await rewards(store, done.rollout_id) == []


@pytest.mark.parametrize("sync", [False, True])
async def test_time_limit_ends_the_attempt_as_timeout(store: InMemoryLightningStore, sync: bool):
    release = threading.Event()

    @rollout
    def sync_agent(task: str, llm: LLM) -> float:
        release.wait(30)
        return 1.0

    @rollout
    async def async_agent(task: str, llm: LLM) -> float:
        await asyncio.Event().wait()
        return 1.0

    done, attempt = await run_one(
        store, sync_agent if sync else async_agent, config=RolloutConfig(timeout_seconds=0.05)
    )
    release.set()
    assert (done.status, attempt.status) == ("failed", "timeout")
    assert attempt.reason == "timeout"


async def test_an_agents_own_timeout_error_is_an_agent_error(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        raise TimeoutError("the tool timed out")

    done, attempt = await run_one(store, agent, config=RolloutConfig(timeout_seconds=30))
    assert (done.status, attempt.reason) == ("failed", "agent_error")


async def test_a_cancelled_runner_ends_its_rollout_as_cancelled(store: InMemoryLightningStore):
    """Trap 1: cancelling must not be recorded as success."""
    begun = asyncio.Event()

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        begun.set()
        await asyncio.Event().wait()
        return 1.0

    enqueued = await store.enqueue_rollout("task")
    with runner().run_context(agent=agent, store=store) as worker:
        task = asyncio.create_task(worker.iter())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    done = await store.get_rollout_by_id(enqueued.rollout_id)
    assert done is not None
    assert done.status == "cancelled"


async def test_an_agent_that_raises_cancelled_error_does_not_succeed(store: InMemoryLightningStore):
    """Trap 1: `CancelledError` is no `Exception`."""

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        raise asyncio.CancelledError

    done, _ = await run_one(store, agent)
    assert done.status == "cancelled"


async def test_a_rollout_cancelled_in_the_store_is_dropped_by_its_worker(store: InMemoryLightningStore):
    begun, dropped = asyncio.Event(), asyncio.Event()

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dropped.set()
            raise
        return 1.0

    enqueued = await store.enqueue_rollout("task")
    with runner(max_rollouts=1, heartbeat_interval=0.02).run_context(agent=agent, store=store) as worker:
        running = asyncio.create_task(worker.iter())
        await begun.wait()
        await store.update_rollout(enqueued.rollout_id, status="cancelled")
        await asyncio.wait_for(dropped.wait(), 10)
        await running
    done = await store.get_rollout_by_id(enqueued.rollout_id)
    assert done is not None
    assert done.status == "cancelled"


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


# Rewards


async def test_a_reward_both_emitted_and_returned_is_stored_once(store: InMemoryLightningStore):
    """Trap 18."""

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        emit_reward(0.7)
        return 0.7

    done, _ = await run_one(store, agent)
    assert await rewards(store, done.rollout_id) == [0.7]


async def test_a_returned_reward_comes_after_those_that_were_emitted(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        emit_reward(0.1)
        emit_reward(0.2)
        return 0.9

    done, _ = await run_one(store, agent)
    assert await rewards(store, done.rollout_id) == [0.1, 0.2, 0.9]
    assert find_final_reward(await store.query_spans(done.rollout_id)) == 0.9


@pytest.mark.parametrize(("result", "reward"), [(1, 1.0), (True, 1.0), (False, 0.0), (0.25, 0.25)])
async def test_numbers_and_bools_count_as_rewards(store: InMemoryLightningStore, result: Any, reward: float):
    """Trap 18."""

    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        return result

    done, _ = await run_one(store, agent)
    assert await rewards(store, done.rollout_id) == [reward]


async def test_returned_spans_are_stored_under_the_attempt_and_not_doubled(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        traced = emit_reward(0.5)
        return [Span.from_attributes(name="mine", attributes={"a": 1}, sequence_id=77)] if task else [traced]

    done, attempt = await run_one(store, agent)
    spans = await store.query_spans(done.rollout_id)
    assert [(span.name, span.attempt_id, span.sequence_id) for span in spans] == [
        (SpanNames.REWARD.value, attempt.attempt_id, 1),
        ("mine", attempt.attempt_id, 2),
    ]


async def test_returned_spans_that_were_traced_already_are_not_doubled(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        return [emit_reward(0.5)]

    done, _ = await run_one(store, agent)
    assert await rewards(store, done.rollout_id) == [0.5]


# Hooks


class Recorder(Hook):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.spans: list[Any] = []

    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
        self.events.append("rollout_start")

    async def on_trace_start(self, *, agent: Any, runner: Any, tracer: Any, rollout: Any) -> None:
        self.events.append("trace_start")

    async def on_trace_end(self, *, agent: Any, runner: Any, tracer: Any, rollout: Any) -> None:
        self.events.append("trace_end")

    async def on_rollout_end(self, *, agent: Any, runner: Any, rollout: Any, spans: Any) -> None:
        self.events.append("rollout_end")
        self.spans = list(spans)


ALL = ["rollout_start", "trace_start", "trace_end", "rollout_end"]


@pytest.mark.parametrize("ending", ["return", "raise", "cancel", "timeout"])
async def test_every_start_has_its_end(store: InMemoryLightningStore, ending: str):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        if ending == "raise":
            raise RuntimeError
        if ending == "cancel":
            raise asyncio.CancelledError
        if ending == "timeout":
            await asyncio.Event().wait()
        return 1.0

    hook = Recorder()
    await run_one(store, agent, hooks=[hook], config=RolloutConfig(timeout_seconds=0.05))
    assert hook.events == ALL


async def test_hooks_see_the_stored_spans_at_the_end(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        emit_reward(0.1)
        return 0.2

    hook = Recorder()
    done, _ = await run_one(store, agent, hooks=[hook])
    assert hook.spans == await store.query_spans(done.rollout_id)
    assert len(hook.spans) == 2


@pytest.mark.parametrize("event", ["on_rollout_start", "on_trace_start", "on_trace_end", "on_rollout_end"])
async def test_a_failing_hook_changes_neither_the_rollout_nor_other_hooks(
    store: InMemoryLightningStore, event: str, caplog: pytest.LogCaptureFixture
):
    async def fail(self: Any, **keywords: Any) -> None:
        raise RuntimeError("hook trouble")

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    recorder = Recorder()
    done, _ = await run_one(store, agent, hooks=[type("Failing", (Hook,), {event: fail})(), recorder])
    assert done.status == "succeeded"
    assert recorder.events == ALL
    assert any(
        "Failing" in record.getMessage()
        and event in record.getMessage()
        and done.rollout_id in record.getMessage()
        for record in caplog.records
    )


async def test_a_veto_cancels_the_rollout_with_its_reason(store: InMemoryLightningStore):
    ran = False

    class Budget(Hook):
        async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
            raise VetoRollout("the budget of 3 dollars is spent")

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        nonlocal ran
        ran = True
        return 1.0

    recorder = Recorder()
    done, attempt = await run_one(store, agent, hooks=[Budget(), recorder])
    assert not ran
    assert done.status == "cancelled"
    assert "the budget of 3 dollars is spent" in attempt.metadata["error"]
    assert recorder.events == ["rollout_start", "rollout_end"]


# Concurrency


async def test_concurrent_rollouts_keep_their_traces_apart(store: InMemoryLightningStore):
    """Trap 11, through the runner: 40 rollouts at once, in tasks and in threads."""
    together = asyncio.Barrier(20)
    sync_together = threading.Barrier(20, timeout=30)

    @rollout
    async def async_agent(task: int, llm: LLM) -> None:
        await together.wait()
        for step in range(3):
            emit_reward(task + step / 10)
            await asyncio.sleep(0)

    @rollout
    def sync_agent(task: int, llm: LLM) -> None:
        sync_together.wait()
        for step in range(3):
            emit_reward(task + step / 10)

    for agent in (async_agent, sync_agent):
        enqueued = [await store.enqueue_rollout(number) for number in range(20)]
        with runner(max_rollouts=20, concurrency=20).run_context(agent=agent, store=store) as worker:
            await worker.iter()
        for number, one in enumerate(enqueued):
            assert await rewards(store, one.rollout_id) == [number, number + 0.1, number + 0.2]


async def test_rollouts_do_not_inherit_each_others_context_variables(store: InMemoryLightningStore):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen: list[str] = []

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        seen.append(variable.get())
        variable.set("dirty")
        return 1.0

    for _ in range(3):
        await store.enqueue_rollout("task")
    with runner(max_rollouts=3).run_context(agent=agent, store=store) as worker:
        await worker.iter()
    assert seen == ["clean"] * 3


@pytest.mark.parametrize("blocking", ["thread", "loop"])
async def test_heartbeats_go_on_while_an_agent_blocks(blocking: str):
    """Trap 8: a sync agent, or an async one that blocks its event loop, keeps its lease."""
    renewed = threading.Semaphore(0)

    class Counting(InMemoryLightningStore):
        async def renew_leases(self, worker_id: str, attempts: Any) -> list[str]:
            lost = await super().renew_leases(worker_id, attempts)
            renewed.release()
            return lost

    store = Counting()
    await store.add_resources(RESOURCES)

    def block() -> float:
        # Longer than the lease would last without them: three heartbeats are a whole lease.
        for _ in range(4):
            assert renewed.acquire(timeout=10)
        return 1.0

    @rollout
    def sync_agent(task: str, llm: LLM) -> float:
        return block()

    @rollout
    async def async_agent(task: str, llm: LLM) -> float:
        return block()

    done, attempt = await run_one(
        store,
        sync_agent if blocking == "thread" else async_agent,
        config=RolloutConfig(unresponsive_seconds=0.3),
    )
    assert (done.status, attempt.status) == ("succeeded", "succeeded")


# The loop


async def test_the_stop_event_ends_an_idle_runner_at_once(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    event = StopEvent()
    with runner(poll_interval=3600).run_context(agent=agent, store=store) as worker:
        task = asyncio.create_task(worker.iter(event=event))
        enqueued = await store.enqueue_rollout("task")
        await store.wait_for_rollouts(rollout_ids=[enqueued.rollout_id], timeout=10)
        event.set()
        await asyncio.wait_for(task, 10)


async def test_the_stop_event_lets_a_running_rollout_finish(store: InMemoryLightningStore):
    event, begun, go = StopEvent(), asyncio.Event(), asyncio.Event()

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        begun.set()
        await go.wait()
        return 1.0

    first = await store.enqueue_rollout("first")
    second = await store.enqueue_rollout("second")
    with runner().run_context(agent=agent, store=store) as worker:
        task = asyncio.create_task(worker.iter(event=event))
        await begun.wait()
        event.set()
        go.set()
        await asyncio.wait_for(task, 10)
    statuses = [
        (await store.get_rollout_by_id(one.rollout_id)).status  # type: ignore[union-attr]
        for one in (first, second)
    ]
    assert statuses == ["succeeded", "queuing"]


async def test_a_foreign_event_stops_the_runner_too(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    event = threading.Event()
    with runner(poll_interval=3600).run_context(agent=agent, store=store) as worker:
        task = asyncio.create_task(worker.iter(event=event))
        await asyncio.sleep(0)
        event.set()
        await asyncio.wait_for(task, 10)


async def test_iter_survives_a_store_that_fails_for_a_while(store: InMemoryLightningStore):
    class Flaky(InMemoryLightningStore):
        failures = 1

        async def dequeue_rollouts(self, *args: Any, **keywords: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailableError("the disk is away")
            return await super().dequeue_rollouts(*args, **keywords)

    flaky = Flaky()
    await flaky.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    done, _ = await run_one(flaky, agent)
    assert done.status == "succeeded"


async def test_a_closed_store_ends_the_runner(store: InMemoryLightningStore):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    with runner(poll_interval=3600).run_context(agent=agent, store=store) as worker:
        task = asyncio.create_task(worker.iter())
        enqueued = await store.enqueue_rollout("task")
        await store.wait_for_rollouts(rollout_ids=[enqueued.rollout_id], timeout=10)
        await store.close()
        with pytest.raises(StoreClosedError):
            await asyncio.wait_for(task, 10)


async def test_spans_that_cannot_be_stored_fail_the_rollout():
    class Full(InMemoryLightningStore):
        async def add_spans(self, spans: Any) -> int:
            raise StoreUnavailableError("no space left")

    store = Full()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> None:
        emit_reward(1.0)

    done, attempt = await run_one(store, agent, settings={"retry_seconds": 0})
    assert done.status == "failed"
    assert attempt.reason == "infrastructure"
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


async def test_a_cancellation_during_the_report_does_not_lose_it():
    reporting = asyncio.Event()

    class Slow(InMemoryLightningStore):
        async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
            if not reporting.is_set():
                reporting.set()
                await asyncio.Event().wait()
            return await super().update_attempt(*args, **keywords)

    store = Slow()
    await store.add_resources(RESOURCES)
    enqueued = await store.enqueue_rollout("task")

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    with runner().run_context(agent=agent, store=store) as worker:
        running = asyncio.create_task(worker.iter())
        await asyncio.wait_for(reporting.wait(), 10)
        running.cancel()
        await asyncio.wait({running}, timeout=10)
    done = await store.get_rollout_by_id(enqueued.rollout_id)
    assert done is not None
    assert done.status == "succeeded"


async def test_work_that_is_handed_out_just_when_the_runner_is_cancelled_is_ended(
    store: InMemoryLightningStore,
):
    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    class Late(InMemoryLightningStore):
        async def dequeue_rollouts(self, limit: int = 1, *args: Any, **keywords: Any) -> Any:
            if not args[1:]:
                return []
            with contextlib.suppress(asyncio.CancelledError):
                waiting.set()
                await asyncio.Event().wait()
            # The answer was on its way already.
            return await super().dequeue_rollouts(limit, args[0])

    waiting = asyncio.Event()
    late = Late()
    await late.add_resources(RESOURCES)
    enqueued = await late.enqueue_rollout("task")
    with runner().run_context(agent=agent, store=late) as worker:
        running = asyncio.create_task(worker.iter())
        await asyncio.wait_for(waiting.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 10)
    done = await late.get_rollout_by_id(enqueued.rollout_id)
    assert done is not None
    assert done.status == "cancelled"


@pytest.mark.parametrize("sync", [False, True])
async def test_an_agent_that_exits_fails_its_rollout_and_not_the_runner(
    store: InMemoryLightningStore, sync: bool
):
    if sync:

        @rollout
        def agent(task: str, llm: LLM) -> float:
            raise SystemExit(2)

    else:

        @rollout
        async def agent(task: str, llm: LLM) -> float:
            raise SystemExit(2)

    hook = Recorder()
    done, attempt = await run_one(store, agent, hooks=[hook])
    assert (done.status, attempt.metadata["error"]) == ("failed", "SystemExit: 2")
    assert hook.events == ALL


async def test_a_cancellation_during_a_hooks_end_still_reaches_the_other_hooks(store: InMemoryLightningStore):
    ending = asyncio.Event()

    class Slow(Hook):
        async def on_rollout_end(self, **keywords: Any) -> None:
            ending.set()
            await asyncio.Event().wait()

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    recorder = Recorder()
    enqueued = await store.enqueue_rollout("task")
    with runner().run_context(agent=agent, store=store, hooks=[Slow(), recorder]) as worker:
        running = asyncio.create_task(worker.iter())
        await asyncio.wait_for(ending.wait(), 10)
        running.cancel()
        await asyncio.wait({running}, timeout=10)
    assert recorder.events == ALL
    done = await store.get_rollout_by_id(enqueued.rollout_id)
    assert done is not None
    assert done.status == "succeeded"


async def test_spans_that_cannot_be_read_for_hooks_stop_neither_them_nor_the_report(caplog: Any):
    class Unreadable(InMemoryLightningStore):
        async def query_spans(self, *args: Any, **keywords: Any) -> Any:
            raise OSError("connection reset")

    store = Unreadable()
    await store.add_resources(RESOURCES)

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        return 1.0

    hook = Recorder()
    done, _ = await run_one(store, agent, hooks=[hook])
    assert done.status == "succeeded"
    assert hook.events == ALL
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


async def test_two_runner_contexts_one_after_the_other_both_store_spans(store: InMemoryLightningStore):
    """Trap 33."""

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        emit_reward(0.3)
        return 1.0

    worker = runner()
    for _ in range(2):
        with worker.run_context(agent=agent, store=store):
            done = await worker.step("task")
        assert await rewards(store, done.rollout_id) == [0.3, 1.0]


# step


async def test_step_returns_the_rollout_and_uses_given_resources(store: InMemoryLightningStore):
    seen: list[str] = []

    @rollout
    async def agent(task: str, llm: LLM) -> float:
        seen.append(llm.model)
        return 1.0

    with runner().run_context(agent=agent, store=store) as worker:
        done = await worker.step(
            "task", resources={"llm": LLM(endpoint="http://localhost/v1", model="other")}, mode="val"
        )
    assert seen == ["other"]
    assert (done.status, done.mode, done.input) == ("succeeded", "val", "task")


@pytest.mark.parametrize(
    ("problem", "error"),
    [
        ("raise", KeyError),
        ("string", InvalidOutcomeError),
        ("timeout", RolloutTimeoutError),
    ],
)
async def test_step_raises(store: InMemoryLightningStore, problem: str, error: type[Exception]):
    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        if problem == "raise":
            raise KeyError("x")
        if problem == "timeout":
            raise RolloutTimeoutError("x")
        return "text"

    with runner().run_context(agent=agent, store=store) as worker, pytest.raises(error):
        await worker.step("task")


async def test_step_raises_when_there_are_no_resources():
    @rollout
    async def agent(task: str, llm: LLM) -> Any:
        return None

    store = InMemoryLightningStore()
    with runner().run_context(agent=agent, store=store) as worker, pytest.raises(NoResourcesError):
        await worker.step("task")


# Misuse


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
    "settings", [{"concurrency": 0}, {"max_rollouts": -1}, {"poll_interval": 0}, {"heartbeat_interval": -1}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        runner(**settings)
