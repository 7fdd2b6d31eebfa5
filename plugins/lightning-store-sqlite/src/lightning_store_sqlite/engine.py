"""What an open store runs on: the writer, connections for reading, and the watcher. It belongs to one process."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from lightning_core.errors import StoreUnavailableError
from lightning_core.store.waiting import Waiter, WaitingRoom

from . import reporting, schema
from .checkpoint import Checkpointer
from .readers import Due, Readers
from .watcher import Watcher
from .writer import Operation, Transaction, Writer

__all__ = ["Engine", "Settings", "discard", "remove_database", "temporary_path"]

T = TypeVar("T")


class Settings:
    """How to open the file.

    Attributes:
        path: The file.
        temporary: Whether to remove it in the end.
        synchronous: When SQLite waits for the disk.
        busy_timeout: How long to wait for another process's write, in seconds.
        poll_interval: How often to look for changes while somebody waits, in seconds.
        clock: Tells the time, in seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        temporary: bool,
        synchronous: schema.Synchronous,
        busy_timeout: float,
        poll_interval: float,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.temporary = temporary
        self.synchronous: schema.Synchronous = synchronous
        self.busy_timeout = busy_timeout
        self.poll_interval = poll_interval
        self.clock = clock

    def connect(self, busy_timeout: float | None = None) -> sqlite3.Connection:
        """Open a connection, which waits for locks as long as the setting says unless told otherwise."""
        if busy_timeout is None:
            busy_timeout = self.busy_timeout
        return schema.connect(self.path, synchronous=self.synchronous, busy_timeout=busy_timeout)


def temporary_path() -> Path:
    """Return where a temporary store may keep its file, in a directory of its own."""
    return Path(tempfile.mkdtemp(prefix="lightning-store-")) / "store.db"


class Engine:
    """Runs the store's reads and writes in the process that made it.

    Args:
        settings: How to open the file.

    Raises:
        StoreSchemaError: If a newer version wrote the file.
        StoreUnavailableError: If the file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.room = WaitingRoom()
        # The latest call of each request that is under way.
        self.requests: WeakValueDictionary[tuple[str | None, str | None], Any] = WeakValueDictionary()
        schema.prepare(settings.path, synchronous=settings.synchronous, busy_timeout=settings.busy_timeout)
        self._identity = self._identify()
        self._closed = False
        self._lock = threading.Lock()
        self._readers = Readers(
            connect=settings.connect,
            clock=settings.clock,
            require_file=self._require_file,
            translate=self._translate,
        )
        self._watcher: Watcher | None = None
        self._checkpointer = Checkpointer(settings.connect)
        self._writer = Writer(
            connect=settings.connect,
            clock=settings.clock,
            expire=reporting.expire,
            announce=self._announce,
            committed=self._checkpointer.note,
            translate=self._translate,
            require_file=self._require_file,
        )

    def _translate(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error) and self._identify() != self._identity:
            return self._lost()
        if isinstance(error, sqlite3.Error | UnicodeEncodeError | OverflowError):
            return schema.translate_error(error, self.settings.path)
        return error

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self.settings.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _require_file(self) -> None:
        """Refuse to go on with a file that has lost its name: nobody would find again what is written to it.

        Raises:
            StoreUnavailableError: If it was deleted, moved or replaced.
        """
        if self._identify() != self._identity:
            raise self._lost()

    def _lost(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.settings.path} was deleted, moved or replaced while in use: move it back, or open the store again"
        )

    def _announce(self, tx: Transaction) -> None:
        if tx.queued or tx.requests or tx.ended:
            self.room.announce(queued=tx.queued, requests=tx.requests, ended=tx.ended)

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation, and return its result once it is on disk."""
        return await self._writer.write(operation)

    def write_soon(self, operation: Operation[None]) -> None:
        """Run an operation after all that was asked for before, and do not wait for it."""
        self._writer.write_soon(operation)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query on a state in which nothing is due.

        Raises:
            StoreClosedError: If the store is closed.
            StoreUnavailableError: If the file cannot be read.
        """
        result = await self._readers.run(query, check=True)
        if isinstance(result, Due):
            await self._writer.write(_nothing)
            result = await self._readers.run(query, check=False)
        return cast("T", result)

    def enter(self, waiter: Waiter) -> None:
        """Begin to wait; ``room.leave`` ends it."""
        self.room.enter(waiter)
        if self._watcher is not None:
            return
        with self._lock:
            if self._watcher is None and not self._closed:
                self._watcher = Watcher(
                    connect=self.settings.connect,
                    require_file=self._require_file,
                    room=self.room,
                    clock=self.settings.clock,
                    expire=lambda: self._writer.write_soon(_nothing),
                    interval=self.settings.poll_interval,
                )

    def close(self) -> None:
        """Finish what was asked for, and close the file; waits for the end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            watcher = self._watcher
        if watcher is not None:
            watcher.close()
        self._readers.close()
        self._writer.close()
        self._checkpointer.close()
        self.room.wake_all()
        if self.settings.temporary:
            remove_database(self.settings.path)


def _nothing(transaction: object) -> None:
    """The writer expires what is due before every operation; this one is for that alone."""


def remove_database(path: Path) -> None:
    """Remove a temporary database and its directory."""
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        file.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        path.parent.rmdir()


# Engines of a parent process. Closing an inherited connection could undo the parent's locks, so they are kept.
_inherited: list[Engine] = []


def discard(engine: Engine) -> None:
    """Close an engine whose store is gone, in the process that made it."""
    if engine.pid == os.getpid():
        engine.close()
    else:
        _inherited.append(engine)
