"""The contract of a lifecycle hook: it follows rollouts that succeed, fail, overlap and never get to a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lightning_core.errors import VetoRollout
from lightning_core.litagent import LitAgent
from lightning_core.plugin.lifecycle import EVENTS, LifecycleHooks, collect_hooks
from lightning_core.runner.agent import AgentRunnerV2
from lightning_core.runner.base import BaseRunner
from lightning_core.store.memory import InMemoryLightningStore
from lightning_core.tracer.dummy import DummyTracer
from lightning_core.types import LLM, Hook

__all__ = ["HookConformance"]


class _Agent(LitAgent[Any]):
    """Returns the task as its reward; fails on the task ``"fail"``."""

    async def rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
        await asyncio.sleep(0)
        if task == "fail":
            raise RuntimeError("the agent fails, as the test wants")
        return float(task)


class HookConformance:
    """Inherit it and override the fixture ``make_hook``; pytest checks the hook.

    Needs pytest-asyncio in auto mode, or ``pytestmark = pytest.mark.asyncio``.

    Example:
        ::

            class TestBudget(HookConformance):
                @pytest.fixture
                def make_hook(self):
                    return lambda: Budget(limit=1e9)
    """

    @pytest.fixture
    def make_hook(self) -> Callable[[], Hook]:
        """What makes a new hook that vetoes none of the test's rollouts."""
        raise NotImplementedError("override the fixture make_hook")

    def test_it_is_accepted_and_follows_an_event(self, make_hook: Callable[[], Hook]) -> None:
        """Its overrides are async, and take only what the events pass."""
        calls = collect_hooks([make_hook()])
        assert any(getattr(calls, event) for event in EVENTS), "it overrides none of the events"

    async def test_it_follows_a_rollout(self, make_hook: Callable[[], Hook]) -> None:
        """All four events, in a worker."""
        with _Session(make_hook()) as session:
            await session.rollout(0.5)

    async def test_it_follows_a_rollout_that_fails(self, make_hook: Callable[[], Hook]) -> None:
        """The end comes also when the agent has raised."""
        with _Session(make_hook()) as session:
            await session.rollout("fail")

    async def test_it_follows_a_rollout_without_a_trace(self, make_hook: Callable[[], Hook]) -> None:
        """A rollout that is vetoed by another hook, or cancelled early, has a start and an end only, and no spans."""
        with _Session(make_hook()) as session:
            await session.start_and_end_only(0.5)

    async def test_it_follows_rollouts_at_the_same_time(self, make_hook: Callable[[], Hook]) -> None:
        """A runner with ``concurrency`` interleaves the events of its rollouts."""
        with _Session(make_hook()) as session:
            await asyncio.gather(*(session.rollout(task) for task in (0.0, "fail", 1.0, 0.5)))

    async def test_it_can_be_used_again(self, make_hook: Callable[[], Hook]) -> None:
        """The same hook serves a second ``fit``."""
        hook = make_hook()
        for task in (0.0, 1.0):
            with _Session(hook) as session:
                await session.rollout(task)

    async def test_a_runner_awaits_it_without_an_error(
        self, make_hook: Callable[[], Hook], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The runner logs what a hook raises, and nothing is logged."""
        runner = AgentRunnerV2[Any](DummyTracer())
        with runner.run_context(agent=_Agent(), store=InMemoryLightningStore(), hooks=[make_hook()]):
            await runner.step(0.5, resources={"llm": LLM(endpoint="http://localhost", model="none")})
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


class _Session:
    """Drives a hook through rollouts by hand, so that what it raises fails the test."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.calls: LifecycleHooks = collect_hooks([hook])
        self.store = InMemoryLightningStore()
        self.tracer = DummyTracer()
        self.runner: BaseRunner[Any] = AgentRunnerV2(self.tracer)
        self.agent = _Agent()

    def __enter__(self) -> _Session:
        self.hook.init()
        self.hook.init_worker(0)
        self.runner.init(self.agent)
        self.runner.init_worker(0, self.store)
        return self

    def __exit__(self, *error: object) -> None:
        self.runner.teardown_worker(0)
        self.runner.teardown()
        self.hook.teardown_worker(0)
        self.hook.teardown()

    async def rollout(self, task: Any) -> None:
        rollout = await self.store.start_rollout(task)
        ids = rollout.rollout_id, rollout.attempt.attempt_id
        await self._call("on_rollout_start", rollout=rollout)
        async with self.tracer.trace_context(store=self.store, rollout_id=ids[0], attempt_id=ids[1]):
            await self._call("on_trace_start", tracer=self.tracer, rollout=rollout)
            try:
                from lightning_core.emitter import emit_reward

                emit_reward(await self.agent.rollout_async(task, {}, rollout))
            except RuntimeError:
                assert task == "fail"
            finally:
                await self._call("on_trace_end", tracer=self.tracer, rollout=rollout)
        spans = await self.store.query_spans(*ids)
        await self._call("on_rollout_end", rollout=rollout, spans=spans)
        await self.store.update_attempt(*ids, status="failed" if task == "fail" else "succeeded")

    async def start_and_end_only(self, task: Any) -> None:
        rollout = await self.store.start_rollout(task)
        await self._call("on_rollout_start", rollout=rollout)
        await self._call("on_rollout_end", rollout=rollout, spans=[])

    async def _call(self, event: str, **keywords: Any) -> None:
        for _, call in getattr(self.calls, event):
            try:
                await call(agent=self.agent, runner=self.runner, **keywords)
            except VetoRollout as veto:
                raise AssertionError(f"the hook vetoes a rollout of the test: {veto}") from veto
