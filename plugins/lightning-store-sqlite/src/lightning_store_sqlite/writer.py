"""The writer thread, which commits in groups, and the transaction that an operation sees."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from lightning_core.errors import StoreClosedError
from lightning_core.store.waiting import Request

__all__ = ["Operation", "Transaction", "Writer"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Bound how long the first operation of a group waits for the last one: operations, and seconds of work.
_GROUP_LIMIT = 256
_GROUP_SECONDS = 0.008


# What an operation writes to the log besides bodies, in bytes: a few pages, some of which it shares with others.
_OPERATION_BYTES = 16 << 10


class _Restart(Exception):
    """An operation must be undone, and has no savepoint."""


class Transaction:
    """What an operation writes through.

    Attributes:
        connection: The writer's connection, inside a transaction.
        now: The time of the operation, in seconds since the epoch.
        volume: How many bytes are written, about.
        queued: The runs of rollouts that were queued.
        requests: The repeatable dequeues that took something.
        ended: Ids of rollouts that ended.
    """

    def __init__(self, connection: sqlite3.Connection, *, savepoints: bool) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.now = 0.0
        self.volume = 0
        self._savepoints = savepoints
        self._changes = 0
        self.queued: list[str | None] = []
        self.requests: set[Request] = set()
        self.ended: list[str] = []
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._staged: list[tuple[str, str, int]] = []
        self._staged_queued: list[str | None] = []
        self._staged_requests: list[Request] = []
        self._staged_ended: list[str] = []
        self._numbers: dict[str, int] = {}
        self._due: float | None = self._value(
            "SELECT check_at FROM attempts WHERE check_at IS NOT NULL ORDER BY check_at LIMIT 1"
        )

    def _value(self, sql: str) -> Any:
        row = self.execute(sql).fetchone()
        return row[0] if row is not None else None

    def is_due(self, now: float) -> bool:
        """Whether some live attempt must be looked at."""
        return self._due is not None and self._due <= now

    def check_no_later_than(self, time: float | None) -> None:
        """Note that an attempt must be looked at then; ``None`` forgets all that was noted."""
        if time is None or self._due is None or time < self._due:
            self._due = time

    def next_number(self, kind: str, sql: str) -> int:
        """Draw a number; ``sql`` tells the greatest one in use when the transaction began."""
        number = self._numbers.get(kind)
        if number is None:
            number = self._value(sql) or 0
        self._numbers[kind] = number = number + 1
        return number

    def count(self, scope: str, what: str, change: int) -> None:
        """Change a counter of the statistics."""
        self._staged.append((scope, what, change))

    def announce_queued(self, run_id: str | None) -> None:
        """Wake somebody who waits for work, of this run or any, once this is committed."""
        self._staged_queued.append(run_id)

    def announce_request(self, request: Request) -> None:
        """Wake those who wait with the same request, since it has taken something, once this is committed."""
        self._staged_requests.append(request)

    def announce_end(self, rollout_id: str) -> None:
        """Wake those who wait for the rollout, once this is committed."""
        self._staged_ended.append(rollout_id)

    def begin(self, now: float) -> None:
        """An operation begins."""
        self.now = now
        self.volume += _OPERATION_BYTES
        if self._savepoints:
            self.execute("SAVEPOINT operation")
        else:
            self._changes = self.connection.total_changes

    def keep(self) -> None:
        """The operation has succeeded."""
        for scope, what, change in self._staged:
            self._counts[scope, what] += change
        self.queued += self._staged_queued
        self.requests.update(self._staged_requests)
        self.ended += self._staged_ended
        self._forget()
        if self._savepoints:
            self.execute("RELEASE operation")

    def undo(self) -> None:
        """Take back what the operation has done so far."""
        if self._savepoints:
            self.execute("ROLLBACK TO operation")
        elif self.connection.total_changes != self._changes:
            raise _Restart
        self._forget()

    def _forget(self) -> None:
        self._staged.clear()
        self._staged_queued.clear()
        self._staged_requests.clear()
        self._staged_ended.clear()

    def finish(self) -> None:
        """Write what was collected from all operations."""
        rows = [(scope, what, change) for (scope, what), change in self._counts.items() if change]
        if rows:
            self.connection.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", rows
            )


Operation: TypeAlias = Callable[[Transaction], T]


class _Job(Generic[T]):
    """An operation, and the future of the one who asked for it, if anybody waits."""

    __slots__ = ("error", "future", "loop", "operation", "result")

    def __init__(
        self,
        operation: Operation[T],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[T] | None,
    ) -> None:
        self.operation = operation
        self.loop = loop
        self.future = future
        self.result: T | None = None
        self.error: BaseException | None = None


class Writer:
    """Runs operations on a thread of its own, each group of them in one transaction.

    All that is asked for while a commit is under way goes into the next transaction, and is acknowledged after its
    commit. An operation that fails takes nothing else with it: if it had written something, the group is done again
    with a savepoint for each operation, which costs more.

    Args:
        connect: Opens the connection.
        clock: Tells the time, in seconds since the epoch.
        expire: Ends the attempts that are due.
        announce: Called after a commit, with the transaction.
        committed: Called after a commit, with about how many bytes were written.
        require_file: Raises if the file has lost its name.
        translate: Turns an error of SQLite into one of the store's.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], sqlite3.Connection],
        clock: Callable[[], float],
        expire: Operation[None],
        announce: Callable[[Transaction], None],
        committed: Callable[[int], None],
        require_file: Callable[[], None],
        translate: Callable[[Exception], Exception],
    ) -> None:
        self._require_file = require_file
        self._committed = committed
        self._connect = connect
        self._clock = clock
        self._expire = expire
        self._announce = announce
        self._translate = translate
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lightning-sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation, and return its result once it is committed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Job(operation, loop, future))
        return await future

    def write_soon(self, operation: Operation[None]) -> None:
        """Run an operation, and do not wait for it."""
        self._submit(_Job(operation, None, None))

    def _submit(self, job: _Job[Any]) -> None:
        with self._lock:
            if self._closed:
                raise StoreClosedError("the store is closed; open it again")
            self._jobs.put(job)

    def close(self) -> None:
        """Finish what was asked for, then stop; waits for the end."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        open_ = True
        try:
            while open_:
                waiting, open_ = self._next_group()
                while waiting:
                    jobs = waiting
                    try:
                        self._require_file()
                        if connection is None:
                            connection = self._connect()
                        jobs = self._commit(connection, waiting)
                    except Exception as error:
                        # Nothing of the group was stored. Whatever state the connection is in, the next one is new.
                        if connection is not None:
                            connection.close()
                            connection = None
                        _refuse(jobs, self._translate(error))
                    waiting = waiting[len(jobs) :]
                    _acknowledge(jobs)
        finally:
            if connection is not None:
                connection.close()

    def _next_group(self) -> tuple[list[_Job[Any]], bool]:
        """Wait for work, and take all that is there; the flag is false when no more will come."""
        jobs: list[_Job[Any]] = []
        job = self._jobs.get()
        try:
            while job is not None:
                if job.future is None or not job.future.cancelled():
                    jobs.append(job)
                if len(jobs) >= _GROUP_LIMIT:
                    return jobs, True
                job = self._jobs.get_nowait()
        except Empty:
            return jobs, True
        return jobs, False

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job[Any]]) -> list[_Job[Any]]:
        """Do the first of these jobs, as many as fit into one transaction, and return them."""
        try:
            return self._try(connection, jobs, savepoints=False)
        except _Restart:
            connection.execute("ROLLBACK")
            return self._try(connection, jobs, savepoints=True)

    def _try(
        self, connection: sqlite3.Connection, jobs: list[_Job[Any]], *, savepoints: bool
    ) -> list[_Job[Any]]:
        connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(connection, savepoints=savepoints)
        give_up = time.perf_counter() + _GROUP_SECONDS
        done = 0
        for job in jobs:
            self._do(transaction, job)
            done += 1
            if time.perf_counter() > give_up:
                break
        transaction.finish()
        connection.execute("COMMIT")
        self._committed(transaction.volume)
        self._announce(transaction)
        return jobs[:done]

    def _do(self, transaction: Transaction, job: _Job[Any]) -> None:
        now = self._clock()
        if transaction.is_due(now):
            transaction.begin(now)
            self._expire(transaction)
            transaction.keep()
        transaction.begin(now)
        job.error = None
        try:
            job.result = job.operation(transaction)
        except _Restart:
            raise
        except Exception as error:
            if not transaction.connection.in_transaction:
                # SQLite has given up the whole transaction, for instance because the disk is full.
                raise
            transaction.undo()
            job.error = self._translate(error)
        transaction.keep()


def _refuse(jobs: list[_Job[Any]], error: Exception) -> None:
    """Give everybody the error."""
    for job in jobs:
        job.error = job.error or error
        if job.future is None:
            _log.error("a write that nobody waits for has failed: %s", error)


def _acknowledge(jobs: list[_Job[Any]]) -> None:
    """Hand the results to those who wait, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
    for job in jobs:
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            # The loop was closed while its callers waited, so nobody is left to tell.
            continue


def _resolve(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        if job.future is None or job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
