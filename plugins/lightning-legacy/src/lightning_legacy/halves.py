"""The two halves of the runner: the calls to client and agent that block, and those that are awaited.

What a runner does with them is written once, as coroutines. Those of the sync half never suspend, so they need no event
loop, and an agent may start one of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol, TypeVar, cast

from lightning_core.errors import AgentError
from lightning_core.execution.base import ExecutionEvent
from lightning_core.litagent import LitAgent, call_rollout
from lightning_core.runner.threads import AgentThreads
from lightning_core.types import AttemptedRollout, NamedResources, ResourcesUpdate, Rollout, Task

from .client import AgentLightningClient

__all__ = ["AsyncHalf", "Half", "SyncHalf", "finish"]

T = TypeVar("T")

_LOOK_SECONDS = 0.05
"""How often an event that cannot be awaited, such as one of ``multiprocessing``, is looked at."""


class Half(Protocol):
    """What a runner calls."""

    async def poll(self) -> Task | None:
        """Wait for the next task; ``None`` if there is none any more, or a stop was asked for."""
        ...

    async def resources(self, resources_id: str | None) -> ResourcesUpdate | None:
        """Fetch these resources, or the latest."""
        ...

    async def post(self, rollout: Rollout) -> bool:
        """Post what became of a task, and return whether the server has taken it."""
        ...

    async def run_agent(self, resources: NamedResources, rollout: AttemptedRollout) -> Any:
        """Run the agent on a task, and return what it returns."""
        ...


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        RuntimeError: If it does suspend.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError(
        "something asynchronous was called from run() or iter(): use run_async() or iter_async()"
    )


class SyncHalf:
    """Calls that block, all in the thread of the caller."""

    def __init__(self, client: Any, agent: LitAgent[Any], stop: ExecutionEvent | None = None) -> None:
        self._client = client
        self._agent = agent
        self._stop = stop

    async def poll(self) -> Task | None:
        """Wait for the next task. A stop that is asked for meanwhile is noticed after it."""
        if self._stop is not None and self._stop.is_set():
            return None
        return self._client.poll_next_task()

    async def resources(self, resources_id: str | None) -> ResourcesUpdate | None:
        """Fetch these resources, or the latest."""
        if resources_id is None:
            return self._client.get_latest_resources()
        return self._client.get_resources_by_id(resources_id)

    async def post(self, rollout: Rollout) -> bool:
        """Post what became of a task, and return whether the server has taken it."""
        return _is_taken(self._client, self._client.post_rollout(rollout))

    async def run_agent(self, resources: NamedResources, rollout: AttemptedRollout) -> Any:
        """Run a sync agent."""
        return call_rollout(self._agent.rollout, rollout.input, resources, rollout)


class AsyncHalf:
    """Calls that are awaited. A sync agent gets a thread, and so does what the client's class has in sync form only."""

    def __init__(
        self, client: Any, agent: LitAgent[Any], threads: AgentThreads, stop: ExecutionEvent | None = None
    ) -> None:
        self._client = client
        self._agent = agent
        self._threads = threads
        self._stop = stop

    async def poll(self) -> Task | None:
        """Wait for the next task, or until a stop is asked for."""
        if self._stop is None:
            return await self._ask("poll_next_task")
        if self._stop.is_set():
            return None
        asking = asyncio.ensure_future(self._ask("poll_next_task"))
        stopped = asyncio.ensure_future(_wait_for(self._stop))
        try:
            await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
            # A task that has come all the same is this runner's by now.
            return asking.result() if asking.done() else None
        finally:
            for future in (asking, stopped):
                future.cancel()
            await asyncio.wait({asking, stopped})

    async def resources(self, resources_id: str | None) -> ResourcesUpdate | None:
        """Fetch these resources, or the latest."""
        if resources_id is None:
            return await self._ask("get_latest_resources")
        return await self._ask("get_resources_by_id", resources_id)

    async def post(self, rollout: Rollout) -> bool:
        """Post what became of a task, and return whether the server has taken it."""
        return _is_taken(self._client, await self._ask("post_rollout", rollout))

    async def run_agent(self, resources: NamedResources, rollout: AttemptedRollout) -> Any:
        """Run the agent.

        Raises:
            AgentError: If the agent was cancelled by something of its own.
        """
        agent = self._agent
        try:
            if agent.is_async():
                return await call_rollout(agent.rollout_async, rollout.input, resources, rollout)
            return await self._threads.run(
                lambda: call_rollout(agent.rollout, rollout.input, resources, rollout)
            )
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise AgentError("the agent awaited something that was cancelled") from error

    async def _ask(self, name: str, *arguments: Any) -> Any:
        if _is_async_first(self._client.__class__, name):
            return await getattr(self._client, f"{name}_async")(*arguments)
        return await self._threads.run(lambda: getattr(self._client, name)(*arguments))


def _is_taken(client: Any, answer: Any) -> bool:
    if isinstance(answer, Mapping):
        return cast("Mapping[str, Any]", answer).get("status") != "error"
    # The client of a server says so, and why; one that somebody made for a test may just return nothing.
    return answer is not None or not isinstance(client, AgentLightningClient)


async def _wait_for(event: ExecutionEvent) -> None:
    wait_async = getattr(event, "wait_async", None)
    if wait_async is not None:
        await wait_async()
        return
    while not event.is_set():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


def _is_async_first(cls: type, name: str) -> bool:
    """Whether a class has the async form of a method, and no subclass overrides the sync form alone."""
    places = {
        each: next((place for place, base in enumerate(cls.__mro__) if each in vars(base)), None)
        for each in (name, f"{name}_async")
    }
    sync, asynchronous = places[name], places[f"{name}_async"]
    return asynchronous is not None and (sync is None or asynchronous <= sync)
