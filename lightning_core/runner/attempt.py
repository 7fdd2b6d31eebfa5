"""One attempt, from its resources to the report of how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.emitter import emit_exception
from lightning_core.errors import (
    InvalidOutcomeError,
    NoResourcesError,
    RolloutTimeoutError,
    TraceError,
    VetoRollout,
)
from lightning_core.litagent.agent import (
    LitAgent,
    call_deprecated_end,
    call_deprecated_start,
    call_rollout,
)
from lightning_core.plugin.lifecycle import HookCall, LifecycleHooks
from lightning_core.runner.ending import Ending, agent_ending
from lightning_core.runner.heartbeat import Heartbeat
from lightning_core.runner.lifecycle import dispatch
from lightning_core.runner.outage import LAST_SECONDS, Outage, is_transient
from lightning_core.runner.outcome import outcome_spans
from lightning_core.runner.threads import AgentThreads
from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.capture import LightningSpanProcessor
from lightning_core.types import AttemptedRollout, NamedResources, Span

if TYPE_CHECKING:
    from lightning_core.runner.base import BaseRunner

__all__ = ["RunOfAttempt", "Workplace"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """What the attempts of one runner have in common."""

    runner: BaseRunner[Any]
    agent: LitAgent[Any]
    store: LightningStore
    tracer: BaseTracer
    hooks: LifecycleHooks
    threads: AgentThreads
    beats: Heartbeat
    outage: Outage


class RunOfAttempt:
    """Runs one attempt. Whatever happens, it is reported."""

    def __init__(
        self,
        place: Workplace,
        rollout: AttemptedRollout,
        get_resources: Callable[[AttemptedRollout], Awaitable[NamedResources]],
    ) -> None:
        self._place = place
        self._rollout = rollout
        self._get_resources = get_resources
        self._ids = rollout.rollout_id, rollout.attempt.attempt_id
        # The store counts the attempt's time from here as well.
        self._begun = time.monotonic()
        self._keywords: dict[str, Any] = {
            "agent": place.agent,
            "runner": place.runner,
            "rollout": rollout,
        }

    @property
    def rollout_id(self) -> str:
        """Whose attempt it is."""
        return self._ids[0]

    async def run(self) -> Ending:
        """Run it from its resources to the report. Cancelled, it still reports, then ends cancelled.

        Raises:
            Exception: If the store did not take the report.
        """
        place, rollout = self._place, self._rollout
        # The context of this task is this rollout's alone; the agent finds its runner through it.
        place.agent.set_runner(place.runner)
        started = False
        try:
            resources = await self._get_resources(rollout)
            started = True
            await self._dispatch("on_rollout_start", place.hooks.on_rollout_start)
            await call_deprecated_start(place.agent, rollout, place.runner, place.tracer)
            ending = await self._trace(resources)
        except VetoRollout as error:
            ending = Ending.cancelled(f"vetoed by {error}", error)
        except asyncio.CancelledError as error:
            ending = Ending.cancelled("cancelled from outside", error)
        except NoResourcesError as error:
            ending = Ending.failed("no_resources", error)
        except Exception as error:
            ending = Ending.failed("infrastructure", error)
        # A second cancellation, while hooks are told of the end, must not hide the end from the store.
        if started:
            with suppress(asyncio.CancelledError):
                await self._end_hooks(ending)
        # From here on, an attempt that is not live any more is one that this report has ended.
        place.beats.reporting(rollout)
        await self._report(ending)
        task = asyncio.current_task()
        if isinstance(ending.error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise ending.error
        return ending

    async def _dispatch(self, event: str, calls: Sequence[HookCall], **others: Any) -> None:
        if calls:
            await dispatch(event, calls, self._ids[0], **{**self._keywords, **others})

    async def _report(self, ending: Ending) -> None:
        async def report() -> None:
            await self._place.store.update_attempt(
                *self._ids, status=ending.status, reason=ending.reason, metadata=ending.metadata
            )

        try:
            try:
                await self._place.outage.outlast(report)
            except asyncio.CancelledError:
                # It may not have arrived. Reporting the same end again changes nothing.
                async with asyncio.timeout(LAST_SECONDS):
                    await report()
                raise
        except Exception as error:
            # Or nobody would ever learn what the agent's own error was.
            if ending.error is not None:
                error.add_note(f"the attempt had ended {ending.status}: {ending.metadata.get('error')}")
            raise

    async def _trace(self, resources: NamedResources) -> Ending:
        """Run the agent inside a trace, and store what it returned after the spans of the trace."""
        place = self._place
        rollout_id, attempt_id = self._ids
        context = place.tracer.trace_context(
            f"rollout {rollout_id}", store=place.store, rollout_id=rollout_id, attempt_id=attempt_id
        )
        processor: LightningSpanProcessor | None = None
        outcome = _Outcome(self._rollout)
        failure: TraceError | None = None
        ending = Ending()
        try:
            async with context as processor:
                outcome.parent = trace_api.get_current_span().get_span_context()
                try:
                    await self._dispatch("on_trace_start", place.hooks.on_trace_start, tracer=place.tracer)
                    outcome.result = await self._call(resources)
                except BaseException as error:
                    ending = self._ending_of(error)
                    if isinstance(error, Exception) and not isinstance(error, RolloutTimeoutError):
                        emit_exception(error)
                finally:
                    with suppress(asyncio.CancelledError):
                        await self._dispatch("on_trace_end", place.hooks.on_trace_end, tracer=place.tracer)
                if ending.error is None:
                    # So that what the agent returned is stored together with the last spans of its trace.
                    processor.at_end = outcome.spans
        except TraceError as error:
            failure = error
        if failure is not None and processor is not None and is_transient(failure):
            place.outage.failed(failure.__cause__ or failure)
            try:
                await place.outage.outlast(processor.flush)
                failure = None
            except TraceError as error:
                failure = error
            except TimeoutError:
                # Cancelled, and no time was left.
                pass
            except asyncio.CancelledError:
                logger.error("%s", failure)
                raise
        if ending.error is None and outcome.error is not None:
            ending = Ending.failed("agent_error", outcome.error)
        if failure is not None:
            if ending.error is None:
                return Ending.failed("infrastructure", failure)
            # The agent's error is the reason of the end; the loss of its spans must be seen all the same.
            logger.error("%s", failure)
            ending.metadata["lost_spans"] = str(failure)
        return ending

    async def _call(self, resources: NamedResources) -> Any:
        """Call the agent, within the rollout's time limit."""
        agent, rollout = self._place.agent, self._rollout
        scope = asyncio.timeout(self._time_left())
        try:
            async with scope:
                if agent.is_async():
                    return await call_rollout(agent.rollout_async, rollout.input, resources, rollout)
                return await self._place.threads.run(
                    lambda: call_rollout(agent.rollout, rollout.input, resources, rollout)
                )
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self._out_of_time() from error

    def _ending_of(self, error: BaseException) -> Ending:
        if isinstance(error, asyncio.CancelledError) and self._time_left() == 0:
            # The store was first to end it, and the heartbeat has heard of that.
            error = self._out_of_time()
        return agent_ending(error)

    def _time_left(self) -> float | None:
        """What is left of the attempt's time limit, in seconds; ``None`` if it has none."""
        limit = self._rollout.config.timeout_seconds
        return None if limit is None else max(0.0, limit - (time.monotonic() - self._begun))

    def _out_of_time(self) -> RolloutTimeoutError:
        limit = self._rollout.config.timeout_seconds
        return RolloutTimeoutError(f"the attempt ran longer than timeout_seconds={limit:g} of its rollout")

    async def _end_hooks(self, ending: Ending) -> None:
        """Tell the hooks how the attempt ended, and show them the spans that are stored."""
        place, attempt = self._place, self._rollout.attempt
        # Though it is reported only after them.
        attempt = attempt.replace(
            status=ending.status, reason=ending.reason, metadata={**attempt.metadata, **ending.metadata}
        )
        rollout = self._rollout.replace(attempt=attempt)
        if calls := place.hooks.on_rollout_end:
            try:
                spans = await place.store.query_spans(*self._ids)
            except Exception:
                logger.exception("the spans of rollout %s cannot be read for its hooks", self._ids[0])
                spans = []
            await self._dispatch("on_rollout_end", calls, rollout=rollout, spans=spans)
        try:
            await call_deprecated_end(place.agent, rollout, place.runner, place.tracer)
        except Exception:
            logger.exception("on_rollout_end of the agent failed for rollout %s", self._ids[0])


class _Outcome:
    """What the agent returned, made into spans when its trace has ended."""

    def __init__(self, rollout: AttemptedRollout) -> None:
        self._rollout = rollout
        self.result: Any = None
        self.parent: trace_api.SpanContext | None = None
        self.error: InvalidOutcomeError | None = None

    def spans(self, traced: Sequence[ReadableSpan]) -> list[Span]:
        """The spans to store after those that were traced; none if the result is not valid."""
        try:
            return outcome_spans(self.result, emitted=traced, rollout=self._rollout, parent=self.parent)
        except InvalidOutcomeError as error:
            self.error = error
            return []
