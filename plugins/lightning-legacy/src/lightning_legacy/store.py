"""``ServerDataStore``: tasks, resources and results of a v0.1 server, kept in any store of lightning-core."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from lightning_core import LightningStore, resolve
from lightning_core.errors import (
    ConfigurationError,
    InvalidOutcomeError,
    UnknownRolloutError,
)
from lightning_core.types import (
    NamedResources,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutV2,
    Task,
    TaskInput,
)

from .claims import Claims
from .loop import call, on_loop
from .protocol import jsonable
from .results import (
    REPORT,
    RETRIEVED,
    RUN_ID,
    is_retrieved,
    make_result,
    make_task,
    why_abandoned,
    write_report,
)

__all__ = ["Reception", "ServerDataStore"]

logger = logging.getLogger(__name__)

Reception: TypeAlias = Literal["counted", "repeated", "late"]
"""What has become of a report: it counts; another one came before it; or the task had been given up."""

_PAGE = 500
_LOOK_AGAIN_SECONDS = 0.5


class ServerDataStore:
    """Tasks, resources and results of a v0.1 server: a view of a store of lightning-core.

    A claimed task is an attempt that holds a lease of ``task_timeout_seconds``, so that requeueing, its limit,
    durability and what happens to reports that come late are the store's business. The first report on a task counts,
    whoever sends it, while the task is not given up. Results stay until they are retrieved.

    It may be used from several threads and event loops. One server at a time works on a store; other runs may share
    the store.

    Args:
        store: What keeps everything: a store, or a specification such as ``"sqlite:///legacy.db"``; ``None`` keeps it
            in memory.
        task_timeout_seconds: How long a client may have a task before it is handed out again, in seconds.
        max_requeues: How often that happens to a task, before it is given up.
        clock: Tells the time as the store does, in seconds since the epoch.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    def __init__(
        self,
        store: LightningStore | str | dict[str, Any] | None = None,
        *,
        task_timeout_seconds: float = 300.0,
        max_requeues: int = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not (task_timeout_seconds > 0 and math.isfinite(task_timeout_seconds)):
            raise ConfigurationError(
                f"task_timeout_seconds={task_timeout_seconds!r}: a number of seconds above 0 is needed"
            )
        if max_requeues < 0:
            raise ConfigurationError(f"max_requeues={max_requeues!r}: a number from 0 on is needed")
        self.store: LightningStore = resolve("store", store)
        self._made_store = not isinstance(store, LightningStore)
        self.task_timeout_seconds = task_timeout_seconds
        self._clock = clock
        # No attempt of v0.1 fails: a claim is reported on, or lost.
        self._config = RolloutConfig(
            unresponsive_seconds=task_timeout_seconds, max_losses=max_requeues, retry_condition=[]
        )
        # What follows is touched on the bridge's loop alone.
        self._opening: asyncio.Task[None] | None = None
        self._durable = True
        self._claims = Claims()
        # Final and not retrieved, in the order in which they became so, as far as is known.
        self._completed: dict[str, None] = {}
        self._reporting = asyncio.Lock()
        self._retrieving = asyncio.Lock()

    # Tasks

    async def add_task(
        self,
        sample: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Put a task at the end of the queue, and return its id.

        Args:
            sample: The input; JSON values, or what has a form as such (pydantic models, dataclasses, NumPy arrays).
            mode: Why it runs.
            resources_id: The resources to use; ``None`` for the latest when it runs.
            metadata: Anything that the client should get with it.

        Raises:
            ConfigurationError: If there is no such mode.
            UnserializableValueError: If JSON cannot hold ``sample`` or ``metadata``.
        """
        return await on_loop(self._add_task(sample, mode, resources_id, metadata))

    async def get_next_task(self) -> Task | None:
        """Claim the next task; ``None`` if there is none."""
        return await on_loop(self.claim(None, None))

    def get_processing_tasks(self) -> dict[str, Task]:
        """Return the tasks that clients have, by id."""
        return call(self._get_processing_tasks())

    async def requeue_task(self, task: Task) -> None:
        """Take a task away from its client and put it at the end of the queue, if that client still has it.

        Raises:
            UnknownRolloutError: If there is no such task.
        """
        await on_loop(self._requeue_task(task))

    # Results

    async def store_rollout(self, rollout: Rollout) -> bool:
        """Take in a client's report.

        Returns:
            Whether it counts: it is the first on its task, and comes before the task is given up.

        Raises:
            UnknownRolloutError: If there is no such task.
            InvalidOutcomeError: If the reward is no finite number.
        """
        return await on_loop(self.receive(rollout)) == "counted"

    async def retrieve_rollout(self, rollout_id: str) -> Rollout | None:
        """Return a result, and remove it; ``None`` if there is none, or it has been retrieved.

        A task that was given up has a result without a reward, whose metadata have a ``status`` of ``"abandoned"`` and
        a ``reason``.
        """
        return await on_loop(self._retrieve_rollout(rollout_id))

    async def retrieve_completed_rollouts(self) -> list[Rollout]:
        """Return all results that were not retrieved yet, and remove them; see :meth:`retrieve_rollout`."""
        return await on_loop(self._retrieve_completed_rollouts())

    # Resources

    async def update_resources(self, update: ResourcesUpdate) -> None:
        """Store resources under the id that they have, and make them the latest."""
        await on_loop(self.store.update_resources(update.resources_id, update.resources))

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id, and make them the latest."""
        return await on_loop(self.store.add_resources(resources))

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the resources of this id, or ``None``."""
        return await on_loop(self.store.get_resources_by_id(resources_id))

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the latest resources, or ``None``."""
        return await on_loop(self.store.get_latest_resources())

    async def wait_for_rollout(self, rollout_id: str, timeout: float | None = None) -> Rollout | None:
        """Wait until a task has a result, and retrieve it.

        Args:
            rollout_id: The task.
            timeout: The longest wait, in seconds; ``None`` waits as long as it takes.

        Returns:
            The result; ``None`` if there is none in time, or it has been retrieved.

        Raises:
            UnknownRolloutError: If there is no such task.
        """
        return await on_loop(self._wait_for_rollout(rollout_id, timeout))

    async def close(self) -> None:
        """Close the store, unless it was given as an object."""
        if self._made_store:
            await on_loop(self.store.close())

    # The inside, on the bridge's loop

    async def claim(self, client: str | None, request: str | None) -> Task | None:
        """Claim the next task for a client, which gets the same task if it asks again with the same request.

        For code that runs on the bridge's loop, such as the server's.
        """
        await self._open()
        await self.look_for_stale()
        claimed = await self.store.dequeue_rollouts(
            1, client, run_id=RUN_ID, request_id=request if client is not None else None
        )
        if not claimed:
            return None
        rollout = claimed[0]
        self._claims.add(rollout.rollout_id, rollout.attempt.start_time + _lease(rollout))
        return make_task(rollout)

    async def receive(self, rollout: Rollout) -> Reception:
        """Take in a client's report, and say what has become of it; for code on the bridge's loop.

        Raises:
            UnknownRolloutError: If there is no such task.
            InvalidOutcomeError: If the reward is no finite number.
        """
        if rollout.final_reward is not None and not math.isfinite(rollout.final_reward):
            raise InvalidOutcomeError(
                f"the final_reward of rollout {rollout.rollout_id!r} is {rollout.final_reward}: a reward is a finite "
                "number, or None"
            )
        report = write_report(rollout)
        await self._open()
        # Of reports that come at once, one must be the first.
        async with self._reporting:
            task = await self._find(rollout.rollout_id)
            if not task.is_final:
                task = await self.store.update_rollout(task.rollout_id, status="succeeded", metadata=report)
                if task.status == "succeeded":
                    self._claims.discard(task.rollout_id)
                    self._completed[task.rollout_id] = None
                    return "counted"
        await self.look_for_stale()
        return "repeated" if task.status == "succeeded" else "late"

    async def look_for_stale(self) -> float:
        """See what has become of the tasks whose time is over, and log it; for code on the bridge's loop.

        Returns:
            How long there is nothing more to see, in seconds.
        """
        await self._open()
        now = self._clock()
        stale = self._claims.take_stale(now)
        try:
            for page in _pages(stale):
                for rollout in await self.store.query_rollouts(rollout_ids=page):
                    await self._see(rollout, now)
        except BaseException:
            for rollout_id in stale:
                self._claims.add(rollout_id, now + _LOOK_AGAIN_SECONDS)
            raise
        due = self._claims.next_due()
        left = self.task_timeout_seconds if due is None else due - now
        return min(max(left, 0.01), self.task_timeout_seconds)

    async def _see(self, rollout: RolloutV2, now: float) -> None:
        """See what has become of a task whose time is over."""
        if rollout.is_final:
            if not is_retrieved(rollout):
                self._completed[rollout.rollout_id] = None
            if rollout.status != "succeeded":
                reason = why_abandoned(rollout, await self._count_claims(rollout))
                logger.error("task %s is given up: %s", rollout.rollout_id, reason)
        elif rollout.status in ("preparing", "running"):
            # The store's clock is behind, or somebody else has claimed it.
            self._claims.add(rollout.rollout_id, now + _LOOK_AGAIN_SECONDS)
        else:
            logger.warning(
                "no client has reported on task %s within %g s: it is handed out again",
                rollout.rollout_id,
                _lease(rollout),
            )

    async def _open(self) -> None:
        """Learn what the store holds from an earlier process, once."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._learn())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except Exception:
            if self._opening is opening:
                # The next call tries again.
                self._opening = None
            raise

    async def _learn(self) -> None:
        # A store on another machine has to be asked.
        self._durable = await asyncio.to_thread(lambda: self.store.capabilities.durable)
        for final in (True, False):
            offset = 0
            while page := await self.store.query_rollouts(
                run_id=RUN_ID,
                status=["succeeded", "failed", "cancelled"] if final else ["preparing", "running"],
                limit=_PAGE,
                offset=offset,
            ):
                offset += len(page)
                for rollout in page:
                    if not final:
                        attempt = await self.store.get_latest_attempt(rollout.rollout_id)
                        begun = attempt.start_time if attempt is not None else self._clock()
                        self._claims.add(rollout.rollout_id, begun + _lease(rollout))
                    elif not is_retrieved(rollout):
                        self._completed[rollout.rollout_id] = None

    async def _add_task(
        self,
        sample: TaskInput,
        mode: RolloutMode | None,
        resources_id: str | None,
        metadata: dict[str, Any] | None,
    ) -> str:
        rollout = await self.store.enqueue_rollout(
            jsonable(sample, "sample"),
            mode,
            resources_id,
            self._config,
            jsonable(metadata or {}, "metadata"),
            run_id=RUN_ID,
        )
        return rollout.rollout_id

    async def _get_processing_tasks(self) -> dict[str, Task]:
        await self.look_for_stale()
        rollouts = await self.store.query_rollouts(
            rollout_ids=list(self._claims), status=["preparing", "running"]
        )
        found: dict[str, Task] = {}
        for rollout in rollouts:
            attempt = await self.store.get_latest_attempt(rollout.rollout_id)
            assert attempt is not None
            found[rollout.rollout_id] = make_task(rollout.with_attempt(attempt))
        return found

    async def _requeue_task(self, task: Task) -> None:
        await self._open()
        rollout = await self._find(task.rollout_id)
        attempt = await self.store.get_latest_attempt(rollout.rollout_id)
        if attempt is None or task.num_claims not in (None, attempt.sequence_id):
            # Nobody has it, or another client by now.
            return
        await self.store.update_rollout(rollout.rollout_id, status="requeuing")
        self._claims.discard(rollout.rollout_id)

    async def _retrieve_rollout(self, rollout_id: str) -> Rollout | None:
        await self.look_for_stale()
        results = await self._retrieve([rollout_id])
        return results[0] if results else None

    async def _retrieve_completed_rollouts(self) -> list[Rollout]:
        await self.look_for_stale()
        return await self._retrieve(list(self._completed))

    async def _retrieve(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        """Return the results that there are, and have nobody get them again."""
        results: list[Rollout] = []
        retrieved: list[RolloutV2] = []
        async with self._retrieving:
            for page in _pages(rollout_ids):
                found = await self.store.query_rollouts(rollout_ids=page)
                ready = [
                    one for one in found if one.is_final and one.run_id == RUN_ID and not is_retrieved(one)
                ]
                results += [make_result(one, await self._count_claims(one)) for one in ready]
                retrieved += ready
            try:
                await self._mark(retrieved, True)
            except BaseException:
                # Whoever has asked does not get them: the next one does.
                await asyncio.shield(self._mark(retrieved, False))
                raise
            for rollout in retrieved:
                self._completed.pop(rollout.rollout_id, None)
        return results

    async def _mark(self, rollouts: Sequence[RolloutV2], retrieved: bool) -> None:
        # Where nothing outlives the process, nobody will look at the report again.
        forget = retrieved and not self._durable
        await asyncio.gather(
            *(
                self.store.update_rollout(
                    one.rollout_id,
                    metadata={RETRIEVED: retrieved, REPORT: None if forget else one.metadata.get(REPORT)},
                )
                for one in rollouts
            )
        )

    async def _wait_for_rollout(self, rollout_id: str, timeout: float | None) -> Rollout | None:
        await self._open()
        await self._find(rollout_id)
        await self.store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=timeout)
        return await self._retrieve_rollout(rollout_id)

    async def _find(self, rollout_id: str) -> RolloutV2:
        rollout = await self.store.get_rollout_by_id(rollout_id)
        if rollout is None or rollout.run_id != RUN_ID:
            raise UnknownRolloutError(
                f"this server knows no task {rollout_id!r}: it was queued on another one, or on one that was restarted "
                "without a durable store"
            )
        return rollout

    async def _count_claims(self, rollout: RolloutV2) -> int:
        attempt = await self.store.get_latest_attempt(rollout.rollout_id)
        return attempt.sequence_id if attempt is not None else 0


def _pages(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE)]


def _lease(rollout: RolloutV2) -> float:
    return rollout.config.unresponsive_seconds or 60.0
