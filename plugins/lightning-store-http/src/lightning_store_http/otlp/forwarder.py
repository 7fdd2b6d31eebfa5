"""Sends stored spans on to another OTLP endpoint, in the background."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from lightning_core.errors import LightningError
from lightning_core.store.encoding import EncodedSpan, decode_span, encode_span
from lightning_core.types import Span

from .losses import Losses
from .outgoing import write_request
from .sender import Sender, shown_url, traces_url

if TYPE_CHECKING:
    from types import TracebackType

    from lightning_core.store.base import LightningStore

__all__ = ["Forwarder"]

logger = logging.getLogger(__name__)

BATCH_BYTES = 4 * 1024 * 1024
"""The most encoded bytes of spans in one request; a single larger span is sent alone."""

# What an EncodedSpan costs in memory besides its body.
_OVERHEAD = 600
# From so many spans of one attempt on, they are read in one query of at most so many spans.
_READ_TOGETHER, _READ_AT_MOST = 8, 2000


class Forwarder:
    """Sends stored spans on to another OTLP/HTTP endpoint: Jaeger, Phoenix, a collector, another server of this kind.

    Spans are queued by :meth:`offer` and sent in batches by a thread of its own. Nothing that happens there blocks or
    fails a write to the store: when the endpoint is down for long or too slow, spans are dropped, counted in
    :attr:`dropped`, and logged once per minute. What the endpoint has taken once it may be sent again after a lost
    answer; the ids of the spans are the same, so that it can tell.

    Args:
        endpoint: An ``http`` or ``https`` URL. Without a path, ``/v1/traces`` is added.
        headers: Sent along with each request, for example for authorization.
        store: Where the spans are stored. If given, a span that was offered before its sequence id was drawn is read
            again before it is sent, so that it is sent as stored.
        batch_spans: The most spans in one request.
        batch_seconds: How long a span waits for others, in seconds.
        queue_bytes: The most memory that waiting spans may take, in bytes; what is offered beyond that is dropped.
        timeout: Of one request, in seconds.
        retry_seconds: For how long a batch is tried again while the endpoint cannot be reached or says that it may be
            tried again (429, 502, 503, 504), in seconds. Other errors drop the batch at once.
        first_backoff: About the first pause between two tries, in seconds; it doubles up to 30.
        compression: ``gzip`` or ``none``.
        report_seconds: The shortest time between two reports of what was dropped, in seconds.

    Raises:
        ConfigurationError: If ``endpoint`` is no URL of this kind.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        store: LightningStore | None = None,
        batch_spans: int = 512,
        batch_seconds: float = 1.0,
        queue_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
        retry_seconds: float = 300.0,
        first_backoff: float = 1.0,
        compression: Literal["gzip", "none"] = "gzip",
        report_seconds: float = 60.0,
    ) -> None:
        self.endpoint = traces_url(endpoint)
        self._make_sender = partial(
            Sender,
            self.endpoint,
            headers=dict(headers or {}),
            timeout=timeout,
            retry_seconds=retry_seconds,
            first_backoff=first_backoff,
            compress=compression == "gzip",
        )
        self.store = store
        self._batch_spans = batch_spans
        self._batch_seconds = batch_seconds
        self._queue_bytes = queue_bytes
        self._losses = Losses(
            logger, f"spans were not forwarded to {shown_url(self.endpoint)}", every=report_seconds
        )
        self._lock = threading.Lock()
        self._queue: deque[EncodedSpan] = deque()
        self._waiting_bytes = 0
        self._closed = False
        self._sent = 0
        self._in_flight = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def sent(self) -> int:
        """How many spans the endpoint has taken."""
        return self._sent

    @property
    def dropped(self) -> int:
        """How many spans were dropped, or refused by the endpoint."""
        return self._losses.total

    @property
    def waiting(self) -> int:
        """How many spans are queued or being sent."""
        return len(self._queue) + self._in_flight

    def start(self) -> None:
        """Begin to send. Spans may be offered before.

        Raises:
            RuntimeError: If it was started before.
        """
        if self._thread is not None:
            raise RuntimeError("a Forwarder can be started once")
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(started)), name="lightning-otlp-forwarder", daemon=True
        )
        self._thread.start()
        started.wait()

    def stop(self, timeout: float = 5.0) -> None:
        """Send what is queued, and end. What cannot be sent in time is dropped; so is what is offered from now on.

        Args:
            timeout: How long to try, in seconds. This call blocks for about that long at most.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            if first and self._loop is not None:
                self._loop.call_soon_threadsafe(self._stop_soon, timeout)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            left, self._waiting_bytes = len(self._queue), 0
            self._queue.clear()
        if left:
            self._losses.add(left, "forwarding was stopped before they could be sent")
        self._losses.report(now=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def offer(self, spans: Sequence[EncodedSpan | Span]) -> None:
        """Queue spans that were just stored. Returns at once, raises nothing, and may be called from any thread."""
        encoded: list[EncodedSpan] = []
        for span in spans:
            try:
                encoded.append(span if isinstance(span, EncodedSpan) else encode_span(span))
            except LightningError as error:
                self._losses.add(1, str(error))
        dropped = 0
        with self._lock:
            before = len(self._queue)
            closed = self._closed
            for span in encoded:
                size = len(span.body) + _OVERHEAD
                if closed or self._waiting_bytes + size > self._queue_bytes:
                    dropped += 1
                else:
                    self._queue.append(span)
                    self._waiting_bytes += size
            after = len(self._queue)
            if after and (before == 0 or before < self._batch_spans <= after) and self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)
        if dropped:
            reason = "forwarding was stopped before they came" if closed else "too many were waiting already"
            self._losses.add(dropped, reason)

    # What follows runs in the thread.

    def _stop_soon(self, timeout: float) -> None:
        self._stopping.set()
        self._wake.set()
        if self._main is not None:
            asyncio.get_running_loop().call_later(timeout, self._main.cancel)

    async def _run(self, started: threading.Event) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        started.set()
        try:
            async with self._make_sender() as sender:
                while not (self._stopping.is_set() and not self._queue):
                    await self._wait_for_batch()
                    await self._deliver_quietly(sender, self._take_batch())
                    self._losses.report()
        except asyncio.CancelledError:
            # The time for the rest is over; stop() counts what is left in the queue.
            self._lose(self._in_flight, "forwarding was stopped before they could be sent")
        finally:
            with self._lock:
                self._loop = None

    async def _wait_for_batch(self) -> None:
        """Wait until there is a full batch, the first span has waited long enough, or it is time to stop or report."""
        if not self._queue:
            await self._sleep_until_woken(self._losses.until_due())
        give_up = time.monotonic() + self._batch_seconds
        while 0 < len(self._queue) < self._batch_spans and (left := give_up - time.monotonic()) > 0:
            if self._stopping.is_set():
                return
            await self._sleep_until_woken(left)

    async def _sleep_until_woken(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _take_batch(self) -> list[EncodedSpan]:
        batch: list[EncodedSpan] = []
        size = 0
        with self._lock:
            while self._queue and len(batch) < self._batch_spans:
                size += len(self._queue[0].body)
                if batch and size > BATCH_BYTES:
                    break
                batch.append(span := self._queue.popleft())
                self._waiting_bytes -= len(span.body) + _OVERHEAD
            self._in_flight = len(batch)
        return batch

    def _lose(self, count: int, reason: str) -> None:
        """Drop spans of the batch that is being sent."""
        self._in_flight -= count
        if count:
            self._losses.add(count, reason)

    async def _deliver_quietly(self, sender: Sender, batch: Sequence[EncodedSpan]) -> None:
        try:
            await self._deliver(sender, batch)
        except Exception as error:
            logger.exception("a batch could not be forwarded")
            self._lose(self._in_flight, f"{type(error).__name__}: {error}")

    async def _deliver(self, sender: Sender, batch: Sequence[EncodedSpan]) -> None:
        parts = [await self._as_stored(batch)]
        while parts:
            part = parts.pop()
            request, refused = write_request([decode_span(span) for span in part])
            for reason in refused.values():
                self._lose(1, reason)
            part = [span for index, span in enumerate(part) if index not in refused]
            if not part:
                continue
            outcome = await sender.send(request.SerializeToString(), self._stopping)
            if outcome.too_large and len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
                continue
            rejected = min(outcome.rejected, len(part)) if outcome.taken else len(part)
            self._lose(rejected, outcome.reason)
            self._sent += len(part) - rejected
            self._in_flight -= len(part) - rejected

    async def _as_stored(self, batch: Sequence[EncodedSpan]) -> list[EncodedSpan]:
        """Read the spans again that have no sequence id yet."""
        groups: dict[tuple[str, str], set[str]] = {}
        for span in batch:
            if not span.sequence_id:
                groups.setdefault((span.rollout_id, span.attempt_id), set()).add(span.span_id)
        stored: dict[tuple[str, str, str], EncodedSpan] = {}
        if self.store is not None:
            try:
                for (rollout_id, attempt_id), span_ids in groups.items():
                    for span in await _read_back(self.store, rollout_id, attempt_id, span_ids):
                        stored[rollout_id, attempt_id, span.span_id] = span
            except Exception as error:
                # Better without their place than not at all.
                logger.debug("spans are forwarded without their sequence ids: %s", error)
        return [stored.get((span.rollout_id, span.attempt_id, span.span_id), span) for span in batch]


async def _read_back(
    store: LightningStore, rollout_id: str, attempt_id: str, span_ids: set[str]
) -> list[EncodedSpan]:
    found: list[EncodedSpan] = []
    if len(span_ids) >= _READ_TOGETHER:
        spans = await store.query_encoded_spans(rollout_id, attempt_id, limit=_READ_AT_MOST)
        found += [span for span in spans if span.span_id in span_ids]
    for span_id in span_ids.difference(span.span_id for span in found):
        found += await store.query_encoded_spans(rollout_id, attempt_id, span_id=span_id)
    return found
