"""Writing: what many callers ask for at once goes into one transaction."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from lightning_core.errors import LightningError, StoreClosedError, StoreUnavailableError

from .link import Backoff, Link
from .loading import EXPIRY_BATCH, load
from .saving import save
from .settings import ConnectionLostError, ServerError, Settings
from .text import number, word
from .wire import Statement, Wire, rows
from .work import Needs, Operation, Work

__all__ = ["Job", "Queue", "Writer", "answer"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Bound how long the first operation of a group waits for the last one.
_GROUP_LIMIT = 256
_GROUP_WEIGHT = 8_000_000

_UNIQUE_VIOLATION = "23505"
# Serialization failure, deadlock, and a lock that was not to be had.
_TRANSIENT = frozenset({"40001", "40P01", "55P03"})


class Job(Generic[T]):
    """Something to be done, and the future of the one who asked for it.

    Attributes:
        undo: Called with the result if nobody was left to take it.
    """

    __slots__ = ("deadline", "error", "future", "loop", "operation", "result", "undo", "weight")

    def __init__(
        self,
        operation: Any,
        weight: int,
        deadline: float,
        undo: Callable[[T], None] | None = None,
    ) -> None:
        self.operation = operation
        self.weight = weight
        self.deadline = deadline
        self.undo = undo
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None


class Queue:
    """Jobs that wait for a task of the store's event loop; callers add them on any thread.

    Args:
        loop: The store's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._arrived = asyncio.Event()
        self._signalled = False
        self.closed = False

    def put(self, job: Job[Any]) -> None:
        """Add a job.

        Raises:
            StoreClosedError: If the store is closed.
        """
        with self._lock:
            if self.closed:
                raise StoreClosedError("the store is closed; open it again")
            self._jobs.append(job)
            if self._signalled:
                return
            self._signalled = True
        self._loop.call_soon_threadsafe(self._arrived.set)

    def close(self) -> None:
        """Take no more jobs; those that are there are still done. To be called on the store's event loop."""
        with self._lock:
            self.closed = True
        self._arrived.set()

    async def take(self, limit: int, weight: int) -> list[Job[Any]]:
        """Wait for jobs and return as many as are there, within bounds; none once the queue is closed and empty."""
        while True:
            with self._lock:
                jobs: list[Job[Any]] = []
                total = 0
                while self._jobs and len(jobs) < limit and total < weight:
                    job = self._jobs.popleft()
                    if not job.future.cancelled():
                        jobs.append(job)
                        total += job.weight
                if jobs or (self.closed and not self._jobs):
                    return jobs
                self._signalled = False
                self._arrived.clear()
            await self._arrived.wait()


