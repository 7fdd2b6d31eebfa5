"""Moving what was committed from the write-ahead log into the file, beside the writer and not in its way."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

__all__ = ["BACKSTOP_PAGES", "Checkpointer"]

_log = logging.getLogger(__name__)

# How much is written, about, between two checkpoints: the more, the fewer pages are copied twice.
_BYTES = 8 << 20
# Where the writer itself makes a checkpoint, in pages of the log: when the thread cannot keep up.
BACKSTOP_PAGES = 16_000
# How long the log's readers may hold up its restart, in seconds; then it is tried again next time.
_PATIENCE = 0.1


class Checkpointer:
    """Makes checkpoints on a thread of its own, which begins with the first one.

    Without it, the writer would make one every thousand pages, and all who wait for a commit would wait for it.

    Args:
        connect: Opens a connection, given how long to wait for locks, in seconds.
    """

    def __init__(self, connect: Callable[[float], sqlite3.Connection]) -> None:
        self._connect = connect
        self._written = 0
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def note(self, size: int) -> None:
        """The writer has committed about so many bytes."""
        self._written += size
        if self._written < _BYTES:
            return
        self._written = 0
        self._wanted.set()
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(
                target=self._run, name="lightning-sqlite-checkpointer", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self._stopped = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while True:
                self._wanted.wait()
                if self._stopped:
                    return
                self._wanted.clear()
                try:
                    connection = connection or self._connect(_PATIENCE)
                    # Most of the work is done while the writer goes on. The rest, which is little, holds it up for a
                    # moment, after which it starts the log from its beginning.
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                    connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
                except sqlite3.Error as error:
                    # Nothing is lost: the log keeps it, and the writer meets the same trouble and reports it.
                    _log.info("a checkpoint has failed, and is made later: %s", error)
        finally:
            if connection is not None:
                connection.close()
