"""``AgentRunner``: the runner of v0.1, which takes tasks from a client and posts what became of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core import plugin
from lightning_core.emitter import emit_reward
from lightning_core.errors import ConfigurationError, NoResourcesError
from lightning_core.litagent import LitAgent, call_deprecated_end, call_deprecated_start
from lightning_core.runner.base import BaseRunner
from lightning_core.runner.ending import describe
from lightning_core.runner.threads import AgentThreads
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.capture import LightningSpanProcessor
from lightning_core.types import Attempt, AttemptedRollout, NamedResources, Rollout, Task

from .halves import AsyncHalf, Half, SyncHalf, finish
from .reports import Returned, adapter_for, failure_report, read_result, report

if TYPE_CHECKING:
    from lightning_core.execution.base import ExecutionEvent

    from .client import AgentLightningClient

__all__ = ["AgentRunner"]

logger = logging.getLogger(__name__)


class AgentRunner(BaseRunner[Any]):
    """Takes tasks from a v0.1 client, runs the agent under a tracer, and posts a ``Rollout`` for each.

    :meth:`run` and :meth:`iter` serve sync agents, in the caller's thread. :meth:`run_async` and :meth:`iter_async`
    serve agents of both kinds.

    The agent may return ``None``, the final reward, or a list of triplets, of spans, or of spans as JSON objects, or a
    whole ``Rollout``. What it does not return is read from its spans. A task that fails, because its agent raises or
    its resources do not exist, is logged and posted without a reward, so that the server does not wait for it.

    Args:
        agent: The agent, with methods of the v0.1 form or of today's.
        client: Where tasks come from: an ``AgentLightningClient``, or a ``DevTaskLoader``.
        tracer: Records what the agent does; in any form that ``Trainer(tracer=...)`` takes.
        triplet_exporter: The adapter that makes triplets of spans; in any form that ``Trainer(adapter=...)`` takes. If
            the agent has ``trained_agents``, it keeps to the calls of these.
        worker_id: The worker's number, for the tracer and the log.
        max_tasks: How many tasks :meth:`iter` runs before it returns; ``None`` for no limit.

    Attributes:
        rollouts: How many rollouts the server has taken, by how they ended.
        on_posted: Called after each of them.

    Raises:
        ConfigurationError: If ``agent`` is no agent, or ``max_tasks`` is negative.
        PluginError: If a part cannot be found or its settings are wrong.
    """

    def __init__(
        self,
        agent: LitAgent[Any],
        client: AgentLightningClient,
        tracer: Any = None,
        triplet_exporter: Any = None,
        worker_id: int | None = None,
        max_tasks: int | None = None,
    ) -> None:
        if max_tasks is not None and max_tasks < 0:
            raise ConfigurationError(f"max_tasks must not be negative, but is {max_tasks}")
        self.agent = _checked(agent)
        self.client = client
        self.tracer: BaseTracer = plugin.resolve("tracer", tracer)
        self.triplet_exporter = adapter_for(agent, triplet_exporter)
        self.worker_id = worker_id
        self.max_tasks = max_tasks
        self.rollouts: Counter[Literal["succeeded", "failed"]] = Counter()
        self.on_posted: Callable[[], object] | None = None
        self._set_up = False
        self._threads = AgentThreads()

    # Set-up

    def init(self, agent: LitAgent[Any] | None = None, **kwargs: Any) -> None:
        """Prepare the tracer. Not needed: each of the four methods that run does it, where nobody has.

        Args:
            agent: Another agent than that of the constructor.
            kwargs: Ignored.
        """
        if agent is not None:
            self.agent = _checked(agent)
        self.tracer.init()

    def init_worker(self, worker_id: int | None = None, store: Any = None, **kwargs: Any) -> None:
        """Prepare the worker.

        Args:
            worker_id: Its number, if not given to the constructor.
            store: Ignored: tasks come from the client.
            kwargs: Ignored.
        """
        if worker_id is not None:
            self.worker_id = worker_id
        self.agent.set_runner(self)
        self.tracer.init_worker(self.worker_id or 0)
        self._set_up = True

    def teardown_worker(self, worker_id: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Clean up in the worker."""
        self._set_up = False
        self._threads.close()
        self.tracer.teardown_worker(self.worker_id or 0)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Tear the tracer down."""
        self.tracer.teardown()

    @contextmanager
    def _ready(self) -> Generator[None]:
        # The agent finds its runner through the context, which may be another one than that of the set-up.
        self.agent.set_runner(self)
        if self._set_up:
            yield
            return
        self.init()
        try:
            self.init_worker()
            try:
                yield
            finally:
                self.teardown_worker()
        finally:
            self.teardown()

    # Running

    def run(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - as v0.1 has it
        """Take one task, run the agent on it, and post the rollout.

        Returns:
            Whether there was a task.

        Raises:
            ConfigurationError: If the agent is async.
            LightningError: If the client cannot get a task; see its ``poll_next_task``.
        """
        half = self._sync_half("run")
        with self._ready():
            return finish(self._run(half))

    async def run_async(self) -> bool:
        """Take one task, run the agent on it, and post the rollout; see :meth:`run`."""
        with self._ready():
            return await self._run(AsyncHalf(self.client, self.agent, self._threads))

    def iter(self, *, event: ExecutionEvent | None = None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - as v0.1 has it
        """Take tasks and run them until there is none any more, or ``max_tasks`` are done.

        A client of a server waits for tasks for ever; that of a list has an end.

        Args:
            event: Ends it after the task in hand; it is looked at before each request for a task.

        Returns:
            How many tasks were done, failed ones too.

        Raises:
            ConfigurationError: If the agent is async.
            LightningError: If the client cannot get a task; see its ``poll_next_task``.
        """
        half = self._sync_half("iter", event)
        with self._ready():
            return finish(self._iterate(half))

    async def iter_async(self, *, event: ExecutionEvent | None = None) -> int:
        """Take tasks and run them, as :meth:`iter` does; here the event ends the wait for a task as well."""
        with self._ready():
            return await self._iterate(AsyncHalf(self.client, self.agent, self._threads, event))

    def _sync_half(self, method: str, event: ExecutionEvent | None = None) -> SyncHalf:
        if self.agent.is_async():
            raise ConfigurationError(
                f"agent {type(self.agent).__name__} is async: await {method}_async() instead of calling {method}()"
            )
        return SyncHalf(self.client, self.agent, event)

    async def _iterate(self, half: Half) -> int:
        done = 0
        while (self.max_tasks is None or done < self.max_tasks) and await self._run(half):
            done += 1
        return done

    async def _run(self, half: Half) -> bool:
        task = await half.poll()
        if task is None:
            return False
        rollout, error = await self._work(task, half)
        if error is not None:
            logger.error(
                "%stask %s failed: %s", self._name(), task.rollout_id, describe(error), exc_info=error
            )
        await self._post(task, rollout, error, half)
        return True

    async def _work(self, task: Task, half: Half) -> tuple[Rollout, BaseException | None]:
        """Run the agent, and return the rollout to post along with what went wrong."""
        agent = self.agent
        traced: list[ReadableSpan] = []
        begun = False
        error: BaseException | None = None
        try:
            resources = await self._resources(task, half)
            begun = True
            try:
                await call_deprecated_start(agent, task, self, self.tracer)
            except Exception:
                logger.exception("on_rollout_start of the agent failed for task %s", task.rollout_id)
            returned = await self._trace(_live(task), resources, traced, half)
            rollout = report(task, returned, traced, self.triplet_exporter)
        except (Exception, SystemExit) as failure:
            # An agent that calls sys.exit() ends its rollout, not the worker.
            error = failure
            rollout = failure_report(task, failure, traced)
        if begun:
            try:
                await call_deprecated_end(agent, rollout, self, self.tracer)
            except Exception:
                logger.exception("on_rollout_end of the agent failed for task %s", task.rollout_id)
        return rollout, error

    async def _resources(self, task: Task, half: Half) -> NamedResources:
        update = await half.resources(task.resources_id)
        if update is not None:
            return update.resources
        if task.resources_id is None:
            raise NoResourcesError(
                f"task {task.rollout_id!r} asks for the latest resources, and the server has none: call "
                "update_resources before queue_task"
            )
        raise NoResourcesError(
            f"task {task.rollout_id!r} asks for the resources {task.resources_id!r}, which the server does not have"
        )

    async def _trace(
        self, rollout: AttemptedRollout, resources: NamedResources, traced: list[ReadableSpan], half: Half
    ) -> Returned:
        """Run the agent inside a trace, put the trace's spans into ``traced``, and return its result."""
        rollout_id = rollout.rollout_id
        trace: LightningSpanProcessor | None = None
        try:
            # Without a store nothing is written at the end, so there is nothing to await.
            with self.tracer.trace_context(f"rollout {rollout_id}", rollout_id=rollout_id) as trace:
                returned = read_result(await half.run_agent(resources, rollout))
                reward = returned.reward_to_emit(trace.spans)
                if reward is not None:
                    # So that the trace tells it, and the adapter finds the call that it belongs to.
                    emit_reward(reward)
        finally:
            if trace is not None:
                traced.extend(trace.spans)
        return returned

    async def _post(self, task: Task, rollout: Rollout, error: BaseException | None, half: Half) -> None:
        """Post the rollout. One that cannot be posted is logged: the server hands its task out again."""
        try:
            try:
                taken = await half.post(rollout)
            except (TypeError, ValueError) as unsendable:
                error = unsendable
                logger.error("task %s: its result cannot be sent: %s", task.rollout_id, describe(error))
                taken = await half.post(failure_report(task, error))
        except Exception as lost:
            logger.error(
                "%sthe rollout of task %s could not be posted, so the server will hand the task out again: %s",
                *(self._name(), task.rollout_id, describe(lost)),
            )
            return
        if not taken:
            # The client has said why.
            return
        self.rollouts["succeeded" if error is None else "failed"] += 1
        if self.on_posted is not None:
            self.on_posted()

    def _name(self) -> str:
        return "" if self.worker_id is None else f"worker {self.worker_id}: "


def _checked(agent: Any) -> LitAgent[Any]:
    if not isinstance(agent, LitAgent):
        raise ConfigurationError(
            f"AgentRunner needs an agent, not {type(agent).__name__}: put @rollout above your function, or subclass "
            "LitAgent"
        )
    return agent  # pyright: ignore[reportUnknownVariableType] - any agent will do


def _live(task: Task) -> AttemptedRollout:
    """The rollout of a task, as agents of today's form get it."""
    began = task.last_claim_time or task.create_time or 0.0
    number = task.num_claims or 1
    attempt = Attempt(
        rollout_id=task.rollout_id,
        attempt_id=f"claim-{number}",
        sequence_id=number,
        start_time=began,
        status="running",
    )
    return AttemptedRollout(
        rollout_id=task.rollout_id,
        input=task.input,
        start_time=task.create_time or began,
        mode=task.mode,
        resources_id=task.resources_id,
        status="running",
        metadata=task.metadata,
        attempt=attempt,
    )