class Writer:
    """Runs operations in transactions, each of all that was asked for while the ones before were under way.

    A group is committed at once or not at all; an operation that fails takes nothing else with it. What a transaction
    did whose commit got no answer is looked up: PostgreSQL knows of every recent transaction whether it was committed.

    Args:
        settings: Where to connect to.
        queue: Where the jobs come from.
        announce: Called after a commit, with what has happened.
    """

    def __init__(self, settings: Settings, queue: Queue, announce: Callable[[Work], None]) -> None:
        self._settings = settings
        self._queue = queue
        self._announce = announce
        self._link = Link(settings)

    async def run(self) -> None:
        """Work until the queue is closed."""
        try:
            while jobs := await self._queue.take(_GROUP_LIMIT, _GROUP_WEIGHT):
                await self._do(jobs)
                answer(jobs)
        finally:
            await self._link.drop()

    async def _do(self, jobs: list[Job[Any]]) -> None:
        """Run a group, however often it takes, until each job has its result or its error."""
        loop = asyncio.get_running_loop()
        careful, backoff = False, Backoff()
        began = loop.time()
        while True:
            try:
                wire = await self._link.wire()
                while await self._transact(wire, jobs, careful):
                    # Very many leases had run out: the group's turn comes when all of them are done.
                    pass
                return
            except ConnectionLostError as error:
                await self._link.drop()
                if not (jobs := self._give_up(jobs, error, began)):
                    return
                await backoff.rest()
            except ServerError as error:
                await self._roll_back()
                if error.sqlstate == _UNIQUE_VIOLATION and not careful:
                    # A span that is stored already, or a key that somebody else has just used: look first.
                    careful = True
                elif error.sqlstate in _TRANSIENT or error.sqlstate == _UNIQUE_VIOLATION:
                    if not (jobs := self._give_up(jobs, self._settings.explain(error), began)):
                        return
                    await backoff.rest()
                elif len(jobs) > 1:
                    for job in jobs:
                        await self._do([job])
                    return
                else:
                    jobs[0].error = self._settings.explain(error)
                    return
            except Exception as error:
                # A mistake in this package: nobody must wait for ever.
                await self._link.drop()
                for job in jobs:
                    job.error = error
                return

    def _give_up(self, jobs: list[Job[Any]], error: Exception, began: float) -> list[Job[Any]]:
        """Fail those jobs whose time is over and return the others."""
        now = asyncio.get_running_loop().time()
        left: list[Job[Any]] = []
        for job in jobs:
            if job.deadline > now:
                left.append(job)
            elif isinstance(error, StoreUnavailableError):
                job.error = error
            else:
                job.error = self._settings.unreachable(error, now - began)
        return left

    async def _roll_back(self) -> None:
        try:
            wire = await self._link.wire()
            await wire.run([Statement("ROLLBACK")])
        except (ConnectionLostError, ServerError):
            await self._link.drop()

    async def _transact(self, wire: Wire, jobs: list[Job[Any]], careful: bool) -> bool:
        """Run a group in one transaction; true if only leases were expired, since there were so many."""
        needs = Needs()
        for job in jobs:
            job.operation.ask(needs)
        clock = self._settings.clock
        loader = await load(wire, needs, clock() if clock is not None else None, careful=careful)
        work = loader.work
        work.expire(loader.due)
        again = len(loader.due) >= EXPIRY_BATCH
        if not again:
            for job in jobs:
                _run(job, work)
        if work.is_idle:
            await wire.run([Statement("ROLLBACK")])
        else:
            try:
                await save(wire, work)
            except ConnectionLostError:
                pid = wire.pid
                await self._link.drop()
                if not await self._was_committed(loader.transaction, pid, jobs):
                    raise
        self._announce(work)
        return again

    async def _was_committed(self, transaction: str, pid: int, jobs: Iterable[Job[Any]]) -> bool:
        """Find out what became of a transaction whose commit got no answer."""
        deadline = max(job.deadline for job in jobs)
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while loop.time() < deadline:
            try:
                wire = await self._link.wire()
                [result] = await wire.run(
                    [Statement("SELECT pg_xact_status($1::xid8)", (word(transaction),))]
                )
                status = rows(result)[0][0]
                if status == b"in progress":
                    # Its process has not noticed yet that nobody listens any more.
                    await wire.run([Statement(_END, (number(pid), word(transaction)))])
                else:
                    return status == b"committed"
            except ConnectionLostError:
                await self._link.drop()
            except ServerError as error:
                _log.warning("what became of transaction %s cannot be told: %s", transaction, error)
                return False
            await backoff.rest()
        return False


_END = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE pid = $1::int4 AND backend_xid = ($2::xid8)::xid"
)


def _run(job: Job[Any], work: Work) -> None:
    job.error = None
    operation: Operation[Any] = job.operation
    try:
        job.result = operation.run(work)
    except LightningError as error:
        job.error = error


def answer(jobs: Iterable[Job[Any]]) -> None:
    """Hand the results to those who wait, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            # The loop was closed while its callers waited, so nobody is left to tell.
            for job in group:
                _undo(job)


def _resolve(jobs: Iterable[Job[Any]]) -> None:
    for job in jobs:
        if job.future.done():
            _undo(job)
        elif job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _undo(job: Job[Any]) -> None:
    if job.undo is not None and job.error is None:
        job.undo(job.result)
