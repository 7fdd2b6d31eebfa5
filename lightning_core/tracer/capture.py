"""Context-scoped span collection: which span belongs to which rollout, and its way into the store.

A :class:`TraceContext` marks the current OpenTelemetry context as belonging to one rollout. A
:class:`SpanRouter`, added to any number of tracer providers, looks that mark up when a span starts and hands
the span to the rollout's :class:`LightningSpanProcessor` when it ends. So concurrent rollouts never mix,
wherever the context is carried.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar, Token
from types import TracebackType

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import Tracer

from lightning_core.bridge import bridge_loop, run_sync
from lightning_core.emitter.context import TRACE_KEY, emitting_tracer, private_provider
from lightning_core.errors import TraceError

from .processor import LightningSpanProcessor, end_open_span, trace_of_open_span

__all__ = [
    "LightningSpanProcessor",
    "SpanRouter",
    "TraceContext",
    "current_trace",
    "emitting_tracer",
    "last_trace",
    "private_provider",
]

logger = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0
"""How long a trace that is cancelled while it is flushed still waits for its spans to be stored."""
_last: ContextVar[LightningSpanProcessor | None] = ContextVar("lightning-last-trace", default=None)


def current_trace() -> LightningSpanProcessor | None:
    """Return the trace that the current context belongs to, if any."""
    trace = context_api.get_value(TRACE_KEY)
    return trace if isinstance(trace, LightningSpanProcessor) else None


def last_trace(tracer: Tracer | None = None) -> LightningSpanProcessor | None:
    """Return the trace that was opened or closed last in the current context.

    Args:
        tracer: Only a trace that emits with this one counts.
    """
    trace = _last.get()
    return trace if trace is not None and (tracer is None or trace.tracer is tracer) else None


class SpanRouter(SpanProcessor):
    """Hands each ended span of a provider to the trace in whose context it was started, or drops it.

    A span belongs to the trace of its parent; else to that of the context which it was started with; else to
    that of the context in which it was started.
    """

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Remember which trace the span belongs to."""
        trace: object = None
        parent = span.parent
        if parent is not None:
            trace = trace_of_open_span(parent)
        if trace is None:
            trace = context_api.get_value(TRACE_KEY, parent_context)
            if trace is None and parent_context is not None:
                trace = context_api.get_value(TRACE_KEY)
        if isinstance(trace, LightningSpanProcessor):
            trace.started(span.get_span_context())

    def on_end(self, span: ReadableSpan) -> None:
        """Hand the span on."""
        context = span.get_span_context()
        if context is not None:
            trace = end_open_span(context)
            if trace is not None:
                trace.on_end(span)

    def shutdown(self) -> None:
        """Nothing to release."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back here."""
        return True


class TraceContext:
    """Opens a trace around a block, with ``with`` or ``async with``, and flushes its spans at the end.

    ``async with`` writes the spans on the running event loop. ``with`` writes them on a background thread and
    waits, so inside a coroutine prefer ``async with``.

    If the block itself raises, that exception stays, and what could not be stored is logged as an error.

    Args:
        processor: Collects the spans.
        root: Name of a span to start around the block, so that the trace has one root; ``None`` for no such
            span.

    Raises:
        TraceError: At the end, if spans could not be stored; or if the context is entered a second time.
    """

    def __init__(self, processor: LightningSpanProcessor, root: str | None = None) -> None:
        self.processor = processor
        self._root_name = root
        self._root: trace_api.Span | None = None
        self._token: Token[Context] | None = None

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> LightningSpanProcessor:
        if self._token is not None:
            raise TraceError("this trace has been opened before; call trace_context() anew for each block")
        processor = self.processor
        if loop is not None:
            processor.open(loop)
        _last.set(processor)
        # A trace is a trace of its own, also inside a span of the user's.
        context = trace_api.set_span_in_context(trace_api.INVALID_SPAN)
        context = context_api.set_value(TRACE_KEY, processor, context)
        if self._root_name is not None and processor.tracer is not None:
            self._root = processor.tracer.start_span(self._root_name, context)
            context = trace_api.set_span_in_context(self._root, context)
        self._token = context_api.attach(context)
        return processor

    def _exit(self, error: BaseException | None) -> None:
        if self._root is not None:
            if error is not None:
                self._root.record_exception(error)
                self._root.set_status(trace_api.StatusCode.ERROR, f"{type(error).__name__}: {error}")
            self._root.end()
        if self._token is not None:
            context_api.detach(self._token)
        _last.set(self.processor)
        self.processor.close()

    def __enter__(self) -> LightningSpanProcessor:
        return self._enter(bridge_loop() if self.processor.store is not None else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)
        try:
            if self.processor.store is not None:
                run_sync(self.processor.flush())
        except TraceError as lost:
            if error is None:
                raise
            _log_lost(lost)
        finally:
            self.processor.leave_loop()

    async def __aenter__(self) -> LightningSpanProcessor:
        return self._enter(asyncio.get_running_loop())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)
        try:
            await self.processor.flush()
        except TraceError as lost:
            if error is None:
                raise
            _log_lost(lost)
        except asyncio.CancelledError:
            await self._flush_cancelled()
            raise
        finally:
            self.processor.leave_loop()

    async def _flush_cancelled(self) -> None:
        """Give the spans a little more time, on a loop that the cancellation does not reach."""
        await self.processor.change_loop(bridge_loop(), CANCEL_SECONDS)
        writing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.processor.flush(), bridge_loop()))
        done, _ = await asyncio.wait([writing], timeout=CANCEL_SECONDS)
        if not done:
            logger.error(
                "rollout %s was cancelled, and its spans were not stored within %g s",
                self.processor.rollout_id,
                CANCEL_SECONDS,
            )
        elif (lost := writing.exception()) is not None:
            _log_lost(lost)


def _log_lost(error: BaseException) -> None:
    logger.error("%s", error)
