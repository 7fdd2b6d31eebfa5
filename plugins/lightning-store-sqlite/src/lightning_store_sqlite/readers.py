"""Reading: threads and connections of its own, each query on one snapshot."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from lightning_core.errors import StoreClosedError

from . import queries

__all__ = ["Due", "Readers"]

T = TypeVar("T")

# Reads are short; more threads would only wait for each other.
_THREADS = 2


class Due(NamedTuple):
    """What a query returns that was not run, since some attempt must be looked at first."""


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

    def run(self, query: Callable[[sqlite3.Connection], T], *, check: bool) -> asyncio.Future[T | Due]:
        """Run a query; with ``check``, only if no attempt must be looked at first.

        Raises:
            StoreClosedError: If the store is closed.
        """
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, self._query, query, check)
        except RuntimeError as error:
            # An executor says no more than this when it was shut down.
            raise StoreClosedError("the store is closed; open it again") from error

    def _query(self, query: Callable[[sqlite3.Connection], T], check: bool) -> T | Due:
        self._require_file()
        try:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            connection = connection or self._connect()
            try:
                # One snapshot for both, which also costs less than two.
                connection.execute("BEGIN")
                due = queries.next_check(connection) if check else None
                result = Due() if due is not None and due <= self._clock() else query(connection)
                connection.execute("COMMIT")
            except BaseException:
                # Whatever state it is in, the next one is new.
                connection.close()
                raise
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise self._translate(error) from error
        with self._lock:
            self._idle.append(connection)
        return result

    def close(self) -> None:
        """Finish what was asked for, then close the connections; waits for the end."""
        self._threads.shutdown()
        for connection in self._idle:
            connection.close()
