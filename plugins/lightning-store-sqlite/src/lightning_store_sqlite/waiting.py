"""Waiting for work and for the end of rollouts, whichever process brings it about."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable

from lightning_core.errors import StoreUnavailableError

from . import queries

__all__ = ["Waiter", "WaitingRoom", "Watcher"]

_log = logging.getLogger(__name__)


class Waiter:
    """A coroutine, on any event loop, that waits for something in the store.

    Attributes:
        pending: The rollouts whose end it still waits for.
        allowed: How many of them need not end.
    """

    __slots__ = ("_event", "_loop", "allowed", "pending")

    def __init__(self, pending: Iterable[str] = (), allowed: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.pending = set(pending)
        self.allowed = allowed

    def wake(self) -> None:
        """Wake the coroutine; may be called on any thread."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            # Its loop was closed while it waited, so nobody is left to wake.
            return

    async def wait(self, seconds: float | None) -> None:
        """Wait to be woken, at most so long, and be ready to wait again."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()


class WaitingRoom:
    """Who waits for what.

    Attributes:
        occupied: Set while anybody waits.
    """

    def __init__(self) -> None:
        self.occupied = threading.Event()
        self._lock = threading.Lock()
        self._for_work: set[Waiter] = set()
        self._for_end: dict[str, set[Waiter]] = {}

    def enter(self, waiter: Waiter) -> None:
        """Wait for the ends of the waiter's rollouts, or for work if it has none."""
        with self._lock:
            if waiter.pending:
                for rollout_id in waiter.pending:
                    self._for_end.setdefault(rollout_id, set()).add(waiter)
            else:
                self._for_work.add(waiter)
            self.occupied.set()

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        with self._lock:
            self._for_work.discard(waiter)
            for rollout_id in waiter.pending:
                self._forget(rollout_id, waiter)
            if not self._for_work and not self._for_end:
                self.occupied.clear()

    def pending(self, waiter: Waiter) -> list[str]:
        """Return the rollouts whose end the waiter still waits for."""
        with self._lock:
            return list(waiter.pending)

    def narrow(self, waiter: Waiter, pending: set[str]) -> bool:
        """Wait only for these: the others were seen to have ended, perhaps before anybody could announce it.

        Returns:
            Whether to wait on. What was announced since these were looked up counts as well: each of the two
            may have missed what the other has seen, and nobody wakes a waiter for what it was told here.
        """
        with self._lock:
            for rollout_id in waiter.pending - pending:
                self._forget(rollout_id, waiter)
            waiter.pending &= pending
            return len(waiter.pending) > waiter.allowed

    def _forget(self, rollout_id: str, waiter: Waiter) -> None:
        waiters = self._for_end.get(rollout_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._for_end[rollout_id]

    def announce(self, queued: bool, ended: Iterable[str]) -> None:
        """Wake those who wait for work if some was queued, and those for whom enough rollouts have ended."""
        with self._lock:
            awake = list(self._for_work) if queued else []
            for rollout_id in ended:
                for waiter in self._for_end.pop(rollout_id, ()):
                    waiter.pending.discard(rollout_id)
                    if len(waiter.pending) <= waiter.allowed:
                        awake.append(waiter)
        for waiter in awake:
            waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody, for the store is closing."""
        with self._lock:
            waiters = self._for_work.union(*self._for_end.values())
        for waiter in waiters:
            waiter.wake()


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
            self._room.announce(bool(queued), [rollout_id for rollout_id, _ in ended])
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
