"""Runner tests: hooks, the order of what is stored, cancellation, and the ends of ``iter`` and ``step``."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from lightning_core.emitter import emit_reward
from lightning_core.errors import (
    InvalidOutcomeError,
    NoResourcesError,
    RolloutTimeoutError,
    StoreClosedError,
    StoreUnavailableError,
    VetoRollout,
)
from lightning_core.execution.event import StopEvent
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.types import LLM, Hook, RolloutConfig

from ._runner_setup import ALL_EVENTS, PATIENCE, RESOURCES, AsyncAgent, MakeRunner, Recorder, Session, rewards

__all__ = ["LifecycleTests"]


async def _one(task: Any, resources: Any) -> float:
    return 1.0


class _Ordered(InMemoryLightningStore):
    """Notes how many spans there were when an attempt's end was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.spans_at_end: list[int] = []

    async def update_attempt(self, rollout_id: str, attempt_id: str, *args: Any, **keywords: Any) -> Any:
        self.spans_at_end.append(len(await self.query_spans(rollout_id, attempt_id)))
        return await super().update_attempt(rollout_id, attempt_id, *args, **keywords)


class LifecycleTests:
    """Every start has its end, and nothing ends before what belongs to it is stored."""

    # Hooks

    @pytest.mark.parametrize("ending", ["return", "raise", "cancel", "timeout", "nonsense"])
    async def test_every_start_has_its_end(self, session: Session, ending: str) -> None:
        """In order, and the last event shows how the attempt is going to end."""

        async def end(task: Any, resources: Any) -> Any:
            if ending == "raise":
                raise RuntimeError
            if ending == "cancel":
                raise asyncio.CancelledError
            if ending == "timeout":
                await asyncio.Event().wait()
            return "nonsense" if ending == "nonsense" else 1.0

        hook = Recorder()
        config = RolloutConfig(timeout_seconds=0.05 if ending == "timeout" else None)
        _, attempt = await session.run(AsyncAgent(end), hooks=[hook], config=config)
        assert hook.events == ALL_EVENTS
        assert hook.ended is not None
        assert (hook.ended.status, hook.ended.reason) == (attempt.status, attempt.reason)

    async def test_hooks_see_the_stored_spans_at_the_end(self, session: Session) -> None:
        """Those of the trace, and what the agent returned."""

        async def give(task: Any, resources: Any) -> float:
            emit_reward(0.1)
            return 0.2

        hook = Recorder()
        done, _ = await session.run(AsyncAgent(give), hooks=[hook])
        assert hook.spans == await session.store.query_spans(done.rollout_id)
        assert await rewards(session.store, done.rollout_id) == [0.1, 0.2]

    @pytest.mark.parametrize("event", ALL_EVENTS)
    async def test_a_failing_hook_changes_neither_the_rollout_nor_other_hooks(
        self, session: Session, event: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged with its name, the event and the rollout."""

        async def fail(self: Any, **keywords: Any) -> None:
            raise RuntimeError("hook trouble")

        recorder = Recorder()
        failing: Hook = type("Failing", (Hook,), {event: fail})()
        done, _ = await session.run(AsyncAgent(_one), hooks=[failing, recorder])
        assert done.status == "succeeded"
        assert recorder.events == ALL_EVENTS
        logged = [record.getMessage() for record in caplog.records]
        assert any("Failing" in text and event in text and done.rollout_id in text for text in logged)

    async def test_a_veto_cancels_the_rollout(self, session: Session) -> None:
        """The one way in which a hook may stop it; the reason is kept, and the agent is not run."""
        ran: list[Any] = []

        class Budget(Hook):
            async def on_rollout_start(self, **keywords: Any) -> None:
                raise VetoRollout("the budget of 3 dollars is spent")

        async def run(task: Any, resources: Any) -> None:
            ran.append(task)

        recorder = Recorder()
        done, attempt = await session.run(AsyncAgent(run), hooks=[Budget(), recorder])
        assert ran == []
        assert (done.status, attempt.reason) == ("cancelled", "cancelled")
        assert "the budget of 3 dollars is spent" in attempt.metadata["error"]
        assert recorder.events == ["on_rollout_start", "on_rollout_end"]

    async def test_a_cancellation_during_a_hooks_end_still_reaches_the_other_hooks(
        self, session: Session
    ) -> None:
        """And the report."""
        ending = asyncio.Event()

        class Slow(Hook):
            async def on_rollout_end(self, **keywords: Any) -> None:
                ending.set()
                await asyncio.Event().wait()

        recorder = Recorder()
        enqueued = await session.store.enqueue_rollout("task")
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(_one), store=session.store, hooks=[Slow(), recorder]):
            running = asyncio.create_task(runner.iter())
            await asyncio.wait_for(ending.wait(), PATIENCE)
            running.cancel()
            await asyncio.wait({running}, timeout=PATIENCE)
        assert running.cancelled()
        assert recorder.events == ALL_EVENTS
        assert (await session.read(enqueued.rollout_id))[0].status == "succeeded"

    # What is stored when

    async def test_spans_are_stored_before_the_attempt_ends(self, make_runner: MakeRunner) -> None:
        """Whoever sees a final rollout sees all of its spans."""
        store = _Ordered()
        await store.add_resources(RESOURCES)

        async def give(task: Any, resources: Any) -> float:
            emit_reward(0.1)
            if task == "fail":
                raise RuntimeError
            return 0.2

        session = Session(store, make_runner)
        for task in ("succeed", "fail"):
            done, _ = await session.run(AsyncAgent(give), task)
            spans = await store.query_spans(done.rollout_id)
            assert len(spans) >= 2
            assert store.spans_at_end.pop() == len(spans)

    # Cancellation

    async def test_a_cancelled_runner_ends_its_rollouts_as_cancelled(self, session: Session) -> None:
        """Trap 1: it must not be recorded as success, nor left live."""
        begun = asyncio.Event()

        async def wait(task: Any, resources: Any) -> float:
            emit_reward(0.5)
            begun.set()
            await asyncio.Event().wait()
            return 1.0

        enqueued = await session.store.enqueue_rollout("task")
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(wait), store=session.store):
            running = asyncio.create_task(runner.iter())
            await asyncio.wait_for(begun.wait(), PATIENCE)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(running, PATIENCE)
        done, attempt = await session.read(enqueued.rollout_id)
        assert (done.status, attempt.status, attempt.reason) == ("cancelled", "cancelled", "cancelled")
        assert await rewards(session.store, done.rollout_id) == [0.5]

    async def test_a_cancellation_during_the_report_does_not_lose_it(self, make_runner: MakeRunner) -> None:
        """The work was done."""
        reporting = asyncio.Event()

        class Slow(InMemoryLightningStore):
            async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
                if not reporting.is_set():
                    reporting.set()
                    await asyncio.Event().wait()
                return await super().update_attempt(*args, **keywords)

        session = Session(Slow(), make_runner)
        await session.store.add_resources(RESOURCES)
        enqueued = await session.store.enqueue_rollout("task")
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(_one), store=session.store):
            running = asyncio.create_task(runner.iter())
            await asyncio.wait_for(reporting.wait(), PATIENCE)
            running.cancel()
            await asyncio.wait({running}, timeout=PATIENCE)
        assert (await session.read(enqueued.rollout_id))[0].status == "succeeded"

    async def test_work_that_is_handed_out_just_when_the_runner_is_cancelled_is_not_lost(
        self, make_runner: MakeRunner
    ) -> None:
        """Trap 3: the answer was on its way already."""
        waiting = asyncio.Event()

        class Late(InMemoryLightningStore):
            async def dequeue_rollouts(
                self, limit: int = 1, worker_id: Any = None, *args: Any, **keywords: Any
            ) -> Any:
                with contextlib.suppress(asyncio.CancelledError):
                    waiting.set()
                    await asyncio.Event().wait()
                return await super().dequeue_rollouts(limit, worker_id)

        session = Session(Late(), make_runner)
        enqueued = await session.store.enqueue_rollout("task")
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(_one), store=session.store):
            running = asyncio.create_task(runner.iter())
            await asyncio.wait_for(waiting.wait(), PATIENCE)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(running, PATIENCE)
        rollout = await session.store.get_rollout_by_id(enqueued.rollout_id)
        assert rollout is not None
        assert rollout.status in ("cancelled", "queuing", "requeuing")

    # iter

    async def test_max_rollouts_is_the_most_that_are_taken(self, session: Session) -> None:
        """The rest stays in the queue."""
        last = await session.store.enqueue_rollout("never run")
        await session.store.update_rollout(last.rollout_id, status="cancelled")
        left = [await session.store.enqueue_rollout(number) for number in range(5)]
        runner = session.runner(max_rollouts=3, concurrency=2)
        with runner.run_context(agent=AsyncAgent(_one), store=session.store):
            await asyncio.wait_for(runner.iter(), PATIENCE)
        found = await session.store.query_rollouts(rollout_ids=[one.rollout_id for one in left])
        assert [one.status for one in found] == ["succeeded"] * 3 + ["queuing"] * 2

    @pytest.mark.parametrize("make_event", [StopEvent, threading.Event], ids=["ours", "of threading"])
    async def test_the_stop_event_ends_an_idle_runner(self, session: Session, make_event: Any) -> None:
        """At once, and not when it looks for work the next time."""
        event = make_event()
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(_one), store=session.store):
            running = asyncio.create_task(runner.iter(event=event))
            enqueued = await session.store.enqueue_rollout("task")
            await session.store.wait_for_rollouts(rollout_ids=[enqueued.rollout_id], timeout=PATIENCE)
            event.set()
            await asyncio.wait_for(running, PATIENCE)

    async def test_the_stop_event_lets_a_running_rollout_finish(self, session: Session) -> None:
        """And nothing else begins."""
        event, begun, go = StopEvent(), asyncio.Event(), asyncio.Event()

        async def wait(task: Any, resources: Any) -> float:
            begun.set()
            await go.wait()
            return 1.0

        rollouts = [await session.store.enqueue_rollout(number) for number in range(2)]
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(wait), store=session.store):
            running = asyncio.create_task(runner.iter(event=event))
            await asyncio.wait_for(begun.wait(), PATIENCE)
            event.set()
            go.set()
            await asyncio.wait_for(running, PATIENCE)
        found = await session.store.query_rollouts(rollout_ids=[one.rollout_id for one in rollouts])
        assert [one.status for one in found] == ["succeeded", "queuing"]

    async def test_a_store_that_is_away_for_a_moment_does_not_end_the_runner(
        self, make_runner: MakeRunner
    ) -> None:
        """While it takes work out, and when it reports."""

        class Flaky(InMemoryLightningStore):
            def __init__(self) -> None:
                super().__init__()
                self.failing = {"dequeue", "spans", "report"}

            def _fail(self, what: str) -> None:
                if what in self.failing:
                    self.failing.remove(what)
                    raise StoreUnavailableError("the disk is away")

            async def dequeue_rollouts(self, *args: Any, **keywords: Any) -> Any:
                self._fail("dequeue")
                return await super().dequeue_rollouts(*args, **keywords)

            async def add_spans(self, spans: Any) -> int:
                self._fail("spans")
                return await super().add_spans(spans)

            async def update_attempt(self, *args: Any, **keywords: Any) -> Any:
                self._fail("report")
                return await super().update_attempt(*args, **keywords)

        store = Flaky()
        await store.add_resources(RESOURCES)
        done, _ = await Session(store, make_runner).run(AsyncAgent(_one))
        assert store.failing == set()
        assert done.status == "succeeded"
        assert await rewards(store, done.rollout_id) == [1.0]

    async def test_a_closed_store_ends_the_runner(self, session: Session) -> None:
        """It will not come back."""
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(_one), store=session.store):
            running = asyncio.create_task(runner.iter())
            enqueued = await session.store.enqueue_rollout("task")
            await session.store.wait_for_rollouts(rollout_ids=[enqueued.rollout_id], timeout=PATIENCE)
            await session.store.close()
            with pytest.raises(StoreClosedError):
                await asyncio.wait_for(running, PATIENCE)

    async def test_it_can_be_set_up_again(self, session: Session) -> None:
        """Trap 33: and stores spans again."""
        runner = session.runner()

        async def give(task: Any, resources: Any) -> float:
            emit_reward(0.3)
            return 1.0

        for _ in range(2):
            with runner.run_context(agent=AsyncAgent(give), store=session.store):
                done = await runner.step("task")
            assert await rewards(session.store, done.rollout_id) == [0.3, 1.0]

    # step

    async def test_step_returns_the_rollout_and_uses_given_resources(self, session: Session) -> None:
        """Without the queue."""
        seen: list[str] = []

        async def look(task: Any, resources: Any) -> None:
            seen.append(resources["llm"].model)

        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(look), store=session.store):
            done = await runner.step(
                "task", resources={"llm": LLM(endpoint="http://localhost/v1", model="other")}, mode="val"
            )
        assert seen == ["other"]
        assert (done.status, done.mode, done.input) == ("succeeded", "val", "task")

    @pytest.mark.parametrize(
        ("problem", "error"),
        [
            ("raise", KeyError),
            ("nonsense", InvalidOutcomeError),
            ("timeout", RolloutTimeoutError),
            ("no resources", NoResourcesError),
        ],
    )
    async def test_step_raises(
        self, make_runner: MakeRunner, session: Session, problem: str, error: type[Exception]
    ) -> None:
        """What ``iter`` only records."""

        async def fail(task: Any, resources: Any) -> Any:
            if problem == "raise":
                raise KeyError("x")
            if problem == "timeout":
                raise RolloutTimeoutError("x")
            return "text"

        store = InMemoryLightningStore() if problem == "no resources" else session.store
        runner = session.runner()
        with runner.run_context(agent=AsyncAgent(fail), store=store), pytest.raises(error):
            await runner.step("task")
        assert [one.status for one in await store.query_rollouts()] == ["failed"]
