"""Writing: what many callers ask for at once goes into one transaction."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from lightning_core.errors import LightningError, StoreClosedError, StoreUnavailableError

from .link import Backoff, Link
from .loading import EXPIRY_BATCH, load
from .rows import integer
from .saving import save
from .settings import ConnectionLostError, ServerError, Settings
from .text import Parameter, word
from .wire import Statement, Wire, rows
from .work import Needs, Operation, Work

__all__ = ["Job", "Queue", "Writer", "answer"]

T = TypeVar("T")

# Bound how long the first operation of a group waits for the last one.
_GROUP_LIMIT = 256
_GROUP_WEIGHT = 8_000_000

_UNIQUE_VIOLATION = "23505"
# Serialization failure, deadlock, a lock that was not to be had, and a key that somebody else has used again.
_TRANSIENT = frozenset({"40001", "40P01", "55P03", _UNIQUE_VIOLATION})


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

    A group is committed at once or not at all; an operation that fails takes nothing else with it. Each transaction
    leaves the writer's mark, so that one whose commit got no answer can be told from one that was not committed.
    (PostgreSQL's own number of the transaction would not do: after a crash the server may draw it again.)

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
        self._id = secrets.token_hex(8)
        self._transaction = 0

    async def run(self) -> None:
        """Work until the queue is closed."""
        try:
            while jobs := await self._queue.take(_GROUP_LIMIT, _GROUP_WEIGHT):
                try:
                    await self._do(jobs)
                except Exception as error:
                    # A mistake in this package: nobody must wait for ever.
                    await self._link.drop()
                    for job in jobs:
                        job.error = error
                answer(jobs)
            await self._leave()
        finally:
            await self._link.drop()

    async def _leave(self) -> None:
        """Remove the writer's mark, along with those of writers that could not."""
        if self._transaction:
            try:
                wire = await self._link.wire()
                await wire.run([Statement(_LEAVE, (word(self._id),))])
            except (ConnectionLostError, ServerError):
                # Another will, in a week.
                return

    async def _do(self, jobs: list[Job[Any]]) -> None:
        """Run a group, however often it takes, until each job has its result or its error."""
        careful, backoff = False, Backoff()
        began = asyncio.get_running_loop().time()
        while jobs:
            problem: Exception
            try:
                wire = await self._link.wire()
                while await self._transact(wire, jobs, careful):
                    # Very many leases had run out: the group's turn comes when all of them are done.
                    pass
                return
            except ConnectionLostError as error:
                await self._link.drop()
                problem = error
            except ServerError as error:
                await self._roll_back()
                if error.sqlstate == _UNIQUE_VIOLATION and not careful:
                    # A span that is stored already, or a key that somebody else has just used: look first.
                    careful = True
                    continue
                if error.sqlstate not in _TRANSIENT:
                    await self._single_out(jobs, error)
                    return
                problem = self._settings.explain(error)
            jobs = self._give_up(jobs, problem, began)
            await backoff.rest()

    async def _single_out(self, jobs: list[Job[Any]], error: ServerError) -> None:
        """The server has refused something for good: find out whose it is."""
        if len(jobs) == 1:
            jobs[0].error = self._settings.explain(error)
            return
        for job in jobs:
            await self._do([job])

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
            self._transaction += 1
            try:
                await save(wire, work, self._id, self._transaction)
            except ConnectionLostError:
                await self._link.drop()
                if not await self._was_committed(wire.backend, jobs):
                    raise
        self._announce(work)
        return again

    async def _was_committed(self, backend: tuple[Parameter, Parameter], jobs: Iterable[Job[Any]]) -> bool:
        """Find out what became of the last transaction, whose commit got no answer."""
        deadline = max(job.deadline for job in jobs)
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while loop.time() < deadline:
            try:
                wire = await self._link.wire()
                [ended] = await wire.run([Statement(_END, backend)])
                if not rows(ended):
                    # The process that served the transaction is gone, and with it all doubt.
                    [found] = await wire.run([Statement(_MARK, (word(self._id),))])
                    return any(integer(row[0]) == self._transaction for row in rows(found))
            except (ConnectionLostError, ServerError):
                await self._link.drop()
            await backoff.rest()
        return False


# It may not have noticed yet that nobody listens any more, and would go on to hold its locks.
_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid = $1::int4 AND backend_start = $2::timestamptz"
)
_MARK = "SELECT transaction FROM writers WHERE id = $1::text"
_LEAVE = "DELETE FROM writers WHERE id = $1::text OR time < now() - interval '7 days'"


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
