"""Noticing what other processes do, and leases that run out, while somebody waits."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

from lightning_core.errors import StoreUnavailableError
from lightning_core.store.waiting import WaitingRoom

from . import queries

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)


class Watcher:
    """Notices what other processes do, and leases that run out, while somebody waits.

    SQLite tells nobody of changes, but a connection learns cheaply whether there were any.

    Args:
        connect: Opens a connection.
        require_file: Raises if the file has lost its name.
        room: Who waits.
        clock: Tells the time, in seconds since the epoch.
        expire: Called when a live attempt must be looked at.
        interval: Time between two looks, in seconds.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], sqlite3.Connection],
        require_file: Callable[[], None],
        room: WaitingRoom,
        clock: Callable[[], float],
        expire: Callable[[], None],
        interval: float,
    ) -> None:
        self._connect = connect
        self._require_file = require_file
        self._room = room
        self._clock = clock
        self._expire = expire
        self._interval = interval
        self._stopped = threading.Event()
        self._version: int | None = None
        self._next_check: float | None = None
        self._seen_end = 0
        self._thread = threading.Thread(target=self._run, name="lightning-sqlite-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self._stopped.set()
        self._room.occupied.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        failed = False
        try:
            while True:
                self._room.occupied.wait()
                if self._stopped.wait(self._interval):
                    return
                try:
                    self._require_file()
                    if connection is None:
                        connection = self._connect()
                        self._seen_end = _greatest_end(connection)
                        # Those who came before this line may have missed an end: they look again.
                        self._room.wake_all()
                    self._look(connection)
                    failed = False
                except (sqlite3.Error, StoreUnavailableError) as error:
                    if not failed:
                        _log.warning("watching the store for changes fails, and is tried again: %s", error)
                        # They look for themselves, and meet the error.
                        self._room.wake_all()
                    failed = True
        finally:
            if connection is not None:
                connection.close()

    def _look(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            self._next_check = queries.next_check(connection)
            queued = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM rollouts WHERE queue_no IS NOT NULL)"
            ).fetchone()[0]
            vacuumed = _greatest_deleted_end(connection)
            ended = connection.execute(
                "SELECT id, end_no FROM rollouts WHERE end_no > ? ORDER BY end_no", (self._seen_end,)
            ).fetchall()
            if ended:
                self._seen_end = ended[-1][1]
            if queued:
                self._room.wake_workers()
            self._room.announce(ended=[rollout_id for rollout_id, _ in ended])
            if vacuumed > self._seen_end:
                # Some that ended may be gone already: everybody looks for himself.
                self._seen_end = vacuumed
                self._room.wake_all()
        if self._next_check is not None and self._next_check <= self._clock():
            self._expire()


def _greatest_end(connection: sqlite3.Connection) -> int:
    row = connection.execute(
        "SELECT end_no FROM rollouts WHERE end_no IS NOT NULL ORDER BY end_no DESC LIMIT 1"
    ).fetchone()
    return max(row[0] if row is not None else 0, _greatest_deleted_end(connection))


def _greatest_deleted_end(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT n FROM counts WHERE scope = 'numbers' AND what = 'end'").fetchone()
    return row[0] if row is not None else 0
