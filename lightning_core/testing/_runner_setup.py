"""What the runner tests share: agents made of functions, a hook that remembers, and a store that can be watched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from lightning_core.emitter import find_reward_spans, get_reward_value
from lightning_core.litagent import LitAgent
from lightning_core.runner.base import BaseRunner
from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.dummy import DummyTracer
from lightning_core.types import LLM, Attempt, Hook, NamedResources, RolloutConfig, RolloutV2

__all__ = [
    "ALL_EVENTS",
    "PATIENCE",
    "RESOURCES",
    "AsyncAgent",
    "MakeRunner",
    "Recorder",
    "Session",
    "SyncAgent",
    "rewards",
]

PATIENCE = 20.0
"""How long a test waits for something that should happen at once, in seconds."""

RESOURCES: NamedResources = {"llm": LLM(endpoint="http://localhost/v1", model="test")}

ALL_EVENTS = ["on_rollout_start", "on_trace_start", "on_trace_end", "on_rollout_end"]


class MakeRunner(Protocol):
    """Makes a runner that nobody has set up."""

    def __call__(
        self,
        tracer: BaseTracer,
        *,
        max_rollouts: int | None = None,
        concurrency: int = 1,
        heartbeat_interval: float = 10.0,
    ) -> BaseRunner[Any]:
        """Make it.

        Args:
            tracer: What it traces with.
            max_rollouts: How many rollouts ``iter`` runs before it returns.
            concurrency: How many may run at the same time.
            heartbeat_interval: Seconds between heartbeats.
        """
        ...


class AsyncAgent(LitAgent[Any]):
    """Awaits a function of the task and the resources."""

    def __init__(self, function: Callable[[Any, Any], Awaitable[Any]]) -> None:
        super().__init__()
        self._function = function

    async def rollout_async(self, task: Any, resources: Any, rollout: RolloutV2) -> Any:
        """Run the function."""
        return await self._function(task, resources)


class SyncAgent(LitAgent[Any]):
    """Calls a function of the task and the resources."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self._function = function

    def rollout(self, task: Any, resources: Any, rollout: RolloutV2) -> Any:
        """Run the function."""
        return self._function(task, resources)


class Recorder(Hook):
    """Remembers the events of each rollout, the spans that it was shown, and how the attempt ended."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.spans: list[Any] = []
        self.ended: Attempt | None = None

    async def on_rollout_start(self, **keywords: Any) -> None:
        """Remember it."""
        self.events.append("on_rollout_start")

    async def on_trace_start(self, **keywords: Any) -> None:
        """Remember it."""
        self.events.append("on_trace_start")

    async def on_trace_end(self, **keywords: Any) -> None:
        """Remember it."""
        self.events.append("on_trace_end")

    async def on_rollout_end(self, *, rollout: Any, spans: Any, **keywords: Any) -> None:
        """Remember it, the spans and the attempt."""
        self.events.append("on_rollout_end")
        self.spans = list(spans)
        self.ended = rollout.attempt


class Session:
    """One store, and runners that work on it.

    Attributes:
        store: The store; it holds resources.
        make_runner: Makes the runners.
    """

    def __init__(self, store: LightningStore, make_runner: MakeRunner) -> None:
        self.store = store
        self.make_runner = make_runner

    def runner(self, **settings: Any) -> BaseRunner[Any]:
        """Make a runner."""
        return self.make_runner(DummyTracer(), **settings)

    async def run(
        self,
        agent: LitAgent[Any],
        *tasks: Any,
        hooks: list[Hook] | None = None,
        config: RolloutConfig | None = None,
        resources_id: str | None = None,
        number: int | None = None,
        **settings: Any,
    ) -> tuple[RolloutV2, Attempt]:
        """Enqueue tasks and run ``number`` rollouts, by default as many.

        Returns:
            The last one, and its latest attempt.
        """
        tasks = tasks or ("task",)
        rollouts = [
            await self.store.enqueue_rollout(task, config=config, resources_id=resources_id) for task in tasks
        ]
        runner = self.runner(max_rollouts=len(tasks) if number is None else number, **settings)
        with runner.run_context(agent=agent, store=self.store, hooks=hooks):
            await asyncio.wait_for(runner.iter(), PATIENCE)
        return await self.read(rollouts[-1].rollout_id)

    async def read(self, rollout_id: str) -> tuple[RolloutV2, Attempt]:
        """Return a rollout and its latest attempt."""
        rollout = await self.store.get_rollout_by_id(rollout_id)
        attempt = await self.store.get_latest_attempt(rollout_id)
        assert rollout is not None
        assert attempt is not None
        return rollout, attempt


async def rewards(store: LightningStore, rollout_id: str) -> list[float | None]:
    """Return the rewards of the latest attempt, in order."""
    spans = await store.query_spans(rollout_id, "latest")
    return [get_reward_value(span) for span in find_reward_spans(spans)]
