"""Waiting for work and for the end of rollouts, whichever process brings it about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

__all__ = ["Waiter", "WaitingRoom"]


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
    """Who waits for what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._for_work: set[Waiter] = set()
        self._for_end: dict[str, set[Waiter]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._for_work and not self._for_end

    @property
    def has_workers(self) -> bool:
        """Whether somebody waits for work."""
        return bool(self._for_work)

    def awaited(self) -> list[str]:
        """Return the rollouts whose end somebody waits for."""
        with self._lock:
            return list(self._for_end)

    def enter(self, waiter: Waiter) -> None:
        """Wait for the ends of the waiter's rollouts, or for work if it has none."""
        with self._lock:
            if waiter.pending:
                for rollout_id in waiter.pending:
                    self._for_end.setdefault(rollout_id, set()).add(waiter)
            else:
                self._for_work.add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        with self._lock:
            self._for_work.discard(waiter)
            for rollout_id in waiter.pending:
                self._forget(rollout_id, waiter)

    def pending(self, waiter: Waiter) -> list[str]:
        """Return the rollouts whose end the waiter still waits for."""
        with self._lock:
            return list(waiter.pending)

    def narrow(self, waiter: Waiter, pending: set[str]) -> None:
        """Wait only for these: the others were seen to have ended, perhaps before anybody could announce it."""
        with self._lock:
            for rollout_id in waiter.pending - pending:
                self._forget(rollout_id, waiter)
            waiter.pending &= pending

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
        """Wake everybody: they look for themselves."""
        with self._lock:
            waiters = self._for_work.union(*self._for_end.values())
        for waiter in waiters:
            waiter.wake()
