"""The span processor of one trace: collects its spans, and writes them to a store in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import SpanContext, Tracer

from lightning_core.bridge import bridge_loop
from lightning_core.errors import TraceError
from lightning_core.types._conversion import convert_span
from lightning_core.types.tracing import Span, SpanBatch

if TYPE_CHECKING:
    from lightning_core.store.base import LightningStore

__all__ = ["LightningSpanProcessor"]

logger = logging.getLogger(__name__)

FLUSH_SPANS = 512
"""Ended spans after which a running trace is flushed, and the most that are written in one call."""
FLUSH_SECONDS = 3.0
"""Age of the last flush after which the next ended span has the trace flushed."""
PAUSE_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""How long a running trace waits after its first, second, … failed flush in a row before it tries again."""
UNSENT_SPANS = 200_000
"""The most spans that wait for a store in one trace. Those that end after them are lost, and the trace fails."""
QUIET_SECONDS = 60.0
"""For how long failed flushes of running traces are not logged again."""
UNFINISHED_TRACES = 256
"""How many closed traces wait for spans that have not ended yet."""

# Which trace a started span belongs to, until it ends. Spans are keyed, not marked: a processor is given another
# object when a span ends than when it starts. Shared by all routers, so that a parent is found across providers.
_Key: TypeAlias = tuple[int, int]
_open_spans: dict[_Key, LightningSpanProcessor] = {}
# Closed traces with spans that may still end, oldest first. Some spans never do, such as that of a stream which
# nobody read to its end; their traces must not be kept for ever.
_unfinished: OrderedDict[int, LightningSpanProcessor] = OrderedDict()
_quiet_until = 0.0


def trace_of_open_span(context: SpanContext) -> LightningSpanProcessor | None:
    """Return the trace of a span that has started and not ended, if it has one."""
    return _open_spans.get((context.trace_id, context.span_id))


def end_open_span(context: SpanContext) -> LightningSpanProcessor | None:
    """The same for a span that ends now."""
    trace = _open_spans.pop((context.trace_id, context.span_id), None)
    if trace is not None:
        trace.ended(context)
    return trace


