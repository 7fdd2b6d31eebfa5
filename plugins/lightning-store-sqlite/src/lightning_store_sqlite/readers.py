"""Reading: threads and connections of its own, queries that are asked for at once on one snapshot."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from lightning_core.errors import LightningError, StoreClosedError

from . import queries

__all__ = ["Due", "Readers"]

T = TypeVar("T")

# Reads are short; more threads would only wait for each other.
_THREADS = 2
# The most queries of one trip to a thread, which costs as much as a few of them.
_TOGETHER = 32


class Due(NamedTuple):
    """What a query returns that was not run, since some attempt must be looked at first."""


class _Read(NamedTuple):
    """A query, whether it needs a state in which nothing is due, and who waits for it."""

    query: Callable[[sqlite3.Connection], Any]
    check: bool
    future: asyncio.Future[Any]


_Answer = tuple[asyncio.Future[Any], Any, Exception | None]


class Readers:
    """Runs queries.

    Args:
        connect: Opens a connection.
        clock: Tells the time, in seconds since the epoch.
        require_file: Raises if the file has lost its name.
        translate: Turns an error of SQLite into one of the store's.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], sqlite3.Connection],
        clock: Callable[[], float],
        require_file: Callable[[], None],
        translate: Callable[[Exception], Exception],
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._require_file = require_file
        self._translate = translate
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lightning-sqlite-reader")
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._asked: dict[asyncio.AbstractEventLoop, list[_Read]] = {}

    async def run(self, query: Callable[[sqlite3.Connection], T], *, check: bool) -> T | Due:
        """Run a query; with ``check``, only if no attempt must be looked at first.

        Raises:
            StoreClosedError: If the store is closed.
        """
        loop = asyncio.get_running_loop()
        read = _Read(query, check, loop.create_future())
        asked = self._asked.get(loop)
        if asked is None:
            self._asked[loop] = [read]
            loop.call_soon(self._send, loop)
        else:
            asked.append(read)
        return await cast("asyncio.Future[T | Due]", read.future)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over what a pass of the event loop has asked for."""
        asked = self._asked.pop(loop)
        for first in range(0, len(asked), _TOGETHER):
            reads = asked[first : first + _TOGETHER]
            try:
                self._threads.submit(self._answer, loop, reads)
            except RuntimeError:
                # An executor says no more than this when it was shut down.
                closed = StoreClosedError("the store is closed; open it again")
                _resolve([(read.future, None, closed) for read in reads])

    def _answer(self, loop: asyncio.AbstractEventLoop, reads: list[_Read]) -> None:
        reads = [read for read in reads if not read.future.cancelled()]
        try:
            answers = self._query(reads)
        except Exception:
            # One of them must not fail the others.
            answers = [answer for read in reads for answer in self._query_alone(read)]
        # The loop may have been closed while its callers waited; nobody is left to tell then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, answers)

    def _query_alone(self, read: _Read) -> list[_Answer]:
        try:
            return self._query([read])
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            return [(read.future, None, self._translate(error))]
        except Exception as error:
            return [(read.future, None, error)]

    def _query(self, reads: Sequence[_Read]) -> list[_Answer]:
        """Run queries on one snapshot, which costs less than one for each."""
        self._require_file()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            connection.execute("BEGIN")
            check = any(read.check for read in reads)
            due = queries.next_check(connection) if check else None
            late = due is not None and due <= self._clock()
            answers = [
                (read.future, Due(), None) if late and read.check else _run(read, connection)
                for read in reads
            ]
            connection.execute("COMMIT")
        except BaseException:
            # Whatever state it is in, the next one is new.
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)
        return answers

    def close(self) -> None:
        """Finish what was asked for, then close the connections; waits for the end."""
        self._threads.shutdown()
        for connection in self._idle:
            connection.close()


def _run(read: _Read, connection: sqlite3.Connection) -> _Answer:
    try:
        return read.future, read.query(connection), None
    except LightningError as error:
        # Such as an unknown rollout: the connection is none the worse for it.
        return read.future, None, error


def _resolve(answers: list[_Answer]) -> None:
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
