"""``AgentRunnerV2``: runs many rollouts at once in one worker, each in a context of its own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from lightning_core.errors import ConfigurationError, StoreClosedError
from lightning_core.litagent.agent import LitAgent
from lightning_core.plugin.lifecycle import LifecycleHooks, collect_hooks
from lightning_core.runner.attempt import RunOfAttempt, Workplace
from lightning_core.runner.base import BaseRunner
from lightning_core.runner.ending import Ending, describe
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.identity import claim_worker_id, release_worker_id
from lightning_core.runner.intake import BatchResources, Intake, Stop, is_over
from lightning_core.runner.outage import Outage, is_transient
from lightning_core.runner.threads import AgentThreads
from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.types import Hook, NamedResources, RolloutMode, RolloutV2

if TYPE_CHECKING:
    from lightning_core.execution.base import ExecutionEvent

__all__ = ["AgentRunnerV2"]

logger = logging.getLogger(__name__)

T_task = TypeVar("T_task")

_MODES = (None, *get_args(RolloutMode))

GATHER_SECONDS = 0.02
"""How long a runner with many slots waits for more of them to become free before it asks for work."""


class AgentRunnerV2(BaseRunner[T_task]):
    """Takes rollouts from the store, runs the agent under a tracer, and reports the result.

    Each rollout runs in a task and a context of its own, so concurrent traces never mix. Sync agents run in threads
    of their own. Heartbeats are sent from another thread, so they go on while an agent computes.

    Every attempt ends in a final state. Why it did not succeed is its ``reason``: ``agent_error``, ``timeout``,
    ``cancelled``, ``no_resources`` or ``infrastructure``; its metadata say more under ``error``.

    A store may be away for a while. What runs goes on meanwhile, and results are reported when it is back.

    Args:
        tracer: Records what the agent does.
        max_rollouts: How many rollouts :meth:`iter` runs before it returns; ``None`` for no limit.
        poll_interval: The longest wait, in seconds, before an idle runner asks the store again; a store that can
            tells it at once.
        concurrency: How many rollouts may run at the same time.
        heartbeat_interval: Seconds between heartbeats; shorter where a lease asks for it.
        retry_seconds: How long spans and results are kept and tried again while the store is away, in seconds; also
            how long it may be away before a runner that has nothing left to do gives up.
        worker_name: What the worker is called in the store, followed by its number; by default its host and process
            id, so that no two workers are called the same.
    """

    def __init__(
        self,
        tracer: BaseTracer,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        *,
        concurrency: int = 1,
        heartbeat_interval: float = 10.0,
        retry_seconds: float = 300.0,
        worker_name: str | None = None,
    ) -> None:
        if not isinstance(tracer, BaseTracer):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
            raise ConfigurationError(
                f"a runner needs a tracer, not a {type(tracer).__name__}; resolve('tracer', ...) makes one by name"
            )
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
        if max_rollouts is not None and max_rollouts < 0:
            raise ConfigurationError(f"max_rollouts must not be negative, but is {max_rollouts}")
        if poll_interval <= 0 or heartbeat_interval <= 0:
            raise ConfigurationError("poll_interval and heartbeat_interval must be above 0 seconds")
        if retry_seconds < 0:
            raise ConfigurationError(f"retry_seconds must not be negative, but is {retry_seconds:g}")
        self.tracer = tracer
        self.max_rollouts = max_rollouts
        self.poll_interval = poll_interval
        self.concurrency = concurrency
        self.heartbeat_interval = heartbeat_interval
        self.retry_seconds = retry_seconds
        self.worker_name = worker_name
        self._agent: LitAgent[T_task] | None = None
        self._store: LightningStore | None = None
        self._hooks = LifecycleHooks()
        self._run_id: str | None = None
        self._claimed_id: str | None = None
        self._threads = AgentThreads()

    # Set-up

    def init(self, agent: LitAgent[T_task], *, hooks: Sequence[Hook] | None = None, **kwargs: Any) -> None:
        """Set the agent and the hooks, and prepare the tracer.

        Raises:
            InvalidHookError: If a hook is not async, or takes other parameters than its event has.
        """
        self._hooks = collect_hooks(hooks or ())
        self._agent = agent
        self.tracer.init()

    def init_worker(
        self, worker_id: int, store: LightningStore, *, run_id: str | None = None, **kwargs: Any
    ) -> None:
        """Set the worker's number and its store.

        Args:
            worker_id: The worker's number.
            store: Where rollouts come from and spans go.
            run_id: Run only rollouts of this run.
            kwargs: Ignored.
        """
        self.worker_id = worker_id
        self._claimed_id = claim_worker_id(worker_id, self.worker_name)
        self._store = store
        self._run_id = run_id
        self.get_agent().set_runner(self)
        self.tracer.init_worker(worker_id)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Clean up in the worker."""
        self._threads.close()
        self.tracer.teardown_worker(worker_id)
        if self._claimed_id is not None:
            release_worker_id(self._claimed_id)
        self.worker_id = self._claimed_id = None
        self._store = None

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Forget agent and hooks, and tear the tracer down."""
        self._agent = None
        self._hooks = LifecycleHooks()
        self.tracer.teardown()

    def get_agent(self) -> LitAgent[T_task]:
        """Return the agent.

        Raises:
            ConfigurationError: If :meth:`init` was not called; it is a ``ValueError`` too.
        """
        if self._agent is None:
            raise ConfigurationError("the runner has no agent: call init(agent) first, or use run_context")
        return self._agent

    def get_store(self) -> LightningStore:
        """Return the store.

        Raises:
            ConfigurationError: If :meth:`init_worker` was not called; it is a ``ValueError`` too.
        """
        if self._store is None:
            raise ConfigurationError(
                "the runner has no store: call init_worker(id, store), or use run_context"
            )
        return self._store

    def get_worker_id(self) -> str:
        """Return the worker's number in words: ``Worker-0``; before :meth:`init_worker`, ``Worker-Unknown``."""
        return "Worker-Unknown" if self.worker_id is None else f"Worker-{self.worker_id}"

    def get_store_worker_id(self) -> str:
        """Return what the worker is called in the store, which no other one is: ``<host>-<process id>-<number>``.

        Raises:
            ConfigurationError: If :meth:`init_worker` was not called; it is a ``ValueError`` too.
        """
        if self._claimed_id is None:
            raise ConfigurationError(
                "the runner has no id in a store: call init_worker(id, store), or use run_context"
            )
        return self._claimed_id

    # Running

    async def iter(self, *, event: ExecutionEvent | None = None) -> None:
        """Run rollouts from the store until ``event`` is set or ``max_rollouts`` are done.

        A failing rollout is recorded and the next one begins. When the event is set, or the store says that the run
        is over, rollouts that have begun are finished; when the coroutine is cancelled, they end ``cancelled``.

        Raises:
            StoreClosedError: If the store is closed.
            Exception: If the store cannot be asked for work: what it raised last, after ``retry_seconds``.
        """
        # Checked first, and where it can still be raised.
        place = self._workplace()
        store, outage = place.store, place.outage
        intake = Intake(store, self.get_store_worker_id(), self._run_id, self.poll_interval, outage)
        stop = Stop(event, store)
        running: set[asyncio.Task[None]] = set()
        freed = asyncio.Event()

        def end(task: asyncio.Task[None]) -> None:
            running.discard(task)
            freed.set()

        begun = 0
        place.beats.start()
        try:
            while not stop.asked:
                left = self.concurrency if self.max_rollouts is None else self.max_rollouts - begun
                if left <= 0:
                    break
                if len(running) >= self.concurrency:
                    freed.clear()
                    await freed.wait()
                    continue
                if self.concurrency - len(running) < min(left, self.concurrency // 16):
                    # Slots become free one by one; each asking for itself would be a flood of requests.
                    await asyncio.sleep(GATHER_SECONDS)
                free = min(left, self.concurrency - len(running))
                if not running and (error := outage.lasting) is not None:
                    raise error
                rollouts = await intake.take(free, stop)
                begun += len(rollouts)
                resources = BatchResources(store, outage, shared=len(rollouts) > 1)
                for rollout in rollouts:
                    task = asyncio.create_task(self._run_quietly(RunOfAttempt(place, rollout, resources.of)))
                    running.add(task)
                    task.add_done_callback(end)
                    place.beats.watch(rollout, task)
            while running:
                await asyncio.wait(running)
        finally:
            for task in running:
                task.cancel()
            try:
                if running:
                    await asyncio.wait(running)
            finally:
                # Also when it is cancelled once more: a heartbeat outlives the loop.
                stop.close()
                await place.beats.stop()

    async def step(
        self,
        input: T_task,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: ExecutionEvent | None = None,
    ) -> RolloutV2:
        """Run one task now and return its rollout; see :meth:`BaseRunner.step`.

        Raises:
            ConfigurationError: If there is no such mode.
            Exception: What the agent raised, or what kept it from running.
        """
        store = self.get_store()
        if mode not in _MODES:
            raise ConfigurationError(f"mode must be 'train', 'val', 'test' or None, not {mode!r}")
        resources_id = None
        if resources is not None:
            resources_id = (await store.add_resources(resources)).resources_id
        rollout = await store.start_rollout(
            input,
            mode,
            resources_id,
            run_id=self._run_id,
            worker_id=self.get_store_worker_id(),
            idempotency_key=f"step-{secrets.token_hex(8)}",
        )
        place = self._workplace()
        get_resources = BatchResources(store, place.outage, shared=False).of
        task = asyncio.create_task(RunOfAttempt(place, rollout, get_resources).run())
        place.beats.watch(rollout, task)
        try:
            ending = await task
        finally:
            await place.beats.stop()
        if ending.error is not None:
            raise ending.error
        stored = await store.get_rollout_by_id(rollout.rollout_id)
        assert stored is not None
        return stored

    def _workplace(self) -> Workplace:
        agent, store, worker_id = self.get_agent(), self.get_store(), self.get_store_worker_id()
        outage = Outage(worker_id, self.retry_seconds, over=lambda: is_over(store))
        beats = Heartbeat(store, worker_id, self.heartbeat_interval, outage, self._describe)
        return Workplace(self, agent, store, self.tracer, self._hooks, self._threads, beats, outage)

    def _describe(self) -> dict[str, Any]:
        """What heartbeats tell of this runner."""
        return {"concurrency": self.concurrency, "run_id": self._run_id}

    async def _run_quietly(self, attempt: RunOfAttempt) -> None:
        """Run one rollout; whatever happens is recorded or logged."""
        try:
            ending: Ending = await attempt.run()
        except Exception as error:
            # The store did not take the result. The lease will expire, and the rollout is retried or fails.
            expected = is_transient(error) or isinstance(error, StoreClosedError)
            notes = "; ".join(getattr(error, "__notes__", ()))
            logger.error(
                "the result of rollout %s could not be reported: %s%s",
                attempt.rollout_id,
                describe(error),
                f" ({notes})" if notes else "",
                exc_info=None if expected else error,
            )
            return
        if ending.error is not None and ending.status != "cancelled":
            logger.warning(
                "rollout %s %s: %s", attempt.rollout_id, ending.status, ending.metadata.get("error", "")
            )