class LightningSpanProcessor(SpanProcessor):
    """Collects the spans of one trace and writes them to a store.

    Ending a span only appends to a queue. The queue is written by :meth:`flush`, on one event loop, in the
    order in which the spans ended, which is the order of their sequence ids. While the store refuses, the spans stay
    queued, and writing them is tried again when further spans end; what cannot be written by the end of the trace is
    an error.

    Args:
        store: Where the spans go; ``None`` keeps them in memory only.
        rollout_id: The rollout that they belong to; needed with a store.
        attempt_id: Its attempt; needed with a store.
        tracer: What the emitters start their spans with.

    Attributes:
        at_end: Called once when the trace is closed, with the spans that have ended; returns further spans to store
            after them.

    Raises:
        TraceError: If there is a store and one of the ids is missing.
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
        self._open: set[_Key] = set()
        self._queue: deque[ReadableSpan | Span] = deque()
        self.at_end: Callable[[Sequence[ReadableSpan]], Sequence[Span]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushing: asyncio.Lock | None = None
        self._flush_asked = False
        self._flush_time = time.monotonic()
        self._closed = False
        self._failures = 0
        self._retry_time = 0.0
        self._lost = 0
        self._changing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended so far, in that order."""
        return list(self._spans)

    @property
    def unended(self) -> int:
        """How many spans have started and not ended."""
        return len(self._open)

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Nothing is recorded when a span starts."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue an ended span. Never blocks and takes no lock, so a finaliser may call it anywhere."""
        if self.store is None:
            self._spans.append(span)
            return
        waiting = len(self._queue)
        if waiting >= UNSENT_SPANS:
            self._lost += 1
            return
        self._spans.append(span)
        self._queue.append(span)
        loop = self._loop
        if loop is None or self._flush_asked:
            return
        if self._pausing():
            return
        now = time.monotonic()
        if waiting + 1 >= FLUSH_SPANS or self._closed or now - self._flush_time >= FLUSH_SECONDS:
            self._flush_asked = True
            try:
                loop.call_soon_threadsafe(self._flush_soon)
            except RuntimeError:
                # The loop has ended before the trace: it was opened with ``async with`` and never left.
                self._flush_asked = False
                logger.error(
                    "span %r of rollout %s ended after the event loop of its trace; it is lost unless the trace "
                    "is flushed again",
                    span.name,
                    self.rollout_id,
                )

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Choose the event loop that writes this trace's spans."""
        self._flushing = asyncio.Lock()
        self._loop = loop

    def close(self) -> None:
        """Say that the block is over: each span that still ends is stored at once, in the background."""
        self._closed = True
        if self.at_end is not None:
            at_end, self.at_end = self.at_end, None
            self._queue.extend(at_end(self._spans))
        if self._open:
            _unfinished[id(self)] = self
            if len(_unfinished) > UNFINISHED_TRACES:
                _unfinished.popitem(last=False)[1].forget()

    async def change_loop(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Have spans written by another loop, first of all those that writes under way on this one have taken.

        Args:
            loop: Which.
            seconds: How long the writes under way may take to give up.
        """
        tasks = list(self._tasks)
        for task in tasks:
            # It puts back what it has taken; without that, later spans would overtake them.
            task.cancel()
        self._changing = True
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
        finally:
            self._changing = False
        self.open(loop)

    def leave_loop(self) -> None:
        """Have later spans written by a loop that outlives the one which ran the block."""
        if self.store is not None:
            self.open(bridge_loop())
            if self._queue and not self._failures:
                # These ended while the last flush was finishing.
                bridge_loop().call_soon_threadsafe(self._flush_soon)

    def started(self, context: SpanContext) -> None:
        """Note that a span of this trace has started."""
        key = (context.trace_id, context.span_id)
        self._open.add(key)
        _open_spans[key] = self

    def ended(self, context: SpanContext) -> None:
        """Note that it has ended."""
        self._open.discard((context.trace_id, context.span_id))
        if self._closed and not self._open:
            _unfinished.pop(id(self), None)

    def forget(self) -> None:
        """Stop waiting for spans that have not ended."""
        keys = list(self._open)
        for key in keys:
            _open_spans.pop(key, None)
        self._open.clear()
        if keys and self.store is not None:
            logger.warning(
                "%d spans of rollout %s never ended and are not stored", len(keys), self.rollout_id
            )

    def _pausing(self) -> bool:
        """Whether a failed flush of the running trace is not to be tried again yet."""
        return self._failures > 0 and not self._closed and time.monotonic() < self._retry_time

    def _flush_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._flush_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_quietly(self) -> None:
        try:
            await self._flush(in_background=True)
        except TraceError as error:
            if self._closed:
                logger.error("%s; they ended after their trace, so nothing tries again", error)
            else:
                # The spans are still queued, and the flush at the end of the trace raises if it fails again.
                _log_delay(error)
        except asyncio.CancelledError:
            if self._closed and self._queue and not self._changing:
                logger.error(
                    "%d spans of rollout %s are lost: the loop ended", len(self._queue), self.rollout_id
                )
            raise

    async def flush(self) -> None:
        """Write the queued spans to the store, and wait until they are there.

        Raises:
            TraceError: If the store refuses; the spans stay queued. Or if spans were lost, because too many waited.
        """
        await self._flush(in_background=False)

    async def _flush(self, *, in_background: bool) -> None:
        if self.store is None:
            return
        running = asyncio.get_running_loop()
        if self._loop is None or not self._loop.is_running():
            self.open(running)
        elif self._loop is not running:
            # Only one loop writes, so that spans arrive in order.
            await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self._flush(in_background=in_background), self._loop)
            )
            return
        assert self._flushing is not None
        async with self._flushing:
            self._flush_asked = False
            if in_background and self._pausing():
                # It was asked for while another one was failing.
                return
            self._flush_time = time.monotonic()
            # Spans that end meanwhile are for the next flush, or this one might never end.
            waiting = len(self._queue)
            while waiting > 0:
                await self._write_batch(self.store, min(waiting, FLUSH_SPANS))
                waiting -= FLUSH_SPANS
                if waiting > 0:
                    await asyncio.sleep(0)
            self._failures = 0
        if self._lost and self._closed:
            lost, self._lost = self._lost, 0
            raise TraceError(
                f"{lost} spans of rollout {self.rollout_id!r} are lost: {UNSENT_SPANS} spans before them waited for "
                "the store, which was away or too slow"
            )

    async def _write_batch(self, store: LightningStore, size: int) -> None:
        queue = self._queue
        batch: list[ReadableSpan | Span] = []
        while queue and len(batch) < size:
            batch.append(queue.popleft())
        rollout_id, attempt_id = self.rollout_id or "", self.attempt_id or ""
        try:
            await store.add_spans(
                SpanBatch(
                    [
                        span if isinstance(span, Span) else convert_span(span, rollout_id, attempt_id)
                        for span in batch
                    ]
                )
            )
        except BaseException as error:
            # Writing is keyed by span id, so what did arrive is not doubled by the next flush.
            queue.extendleft(reversed(batch))
            pause = PAUSE_SECONDS[min(self._failures, len(PAUSE_SECONDS) - 1)]
            self._failures += 1
            self._retry_time = time.monotonic() + pause
            if not isinstance(error, Exception):
                raise
            raise TraceError(
                f"{len(queue)} spans of rollout {self.rollout_id!r} could not be stored: "
                f"{type(error).__name__}: {error}"
            ) from error

    def shutdown(self) -> None:
        """Nothing to release."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Spans are flushed by their trace context; a provider's own flush has nothing to wait for."""
        return True


def _log_delay(error: TraceError) -> None:
    """Say that the store refuses spans; not once for each of a thousand traces."""
    global _quiet_until
    now = time.monotonic()
    if now >= _quiet_until:
        _quiet_until = now + QUIET_SECONDS
        logger.warning("%s; trying again later, and saying so at most once in %g s", error, QUIET_SECONDS)
