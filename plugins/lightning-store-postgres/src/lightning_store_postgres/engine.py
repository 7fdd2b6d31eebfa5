"""What an open store runs on in one process: an event loop on a thread of its own, with all its connections."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from psycopg.pq.abc import PGresult

from lightning_core.store.waiting import Waiter, WaitingRoom

from .link import Backoff
from .listener import Listener, Notifier
from .operations import Look
from .reader import Reader
from .schema import prepare
from .settings import ConnectionLostError, Settings
from .wire import Row, Statement, rows
from .work import Operation, Work
from .writer import Job, Queue, Writer

__all__ = ["Engine", "discard"]

T = TypeVar("T")

# How long the server may be away when a store is opened, in seconds, and how long closing may take.
_OPENING, _CLOSING = 5.0, 10.0

# Counters are added up after so many transactions that changed them.
_FOLD_EVERY = 500
_FOLD = Statement(
    "WITH old AS (DELETE FROM counts WHERE ctid = ANY (ARRAY(SELECT ctid FROM counts FOR UPDATE SKIP LOCKED)) "
    "RETURNING scope, what, n) "
    "INSERT INTO counts SELECT scope, what, sum(n) FROM old GROUP BY scope, what HAVING sum(n) <> 0"
)


class Engine:
    """Runs the store's reads and writes in the process that made it.

    Args:
        settings: Where the database is.
        fresh: Whether to look at the database first, and create or migrate its tables.

    Raises:
        StoreSchemaError: If a newer version wrote the tables.
        StoreUnavailableError: If the database cannot be used.
    """

    def __init__(self, settings: Settings, *, fresh: bool = True) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.room = WaitingRoom()
        # The garbage collector may close the engine on any thread, in the middle of anything.
        self._lock = threading.RLock()
        self._closed = False
        self._listening = False
        # Windows' usual loop cannot watch a socket for libpq.
        self._loop = asyncio.SelectorEventLoop()
        self._writes = Queue(self._loop)
        self._reads = Queue(self._loop)
        self._workers: list[asyncio.Task[None]] = []
        self._helpers: list[asyncio.Task[None]] = []
        self._expiring: asyncio.Future[Any] | None = None
        self._since_fold = 0
        self._closing: asyncio.Task[None] | None = None
        self._notifier = Notifier(settings, self._read_here)
        self._listener = Listener(settings, self.room, self._notifier.token, self.expire)
        self._thread = threading.Thread(target=self._run, name="lightning-postgres", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(fresh), self._loop).result()
        except BaseException:
            self.close()
            raise

    # The store's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _open(self, fresh: bool) -> None:
        if fresh:
            await self._prepare()
        for _ in range(self.settings.writers):
            writer = Writer(self.settings, self._writes, self._happened)
            self._workers.append(asyncio.create_task(writer.run()))
        for _ in range(self.settings.readers):
            reader = Reader(self.settings, self._reads, self.expire)
            self._workers.append(asyncio.create_task(reader.run()))
        self._helpers.append(asyncio.create_task(self._notifier.run()))

    async def _prepare(self) -> None:
        began, backoff = self._loop.time(), Backoff()
        patience = min(_OPENING, self.settings.retry_seconds)
        while True:
            try:
                await prepare(self.settings)
                return
            except ConnectionLostError as error:
                if self._loop.time() - began > patience:
                    raise self.settings.unreachable(error, self._loop.time() - began) from None
            await backoff.rest()

    def _happened(self, work: Work) -> None:
        """A transaction was committed."""
        self.room.announce(queued=work.queued_runs, requests=work.requests, ended=work.ended)
        self._notifier.tell(work)
        if work.first_due is not None and self._listening:
            self._listener.expect(work.first_due)
        if work.counts:
            self._since_fold += 1
            if self._since_fold >= _FOLD_EVERY:
                self._since_fold = 0
                task = asyncio.create_task(self._fold())
                self._helpers.append(task)
                task.add_done_callback(self._helpers.remove)

    async def _fold(self) -> None:
        try:
            await self._read_here(_FOLD)
        except Exception:
            # The counters are right all the same, and the next time comes.
            self._since_fold = 0

    async def expire(self) -> None:
        """End what is due; those who ask while that is under way share it."""
        if self._expiring is None or self._expiring.done():
            self._expiring = self._submit(self._writes, Look(), 0)
        await asyncio.shield(self._expiring)

    async def _read_here(self, statement: Statement) -> PGresult:
        return await self._submit(self._reads, statement, 1)

    # Any thread

    def _submit(
        self, queue: Queue, operation: Any, weight: int, undo: Callable[[Any], None] | None = None
    ) -> asyncio.Future[Any]:
        patience = _CLOSING / 2 if self._closed else self.settings.retry_seconds
        # All loops' clocks are the monotonic clock.
        job: Job[Any] = Job(operation, weight, time.monotonic() + patience, undo)
        queue.put(job)
        return job.future

    def begin_write(
        self, operation: Operation[T], undo: Callable[[T], None] | None = None
    ) -> asyncio.Future[T]:
        """Ask for an operation; the future has its result once it is committed.

        Args:
            operation: What to do.
            undo: Called with the result if the future was cancelled meanwhile.

        Raises:
            StoreClosedError: If the store is closed.
        """
        return self._submit(self._writes, operation, operation.weight, undo)

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation, and return its result once it is committed.

        Raises:
            StoreClosedError: If the store is closed.
            StoreUnavailableError: If the server stays away.
        """
        return await self.begin_write(operation)

    async def read(self, statement: Statement) -> list[Row]:
        """Run a query on a state in which nothing is due, and return its rows.

        Raises:
            StoreClosedError: If the store is closed.
            StoreUnavailableError: If the server stays away.
        """
        return rows(await self._submit(self._reads, statement, 1))

    def do_later(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run something on the store's own event loop, if it is still open."""
        with self._lock:
            if self._closed:
                coroutine.close()
                return
            self._loop.call_soon_threadsafe(self._do, coroutine)

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._helpers.append(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task in self._helpers:
            self._helpers.remove(task)
        if not task.cancelled():
            task.exception()

    def enter(self, waiter: Waiter) -> None:
        """Begin to wait; ``room.leave`` ends it."""
        was_empty = not self.room.occupied.is_set()
        self.room.enter(waiter)
        with self._lock:
            if self._closed:
                return
            if not self._listening:
                self._listening = True
                self._loop.call_soon_threadsafe(self._do, self._listener.run())
            elif was_empty:
                # From now on somebody must know when the next lease ends.
                self._loop.call_soon_threadsafe(self._listener.hurry)

    def close(self) -> None:
        """Finish what was asked for, and close all connections; waits for the end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if threading.current_thread() is self._thread:
            # The garbage collector found the store there; waiting would be for ever.
            self._closing = self._loop.create_task(self._close())
            self._closing.add_done_callback(lambda _: self._loop.stop())
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.room.wake_all()

    async def _close(self) -> None:
        self._writes.close()
        writers, readers = self._workers[: self.settings.writers], self._workers[self.settings.writers :]
        # Reads may need a write before them, and are ended last.
        await _end(writers, _CLOSING)
        self._reads.close()
        await _end(readers, _CLOSING)
        helpers = [*self._helpers]
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _end(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Engines of a parent process. Closing an inherited connection would end the parent's, so they are kept.
_inherited: list[Engine] = []


def discard(engine: Engine) -> None:
    """Close an engine whose store is gone, in the process that made it."""
    if engine.pid == os.getpid():
        engine.close()
    else:
        _inherited.append(engine)
