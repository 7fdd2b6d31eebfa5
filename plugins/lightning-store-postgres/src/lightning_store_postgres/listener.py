"""Learning from the server what other processes do, and telling them what this one does."""
# ruff: noqa: S608 - the pieces of the statements are constants of this package

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import sql

from lightning_core.store.waiting import WaitingRoom

from .link import Backoff, Link
from .loading import NOW
from .settings import ConnectionLostError, ServerError, Settings
from .text import number, quote, texts, unquote
from .wire import Statement, Wire, rows
from .work import Work

__all__ = ["Listener", "Notifier"]

_log = logging.getLogger(__name__)

# PostgreSQL takes payloads of up to 7,999 bytes.
_PAYLOAD = 7_000

_NOTIFY = Statement(
    "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) u (channel, payload)"
)
_NEXT = f"SELECT check_at - {NOW} FROM attempts WHERE check_at IS NOT NULL ORDER BY check_at LIMIT 1"
_IS_QUEUED = "SELECT EXISTS (SELECT 1 FROM rollouts WHERE queue_no IS NOT NULL)"
# What is gone is waited for no longer, as what has ended.
_ENDED = (
    "SELECT id FROM unnest($1::text[]) u (id) "
    "WHERE NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.id = u.id AND r.end_time IS NULL)"
)


def channels(settings: Settings) -> tuple[str, str]:
    """Return the names of the channels that tell of work and of ends."""
    return f"{settings.schema}_work", f"{settings.schema}_end"


class Notifier:
    """Tells the store objects of other processes what was committed here.

    It does so after the commit and not as part of it: commits that notify wait for each other. Should the process die
    in between, those who wait find out by looking.

    Args:
        settings: The store's settings.
        read: Runs a statement.
    """

    def __init__(self, settings: Settings, read: Callable[[Statement], Awaitable[Any]]) -> None:
        self._work_channel, self._end_channel = channels(settings)
        self._read = read
        # By this a store object knows its own notifications.
        self.token = secrets.token_hex(8)
        self._queued = False
        self._ended: list[str] = []
        self._something = asyncio.Event()

    def tell(self, work: Work) -> None:
        """Have a transaction's events told; to be called on the store's event loop."""
        if work.queued_runs or work.ended:
            self._queued |= bool(work.queued_runs)
            self._ended += work.ended
            self._something.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            queued, self._queued = self._queued, False
            ended, self._ended = self._ended, []
            payloads: list[tuple[str, str]] = [(self._work_channel, f"{self.token} ")] if queued else []
            payloads += ((self._end_channel, text) for text in self._packed(ended))
            statement = _NOTIFY._replace(
                parameters=(
                    texts([channel.encode() for channel, _ in payloads]),
                    texts([payload.encode() for _, payload in payloads]),
                )
            )
            try:
                await self._read(statement)
            except Exception as error:
                # Those who wait look from time to time.
                _log.debug("a notification was not sent: %s", error)

    def _packed(self, ended: list[str]) -> list[str]:
        payloads: list[str] = []
        part, size = [self.token], 0
        for rollout_id in map(quote, ended):
            if size + len(rollout_id) > _PAYLOAD:
                payloads.append(" ".join(part))
                part, size = [self.token], 0
            part.append(rollout_id)
            size += len(rollout_id) + 1
        if size:
            payloads.append(" ".join(part))
        return payloads


class Listener:
    """Notices what other processes do, and leases that run out, while somebody waits.

    Args:
        settings: Where to connect to.
        room: Who waits.
        token: What this store's own notifications begin with.
        expire: Ends the attempts that are due.
    """

    def __init__(
        self, settings: Settings, room: WaitingRoom, token: str, expire: Callable[[], Awaitable[Any]]
    ) -> None:
        self._settings = settings
        self._room = room
        self._token = token
        self._expire = expire
        self._link = Link(settings)
        self._hurry = asyncio.Event()
        self._first_due: float | None = None
        self._look_at = 0.0

    def hurry(self) -> None:
        """Look at once, for somebody has begun to wait; to be called on the store's event loop."""
        self._look_at = 0.0
        self._hurry.set()

    def expect(self, seconds: float) -> None:
        """An attempt is due in so many seconds; to be called on the store's event loop."""
        due = asyncio.get_running_loop().time() + seconds
        if self._first_due is None or due < self._first_due:
            self._first_due = due
            self._hurry.set()

    async def run(self) -> None:
        """Work until cancelled."""
        backoff, warned, wire = Backoff(), False, None
        try:
            while True:
                try:
                    if wire is None:
                        wire = await self._listen()
                        # Nobody told what happened until now: those who wait look for themselves.
                        self._room.wake_all()
                        backoff, warned = Backoff(), False
                    await self._turn(wire)
                except (ConnectionLostError, ServerError) as error:
                    wire = None
                    await self._link.drop()
                    if not warned:
                        _log.warning("waiting for changes fails, and is tried again: %s", error)
                        warned = True
                    await backoff.rest()
        finally:
            await self._link.drop()

    async def _listen(self) -> Wire:
        wire = await self._link.wire()
        for channel in channels(self._settings):
            await wire.run([Statement(sql.SQL("LISTEN {}").format(sql.Identifier(channel)).as_string(None))])
        return wire

    async def _turn(self, wire: Wire) -> None:
        """Wait for something to happen, and pass it on."""
        loop = asyncio.get_running_loop()
        # Notifications are read also while nobody waits: the server keeps those that are not.
        seconds = self._settings.poll_interval
        if self._room.occupied.is_set():
            wanted = min(self._look_at, self._first_due) if self._first_due is not None else self._look_at
            seconds = min(seconds, wanted - loop.time())
        for channel, payload in await wire.notifications(max(seconds, 0.0), self._hurry):
            token, *ended = payload.split(" ")
            if token != self._token:
                ended = [unquote(rollout_id) for rollout_id in ended if rollout_id]
                self._room.announce(ended=ended)
                if channel == channels(self._settings)[0]:
                    self._room.wake_workers()
        self._hurry.clear()
        now = loop.time()
        is_due = self._first_due is not None and self._first_due <= now
        if self._room.occupied.is_set() and (is_due or self._look_at <= now):
            await self._look(wire)

    async def _look(self, wire: Wire) -> None:
        clock = self._settings.clock
        loop = asyncio.get_running_loop()
        awaited = self._room.awaited()
        next_, queued, ended = await wire.run(
            [
                Statement(_NEXT, (number(clock() if clock is not None else None),)),
                Statement(_IS_QUEUED),
                Statement(_ENDED, (texts(awaited),)),
            ]
        )
        self._look_at = loop.time() + self._settings.poll_interval
        self._first_due = None
        found = rows(next_)
        if found and found[0][0] is not None:
            left = float(found[0][0])
            if left <= 0:
                await self._expire()
                # There may be more, and some that others hold.
                left = 0.01
            # The time of an injected clock passes when it likes.
            if clock is None:
                self._first_due = loop.time() + left
        gone = [unquote(row[0].decode()) for row in rows(ended) if row[0] is not None]
        self._room.announce(ended=gone)
        if rows(queued)[0][0] == b"t":
            self._room.wake_workers()
