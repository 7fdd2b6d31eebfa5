"""``AgentRunnerV2``: runs many rollouts at once in one worker, each in a context of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.emitter import emit_exception
from lightning_core.errors import (
    ConfigurationError,
    InvalidOutcomeError,
    NoResourcesError,
    RolloutTimeoutError,
    StoreClosedError,
    TraceError,
    VetoRollout,
)
from lightning_core.litagent.agent import LitAgent, call_deprecated_end, call_deprecated_start
from lightning_core.plugin.lifecycle import LifecycleHooks, collect_hooks
from lightning_core.runner.base import BaseRunner
from lightning_core.runner.ending import Ending, agent_ending
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.lifecycle import dispatch
from lightning_core.runner.outcome import outcome_spans
from lightning_core.runner.threads import AgentThreads
from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.types import (
    AttemptedRollout,
    Hook,
    NamedResources,
    RolloutMode,
    RolloutV2,
)

if TYPE_CHECKING:
    from lightning_core.execution.base import ExecutionEvent

__all__ = ["AgentRunnerV2"]

logger = logging.getLogger(__name__)

T_task = TypeVar("T_task")


class AgentRunnerV2(BaseRunner[T_task]):
    """Takes rollouts from the store, runs the agent under a tracer, and reports the result.

    Each rollout runs in a task and a context of its own, so concurrent traces never mix. Sync agents run in threads
    of their own. Heartbeats are sent from another thread, so they go on while an agent computes.

    Every attempt ends in a final state; the reason of a failure is in its metadata under ``reason``
    (``agent_error``, ``timeout``, ``cancelled``, ``no_resources`` or ``infrastructure``) and ``error``.

    Args:
        tracer: Records what the agent does.
        max_rollouts: How many rollouts :meth:`iter` runs before it returns; ``None`` for no limit.
        poll_interval: The longest wait, in seconds, before an idle runner asks the store again; a store that can
            tells it at once.
        concurrency: How many rollouts may run at the same time.
        heartbeat_interval: Seconds between heartbeats; shorter where a lease asks for it.
    """

    def __init__(
        self,
        tracer: BaseTracer,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        *,
        concurrency: int = 1,
        heartbeat_interval: float = 10.0,
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
        if max_rollouts is not None and max_rollouts < 0:
            raise ConfigurationError(f"max_rollouts must not be negative, but is {max_rollouts}")
        if poll_interval <= 0 or heartbeat_interval <= 0:
            raise ConfigurationError("poll_interval and heartbeat_interval must be above 0 seconds")
        self.tracer = tracer
        self.max_rollouts = max_rollouts
        self.poll_interval = poll_interval
        self.concurrency = concurrency
        self.heartbeat_interval = heartbeat_interval
        self._agent: LitAgent[T_task] | None = None
        self._store: LightningStore | None = None
        self._hooks = LifecycleHooks()
        self._run_id: str | None = None
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
        self._store = store
        self._run_id = run_id
        self.get_agent().set_runner(self)
        self.tracer.init_worker(worker_id)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Clean up in the worker."""
        self._threads.close()
        self.tracer.teardown_worker(worker_id)
        self.worker_id = None
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
        """Return ``Worker-<number>``, or ``Worker-Unknown`` before :meth:`init_worker`."""
        return f"Worker-{'Unknown' if self.worker_id is None else self.worker_id}"

    # Running

    async def iter(self, *, event: ExecutionEvent | None = None) -> None:
        """Run rollouts from the store until ``event`` is set or ``max_rollouts`` are done.

        A failing rollout is recorded and the next one begins. When the event is set, rollouts that have begun are
        finished; when the coroutine is cancelled, they end ``cancelled``.
        """
        # Checked first, and where it can still be raised.
        self.get_agent()
        self.get_store()
        begun = 0
        stop = asyncio.create_task(_wait_for(event)) if event is not None else None
        running: set[asyncio.Task[None]] = set()
        beats = Heartbeat(self.get_store(), self.get_worker_id(), self.heartbeat_interval)
        try:
            while stop is None or not (stop.done() or event is None or event.is_set()):
                free = self.concurrency - len(running)
                if self.max_rollouts is not None:
                    free = min(free, self.max_rollouts - begun)
                    if free <= 0 and begun >= self.max_rollouts:
                        break
                if free <= 0:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                rollouts = await self._take(free, stop)
                begun += len(rollouts)
                for rollout in rollouts:
                    task = asyncio.create_task(self._run_quietly(rollout, beats))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    beats.watch(rollout, task)
            while running:
                await asyncio.wait(running)
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
            beats.stop()
            if stop is not None:
                stop.cancel()

    async def _take(self, limit: int, stop: asyncio.Task[None] | None) -> list[AttemptedRollout]:
        """Dequeue, waiting for work or for the stop."""
        store = self.get_store()
        worker_id = self.get_worker_id()
        try:
            rollouts = await store.dequeue_rollouts(limit, worker_id, run_id=self._run_id)
        except StoreClosedError:
            # It will not come back.
            raise
        except Exception:
            logger.exception("%s cannot get work from the store; trying again", worker_id)
            await asyncio.wait([stop or asyncio.create_task(asyncio.sleep(1.0))], timeout=1.0)
            return []
        if rollouts:
            return rollouts
        waiting = asyncio.create_task(
            store.dequeue_rollouts(limit, worker_id, self.poll_interval, run_id=self._run_id)
        )
        try:
            # Not cancelled when a rollout ends meanwhile: a store may have begun to hand out work.
            await asyncio.wait(
                {waiting, stop} if stop is not None else {waiting}, return_when="FIRST_COMPLETED"
            )
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
        except asyncio.CancelledError:
            await self._give_up(waiting)
            raise
        if waiting.cancelled():
            return []
        try:
            return waiting.result()
        except StoreClosedError:
            raise
        except Exception:
            logger.exception("%s cannot get work from the store; trying again", worker_id)
        return []

    async def _give_up(self, waiting: asyncio.Task[list[AttemptedRollout]]) -> None:
        """End the rollouts that were handed out just when this runner was cancelled."""
        waiting.cancel()
        await asyncio.wait({waiting})
        if waiting.cancelled() or waiting.exception() is not None:
            return
        metadata = {"reason": "cancelled", "error": "cancelled before it began"}
        for rollout in waiting.result():
            await self.get_store().update_attempt(
                rollout.rollout_id, rollout.attempt.attempt_id, status="cancelled", metadata=metadata
            )

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
            Exception: What the agent raised, or what kept it from running.
        """
        store = self.get_store()
        resources_id = None
        if resources is not None:
            resources_id = (await store.add_resources(resources)).resources_id
        rollout = await store.start_rollout(
            input, mode, resources_id, run_id=self._run_id, worker_id=self.get_worker_id()
        )
        beats = Heartbeat(self.get_store(), self.get_worker_id(), self.heartbeat_interval)
        task = asyncio.create_task(self._run(rollout, beats))
        beats.watch(rollout, task)
        try:
            ending = await task
        finally:
            beats.stop()
        if ending.error is not None:
            raise ending.error
        stored = await store.get_rollout_by_id(rollout.rollout_id)
        assert stored is not None
        return stored

    async def _run_quietly(self, rollout: AttemptedRollout, beats: Heartbeat) -> None:
        """Run one rollout; whatever happens is recorded or logged."""
        try:
            ending = await self._run(rollout, beats)
        except Exception:
            # The store did not take the result. The lease will expire, and the rollout is retried or fails.
            logger.exception("the result of rollout %s could not be reported", rollout.rollout_id)
            return
        if ending.error is not None and ending.status != "cancelled":
            logger.warning(
                "rollout %s %s: %s", rollout.rollout_id, ending.status, ending.metadata.get("error", "")
            )

    async def _run(self, rollout: AttemptedRollout, beats: Heartbeat) -> Ending:
        """Run one rollout from its resources to the report. Cancelled, it still reports, then ends cancelled."""
        agent = self.get_agent()
        # The context of this task is this rollout's alone; the agent finds its runner through it.
        agent.set_runner(self)
        keywords: dict[str, Any] = {"agent": agent, "runner": self, "rollout": rollout}
        name, attempt_id = rollout.rollout_id, rollout.attempt.attempt_id
        started = False
        try:
            resources = await self._resources(rollout)
            started = True
            await dispatch("on_rollout_start", self._hooks.on_rollout_start, name, **keywords)
            await call_deprecated_start(agent, rollout, self, self.tracer)
            ending = await self._trace(agent, rollout, resources, keywords)
        except VetoRollout as error:
            ending = Ending("cancelled", {"reason": "cancelled", "error": f"vetoed by {error}"}, error)
        except asyncio.CancelledError as error:
            ending = Ending("cancelled", {"reason": "cancelled", "error": "cancelled from outside"}, error)
        except NoResourcesError as error:
            ending = Ending.failed("no_resources", error)
        except Exception as error:
            ending = Ending.failed("infrastructure", error)
        # A second cancellation, while hooks are told of the end, must not hide the end from the store.
        if started:
            # Hooks see how the attempt ended, though that is reported only after them.
            metadata = {**rollout.attempt.metadata, **ending.metadata}
            ended = rollout.replace(attempt=rollout.attempt.replace(status=ending.status, metadata=metadata))
            with suppress(asyncio.CancelledError):
                await self._end_hooks({**keywords, "rollout": ended})
        # From here on, an attempt that is not live any more is one that this report has ended.
        beats.forget(rollout)
        await self._report(name, attempt_id, ending)
        task = asyncio.current_task()
        if isinstance(ending.error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise ending.error
        return ending

    async def _report(self, rollout_id: str, attempt_id: str, ending: Ending) -> None:
        store = self.get_store()
        try:
            try:
                await store.update_attempt(
                    rollout_id, attempt_id, status=ending.status, metadata=ending.metadata
                )
            except asyncio.CancelledError:
                # It may not have arrived. Reporting the same end again changes nothing.
                await store.update_attempt(
                    rollout_id, attempt_id, status=ending.status, metadata=ending.metadata
                )
                raise
        except Exception as error:
            # Or nobody would ever learn what the agent's own error was.
            if ending.error is not None:
                error.add_note(f"the attempt had ended {ending.status}: {ending.metadata.get('error')}")
            raise

    async def _resources(self, rollout: AttemptedRollout) -> NamedResources:
        store = self.get_store()
        if rollout.resources_id is None:
            update = await store.get_latest_resources()
            if update is None:
                raise NoResourcesError(
                    f"rollout {rollout.rollout_id!r} needs resources and the store has none: give "
                    "Trainer(initial_resources=...), let the algorithm add some, or call store.add_resources"
                )
        else:
            update = await store.get_resources_by_id(rollout.resources_id)
            if update is None:
                raise NoResourcesError(
                    f"rollout {rollout.rollout_id!r} asks for resources {rollout.resources_id!r}, which are not in "
                    "the store"
                )
        return update.resources

    async def _trace(
        self,
        agent: LitAgent[T_task],
        rollout: AttemptedRollout,
        resources: NamedResources,
        keywords: dict[str, Any],
    ) -> Ending:
        """Run the agent inside a trace, and store what it returned after the spans of the trace."""
        store = self.get_store()
        name, attempt_id = rollout.rollout_id, rollout.attempt.attempt_id
        result: Any = None
        emitted: list[ReadableSpan] = []
        parent: trace_api.SpanContext | None = None
        context = self.tracer.trace_context(
            f"rollout {name}", store=store, rollout_id=name, attempt_id=attempt_id
        )
        traced = {**keywords, "tracer": self.tracer}
        failure: TraceError | None = None
        ending = Ending()
        try:
            async with context as processor:
                parent = trace_api.get_current_span().get_span_context()
                try:
                    await dispatch("on_trace_start", self._hooks.on_trace_start, name, **traced)
                    result = await self._call(agent, rollout, resources)
                except BaseException as error:
                    ending = agent_ending(error)
                    if isinstance(error, Exception) and not isinstance(error, RolloutTimeoutError):
                        emit_exception(error)
                finally:
                    with suppress(asyncio.CancelledError):
                        await dispatch("on_trace_end", self._hooks.on_trace_end, name, **traced)
                emitted = processor.spans
            # Late enough to see what ended with the trace itself.
            emitted = processor.spans
        except TraceError as error:
            failure = error
        if failure is None and ending.error is None:
            try:
                spans = outcome_spans(result, emitted=emitted, rollout=rollout, parent=parent)
            except InvalidOutcomeError as error:
                return Ending.failed("agent_error", error)
            if spans:
                await store.add_spans(spans)
        if failure is not None:
            if ending.error is None:
                return Ending.failed("infrastructure", failure)
            # The agent's error is the reason of the end; the loss of its spans must be seen all the same.
            logger.error("%s", failure)
            ending.metadata["lost_spans"] = str(failure)
        return ending

    async def _call(
        self, agent: LitAgent[T_task], rollout: AttemptedRollout, resources: NamedResources
    ) -> Any:
        """Call the agent, within the rollout's time limit."""
        limit = rollout.config.timeout_seconds
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                if agent.is_async():
                    return await agent.rollout_async(rollout.input, resources, rollout)
                return await self._threads.run(lambda: agent.rollout(rollout.input, resources, rollout))
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise RolloutTimeoutError(
                f"the agent ran longer than timeout_seconds={limit:g} of its rollout"
            ) from error

    async def _end_hooks(self, keywords: dict[str, Any]) -> None:
        """Tell the hooks how the attempt ended, and show them the spans that are stored."""
        agent, rollout = keywords["agent"], keywords["rollout"]
        name, attempt_id = rollout.rollout_id, rollout.attempt.attempt_id
        calls = self._hooks.on_rollout_end
        if calls:
            try:
                spans = await self.get_store().query_spans(name, attempt_id)
            except Exception:
                logger.exception("the spans of rollout %s cannot be read for its hooks", name)
                spans = []
            await dispatch("on_rollout_end", calls, name, **keywords, spans=spans)
        try:
            await call_deprecated_end(agent, rollout, self, self.tracer)
        except Exception:
            logger.exception("on_rollout_end of the agent failed for rollout %s", name)


async def _wait_for(event: ExecutionEvent) -> None:
    """Wait until the event is set."""
    wait_async = getattr(event, "wait_async", None)
    if wait_async is not None:
        await wait_async()
        return
    # An event of another make, such as multiprocessing's, can only be asked.
    while not event.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
