"""``DevTaskLoader``: tasks and resources from this process, in place of a server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lightning_core.errors import DatasetError
from lightning_core.types import (
    GenericResponse,
    NamedResources,
    ResourcesUpdate,
    Rollout,
    Task,
    TaskInput,
)

from .client import AgentLightningClient

__all__ = ["DevTaskLoader"]

_LOCAL = "local"


class DevTaskLoader(AgentLightningClient):
    """A client without a server, for trying an agent out: it hands out given tasks and keeps what is reported.

    ::

        loader = DevTaskLoader(["1+1?", "2+2?"], {"main_llm": LLM(endpoint=..., model=...)})

    Each task is handed out once; then there is none, and a runner that works on them ends.

    Args:
        tasks: Inputs of tasks, each of which becomes a task of its own, or whole tasks, which are handed out as they
            are.
        resources: What the agent gets, with or without an id.
        kwargs: What :class:`AgentLightningClient` takes; there is no endpoint.

    Raises:
        DatasetError: If there are no tasks.
        pydantic.ValidationError: If the resources are none.
    """

    def __init__(
        self,
        tasks: Sequence[TaskInput | Task],
        resources: NamedResources | ResourcesUpdate,
        **kwargs: Any,
    ) -> None:
        # An endpoint is of no use here, and nothing is sent to it.
        super().__init__("http://localhost", **kwargs)
        self.endpoint = _LOCAL
        if isinstance(tasks, str) or not len(tasks):
            raise DatasetError("DevTaskLoader(tasks=…) needs a list of at least one task to try the agent on")
        if not isinstance(resources, ResourcesUpdate):
            resources = ResourcesUpdate(resources_id=_LOCAL, resources=resources)
        self._resources = resources.model_copy(deep=True)
        # Taking from it and adding to the other are atomic, so no lock is needed between threads.
        self._queue = deque(
            task if isinstance(task, Task) else self._assemble(number, task)
            for number, task in enumerate(tasks)
        )
        self._rollouts: list[Rollout] = []

    @property
    def rollouts(self) -> list[Rollout]:
        """The reports so far, in the order in which they came."""
        return list(self._rollouts)

    def poll_next_task(self) -> Task | None:
        """Return the next task; ``None`` when all have been handed out, or the loader is closed."""
        if self._closed:
            return None
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    async def poll_next_task_async(self) -> Task | None:
        """Return the next task; see :meth:`poll_next_task`."""
        return self.poll_next_task()

    def get_resources_by_id(self, resource_id: str) -> ResourcesUpdate | None:
        """Return the given resources if that is their id, else ``None``."""
        return self.get_latest_resources() if resource_id == self._resources.resources_id else None

    async def get_resources_by_id_async(self, resource_id: str) -> ResourcesUpdate | None:
        """Return the given resources if that is their id, else ``None``."""
        return self.get_resources_by_id(resource_id)

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the given resources, a copy of your own."""
        return self._resources.model_copy(deep=True)

    async def get_latest_resources_async(self) -> ResourcesUpdate | None:
        """Return the given resources, a copy of your own."""
        return self.get_latest_resources()

    def post_rollout(self, rollout: Rollout) -> dict[str, Any] | None:
        """Keep a report; see :attr:`rollouts`."""
        self._rollouts.append(rollout)
        return GenericResponse(
            message=f"rollout {rollout.rollout_id} received", data={"counted": True}
        ).model_dump()

    async def post_rollout_async(self, rollout: Rollout) -> dict[str, Any] | None:
        """Keep a report; see :attr:`rollouts`."""
        return self.post_rollout(rollout)

    def _assemble(self, number: int, task: TaskInput) -> Task:
        now = time.time()
        return Task(
            rollout_id=f"{_LOCAL}-{number}",
            input=task,
            mode="train",
            resources_id=self._resources.resources_id,
            create_time=now,
            last_claim_time=now,
            num_claims=1,
        )
