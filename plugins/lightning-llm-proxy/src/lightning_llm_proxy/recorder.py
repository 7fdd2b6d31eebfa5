"""Writes spans to a store in the background, in the order in which the calls ended."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from lightning_core.errors import TraceError
from lightning_core.store.base import LightningStore
from lightning_core.types import Span
from lightning_core.types.tracing import SpanBatch

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)

BATCH_SPANS: Final = 256
BATCH_BYTES: Final = 4 * 2**20
QUIET_SECONDS: Final = 60.0
"""For how long further losses are counted and not logged."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
# What a span costs in memory besides its texts.
_OVERHEAD: Final = 2048


@dataclass(slots=True)
class _Entry:
    span: Span
    size: int
    stored: asyncio.Future[bool]


class Recorder:
    """Writes spans to a store. Belongs to one event loop.

    Spans wait in a queue, and one task writes them, as many at once as have come meanwhile. While the store is away
    they are kept and tried again. What the store refuses, and what comes while too many are waiting, is lost: that is
    logged as an error, counted in :attr:`lost`, and raised by :meth:`flush`.

    Args:
        store: Where spans go; ``None`` if nobody has said, so that all are lost.
        max_bytes: The most memory of spans that wait, in bytes.
        retry_seconds: For how long a batch is tried again while the store is away.
    """

    def __init__(self, store: LightningStore | None, max_bytes: int, retry_seconds: float) -> None:
        self.store = store
        self.written = 0
        self.lost = 0
        self._max_bytes = max_bytes
        self._retry_seconds = retry_seconds
        self._queue: deque[_Entry] = deque()
        self._bytes = 0
        self._taken = self._done = 0
        self._reported = 0
        self._unreported = 0
        self._quiet_until = 0.0
        self._why_lost = ""
        self._away = False
        self._wake = asyncio.Event()
        self._flushing: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    @property
    def waiting(self) -> int:
        """How many spans are not written yet."""
        return self._taken - self._done

    def put(self, span: Span) -> asyncio.Future[bool]:
        """Queue a span. Returns at once.

        Returns:
            What is done when the span is stored, or when it is of no use to wait for that, because the store is away
            or the span is lost.
        """
        stored = asyncio.get_running_loop().create_future()
        values = span.attributes
        size = _OVERHEAD + len(str(values.get("input.value", ""))) + len(str(values.get("output.value", "")))
        if self.store is None:
            reason = "the proxy was given no store: call set_store, or start(store)"
        elif self._task is None or self._task.done():
            reason = "the proxy has stopped"
        elif self._bytes + size > self._max_bytes:
            reason = f"spans of {self._bytes >> 20} MiB are waiting for the store, which is away or too slow"
        else:
            self._queue.append(_Entry(span, size, stored))
            self._bytes += size
            self._taken += 1
            self._wake.set()
            if self._away:
                stored.set_result(False)
            return stored
        self._lose([span], reason)
        stored.set_result(False)
        return stored

    async def flush(self) -> None:
        """Wait until all spans that were put before are written.

        Raises:
            TraceError: If spans have been lost since the last flush.
        """
        if self.waiting:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append((self._taken, done))
            await done
        lost, self._reported = self.lost - self._reported, self.lost
        if lost:
            raise TraceError(f"{lost} spans of model calls are lost: {self._why_lost}")

    async def close(self, seconds: float) -> None:
        """Write what is queued, but for no longer than so many seconds, and stop."""
        task = self._task
        if task is None:
            return
        if self.waiting:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append((self._taken, done))
            await asyncio.wait([done], timeout=seconds)
        task.cancel()
        await asyncio.wait([task])
        left = [entry.span for entry in self._queue]
        self._queue.clear()
        if left:
            self._lose(left, "the proxy was stopped before the store took them")
        self._report(now=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = self._next_batch()
                try:
                    await self._write(batch)
                except asyncio.CancelledError:
                    self._queue.extendleft(reversed(batch))
                    raise
                self._finish(batch)

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        size = 0
        while self._queue and len(batch) < BATCH_SPANS and (not batch or size < BATCH_BYTES):
            entry = self._queue.popleft()
            batch.append(entry)
            size += entry.size
        return batch

    def _finish(self, batch: list[_Entry]) -> None:
        for entry in batch:
            self._bytes -= entry.size
            if not entry.stored.done():
                entry.stored.set_result(True)
        self._done += len(batch)
        while self._flushing and self._flushing[0][0] <= self._done:
            _, done = self._flushing.popleft()
            if not done.done():
                done.set_result(None)

    async def _write(self, batch: list[_Entry]) -> None:
        spans = [entry.span for entry in batch]
        give_up: float | None = None
        pause = _FIRST_PAUSE
        while True:
            try:
                assert self.store is not None
                await self.store.add_spans(SpanBatch(spans))
            except OSError as error:
                # It is away: so are StoreUnavailableError, TimeoutError and ConnectionError.
                now = time.monotonic()
                if give_up is None:
                    give_up = now + self._retry_seconds
                    self._leave(error, batch)
                if now + pause > give_up:
                    self._lose(spans, f"the store was away for {self._retry_seconds:g} s: {error}")
                    return
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception as error:
                if len(spans) == 1:
                    self._lose(spans, f"{type(error).__name__}: {error}")
                    return
                await self._write_apart(batch)
                return
            else:
                self.written += len(spans)
                if self._away:
                    self._away = False
                    logger.warning("the store takes the spans of model calls again")
                return

    async def _write_apart(self, batch: list[_Entry]) -> None:
        """Write what was refused together, so that one attempt's spans cost no other its own."""
        if len({entry.span.attempt_id for entry in batch}) == 1:
            for entry in batch:
                await self._write([entry])
            return
        ordered = sorted(batch, key=lambda entry: (entry.span.rollout_id, entry.span.attempt_id))
        for _, entries in groupby(ordered, key=lambda entry: (entry.span.rollout_id, entry.span.attempt_id)):
            await self._write(list(entries))

    def _leave(self, error: Exception, batch: list[_Entry]) -> None:
        """Note that the store is away, and let nobody wait for it."""
        if not self._away:
            logger.error(
                "the store does not take the spans of model calls (%s: %s); trying again for up to %g s",
                type(error).__name__,
                error,
                self._retry_seconds,
            )
        self._away = True
        for entry in (*batch, *self._queue):
            if not entry.stored.done():
                entry.stored.set_result(False)

    def _lose(self, spans: list[Span], reason: str) -> None:
        self.lost += len(spans)
        self._unreported += len(spans)
        self._why_lost = f"{reason} (rollout {spans[-1].rollout_id!r}, attempt {spans[-1].attempt_id!r})"
        self._report()

    def _report(self, now: bool = False) -> None:
        """Log losses, not once for each of a thousand calls."""
        if not self._unreported or (not now and time.monotonic() < self._quiet_until):
            return
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        count, self._unreported = self._unreported, 0
        logger.error("%d spans of model calls are lost: %s", count, self._why_lost)
