"""Context-scoped span collection: which span belongs to which rollout, and its way into the store.

A :class:`TraceContext` marks the current OpenTelemetry context as belonging to one rollout. A
:class:`SpanRouter`, added to any number of tracer providers, looks that mark up when a span starts and hands
the span to the rollout's :class:`LightningSpanProcessor` when it ends. So concurrent rollouts never mix,
wherever the context is carried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import Tracer

from lightning_core.bridge import bridge_loop, run_sync
from lightning_core.emitter.context import TRACE_KEY, emitting_tracer, private_provider
from lightning_core.errors import TraceError
from lightning_core.types import Span

if TYPE_CHECKING:
    from lightning_core.store.base import LightningStore

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

FLUSH_SPANS = 512
"""Ended spans after which a running trace is flushed."""
FLUSH_SECONDS = 1.0
"""Age of the last flush after which the next ended span has the trace flushed."""

_last: ContextVar[LightningSpanProcessor | None] = ContextVar("lightning-last-trace", default=None)

# Which trace a started span belongs to, until it ends. Spans are keyed, not marked: a processor is given
# another object when a span ends than when it starts. Shared by all routers, so that a parent is found across
# providers.
_open_spans: dict[tuple[int, int], LightningSpanProcessor] = {}


def current_trace() -> LightningSpanProcessor | None:
    """Return the trace that the current context belongs to, if any."""
    trace = context_api.get_value(TRACE_KEY)
    return trace if isinstance(trace, LightningSpanProcessor) else None


def last_trace() -> LightningSpanProcessor | None:
    """Return the trace that was opened last in the current context, ended or not."""
    return _last.get()


class LightningSpanProcessor(SpanProcessor):
    """Collects the spans of one trace and writes them to a store.

    Ending a span only appends to a queue. The queue is written by :meth:`flush`, on one event loop, in the
    order in which the spans ended, which is the order of their sequence ids.

    Args:
        store: Where the spans go; ``None`` keeps them in memory only.
        rollout_id: The rollout that they belong to; needed with a store.
        attempt_id: Its attempt; needed with a store.
        tracer: What the emitters start their spans with.
    """

    def __init__(
        self,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        *,
        tracer: Tracer | None = None,
    ) -> None:
        if store is not None and (rollout_id is None or attempt_id is None):
            raise TraceError("a trace that writes to a store needs both rollout_id and attempt_id")
        self.store = store
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.tracer = tracer
        self._spans: list[ReadableSpan] = []
        self._queue: deque[ReadableSpan] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushing: asyncio.Lock | None = None
        self._flush_asked = False
        self._flush_time = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended so far, in that order."""
        return list(self._spans)

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Nothing is recorded when a span starts."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue an ended span. Never blocks and takes no lock, so a finaliser may call it anywhere."""
        self._spans.append(span)
        if self.store is None:
            return
        self._queue.append(span)
        loop = self._loop
        if loop is None or self._flush_asked:
            return
        if len(self._queue) >= FLUSH_SPANS or time.monotonic() - self._flush_time >= FLUSH_SECONDS:
            self._flush_asked = True
            try:
                loop.call_soon_threadsafe(self._flush_soon)
            except RuntimeError:
                logger.error(
                    "span %r of rollout %s ended after its event loop was closed and is lost",
                    span.name,
                    self.rollout_id,
                )

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Choose the event loop that writes this trace's spans."""
        self._loop = loop
        self._flushing = asyncio.Lock()

    def _flush_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._flush_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except TraceError as error:
            # The spans are still queued, and the flush at the end of the trace raises if it fails again.
            logger.warning("%s; trying again later", error)

    async def flush(self) -> None:
        """Write the queued spans to the store, and wait until they are there.

        Raises:
            TraceError: If the store refuses. The spans stay queued.
        """
        if self.store is None:
            return
        assert self.rollout_id is not None and self.attempt_id is not None
        if self._flushing is None:
            self.open(asyncio.get_running_loop())
        assert self._flushing is not None
        async with self._flushing:
            self._flush_asked = False
            self._flush_time = time.monotonic()
            batch: list[ReadableSpan] = []
            while self._queue:
                batch.append(self._queue.popleft())
            if not batch:
                return
            try:
                await self.store.add_spans(
                    [Span.from_opentelemetry(span, self.rollout_id, self.attempt_id) for span in batch]
                )
            except BaseException as error:
                # Writing is keyed by span id, so what did arrive is not doubled by the next flush.
                self._queue.extendleft(reversed(batch))
                if not isinstance(error, Exception):
                    raise
                raise TraceError(
                    f"{len(batch)} spans of rollout {self.rollout_id!r} could not be stored: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def shutdown(self) -> None:
        """Nothing to release."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Spans are flushed by their trace context; a provider's own flush has nothing to wait for."""
        return True


class SpanRouter(SpanProcessor):
    """Hands each ended span of a provider to the trace in whose context it was started, or drops it."""

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Remember which trace the span belongs to: by its context, its parent, or where it was started."""
        trace = context_api.get_value(TRACE_KEY, parent_context)
        if trace is None:
            parent = span.parent
            if parent is not None:
                trace = _open_spans.get((parent.trace_id, parent.span_id))
            if trace is None and parent_context is not None:
                trace = context_api.get_value(TRACE_KEY)
        if isinstance(trace, LightningSpanProcessor):
            context = span.get_span_context()
            if context is not None:
                _open_spans[context.trace_id, context.span_id] = trace

    def on_end(self, span: ReadableSpan) -> None:
        """Hand the span on."""
        context = span.get_span_context()
        if context is not None:
            trace = _open_spans.pop((context.trace_id, context.span_id), None)
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

    Args:
        processor: Collects the spans.
        root: Name of a span to start around the block, so that the trace has one root; ``None`` for no such
            span.

    Raises:
        TraceError: At the end, if spans could not be stored.
    """

    def __init__(self, processor: LightningSpanProcessor, root: str | None = None) -> None:
        self.processor = processor
        self._root_name = root
        self._root: trace_api.Span | None = None
        self._token: Token[Context] | None = None

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> LightningSpanProcessor:
        if loop is not None:
            self.processor.open(loop)
        _last.set(self.processor)
        # A trace is a trace of its own, also inside a span of the user's.
        context = context_api.set_value(
            TRACE_KEY, self.processor, trace_api.set_span_in_context(trace_api.INVALID_SPAN)
        )
        if self._root_name is not None and self.processor.tracer is not None:
            self._root = self.processor.tracer.start_span(self._root_name, context)
            context = trace_api.set_span_in_context(self._root, context)
        self._token = context_api.attach(context)
        return self.processor

    def _exit(self, error: BaseException | None) -> None:
        if self._root is not None:
            if error is not None:
                self._root.record_exception(error)
                self._root.set_status(trace_api.StatusCode.ERROR, f"{type(error).__name__}: {error}")
            self._root.end()
        if self._token is not None:
            context_api.detach(self._token)

    def __enter__(self) -> LightningSpanProcessor:
        return self._enter(bridge_loop() if self.processor.store is not None else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)
        if self.processor.store is not None:
            run_sync(self.processor.flush())

    async def __aenter__(self) -> LightningSpanProcessor:
        return self._enter(asyncio.get_running_loop())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)
        await self.processor.flush()
