"""Waiting for work and for the end of rollouts, in a store whose data somebody else may change as well.

A store object has one :class:`WaitingRoom`, to which it announces what it has committed, and what it notices of others'
commits. Its ``dequeue_rollouts`` and ``wait_for_rollouts`` are :func:`wait_for_work` and :func:`wait_for_ends`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeAlias, TypeVar

__all__ = ["Enter", "Request", "Waiter", "WaitingRoom", "wait_for_ends", "wait_for_work"]

T = TypeVar("T")

Request: TypeAlias = tuple[str, str]
"""A worker, and what tells a repeatable dequeue of it from the others."""


class Waiter:
    """A coroutine, on any event loop, that waits for something in the store.

    Args:
        pending: The rollouts whose end it waits for; none if it waits for work.
        allowed: How many of them need not end.
        run_id: The run whose work it wants; ``None`` for any.
        request: Which request it is, if its dequeue may be repeated.
    """

    __slots__ = ("_event", "_loop", "allowed", "pending", "request", "run_id")

    def __init__(
        self,
        pending: Iterable[str] = (),
        allowed: int = 0,
        *,
        run_id: str | None = None,
        request: Request | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.pending = set(pending)
        self.allowed = allowed
        self.run_id = run_id
        self.request = request

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


Enter: TypeAlias = Callable[[Waiter], object]
"""Calls ``WaitingRoom.enter``, and does what else a store does for those who wait."""


class WaitingRoom:
    """Who waits for what. Its methods may be called on any thread.

    Of those who wait for work, as many are woken as there is new work, the longest waiting first. Whoever is woken is
    no longer in the room, and comes back to it before looking. If it is there when something is announced, it may
    have looked already and must be woken again; and if it takes something else, or gives up, before it looks again, the
    announcement goes to another.

    Attributes:
        occupied: Set while anybody waits.
    """

    def __init__(self) -> None:
        self.occupied = threading.Event()
        # A waiter may be made to leave by the garbage collector, in the middle of anything.
        self._lock = threading.RLock()
        self._for_work: dict[Waiter, None] = {}
        self._woken: set[Waiter] = set()
        self._for_end: dict[str, set[Waiter]] = {}

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
                self._woken.discard(waiter)
                self._for_work.setdefault(waiter)
            if not self.occupied.is_set():
                self.occupied.set()

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        with self._lock:
            self._for_work.pop(waiter, None)
            for rollout_id in waiter.pending:
                self._forget(rollout_id, waiter)
            was_woken = waiter in self._woken
            self._woken.discard(waiter)
            if not self._for_work and not self._for_end:
                self.occupied.clear()
        if was_woken:
            self.announce(queued=(waiter.run_id,))

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

    def announce(
        self,
        *,
        queued: Collection[str | None] = (),
        requests: Collection[Request] = (),
        ended: Iterable[str] = (),
    ) -> None:
        """Wake those whom something concerns that has been committed.

        Args:
            queued: The runs of rollouts that were queued.
            requests: The repeatable dequeues that took something: who waits with the same one gets the same.
            ended: Rollouts that ended. Those are woken for whom enough have.
        """
        with self._lock:
            awake = self._choose_workers(queued, requests) if queued or requests else []
            for waiter in awake:
                del self._for_work[waiter]
                self._woken.add(waiter)
            for rollout_id in ended:
                for waiter in self._for_end.pop(rollout_id, ()):
                    waiter.pending.discard(rollout_id)
                    if len(waiter.pending) <= waiter.allowed:
                        awake.append(waiter)
        for waiter in awake:
            waiter.wake()

    def _choose_workers(self, queued: Collection[str | None], requests: Collection[Request]) -> list[Waiter]:
        chosen: list[Waiter] = []
        left = len(queued)
        left_of_run = Counter(queued)
        asked: set[Request] = set()
        for waiter in self._for_work:
            request, run_id = waiter.request, waiter.run_id
            if request is None or request not in requests:
                if request in asked:
                    # It is to get what the other one takes, and is woken for that.
                    continue
                if (left if run_id is None else left_of_run[run_id]) <= 0:
                    continue
                if run_id is None:
                    left -= 1
                else:
                    left_of_run[run_id] -= 1
            chosen.append(waiter)
            if request is not None:
                asked.add(request)
        return chosen

    def wake_workers(self) -> None:
        """Wake all who wait for work: there is some, and nobody knows how much."""
        with self._lock:
            waiters = list(self._for_work)
        for waiter in waiters:
            waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody: they look for themselves."""
        with self._lock:
            waiters = {*self._for_work, *self._woken}.union(*self._for_end.values())
        for waiter in waiters:
            waiter.wake()


async def wait_for_work(
    take: Callable[[], Awaitable[list[T]]],
    wait: float,
    room: WaitingRoom,
    enter: Enter,
    *,
    run_id: str | None = None,
    request: Request | None = None,
) -> list[T]:
    """Take what there is; while that is nothing, wait for work.

    Args:
        take: Takes what there is. When it is cancelled, what it has taken must go back to the queue, and be announced.
        wait: How long to wait, in seconds.
        room: The store's waiting room.
        enter: Enters it.
        run_id: The run whose work is taken; ``None`` for any.
        request: Which request this is, if it may be repeated.
    """
    give_up = time.monotonic() + wait
    taken = await take()
    if taken or wait <= 0:
        return taken
    waiter = Waiter(run_id=run_id, request=request)
    try:
        while True:
            enter(waiter)
            # Looking again after the registration: work may have come in between.
            taken = await take()
            left = give_up - time.monotonic()
            if taken or left <= 0:
                return taken
            await waiter.wait(left)
    except (asyncio.CancelledError, GeneratorExit):
        # It may have been woken for something that another must take now.
        room.announce(queued=(run_id,))
        raise
    finally:
        room.leave(waiter)


async def wait_for_ends(
    find_unfinished: Callable[[list[str]], Awaitable[set[str]]],
    pending: Iterable[str],
    room: WaitingRoom,
    enter: Enter,
    *,
    allowed: int = 0,
    give_up: float | None = None,
) -> None:
    """Wait until enough of these rollouts have ended.

    Args:
        find_unfinished: Returns which of these rollouts have not ended; one that is gone counts as ended.
        pending: The rollouts, of which more than ``allowed`` have not ended.
        room: The store's waiting room.
        enter: Enters it.
        allowed: How many of them need not end.
        give_up: When to wait no longer, by ``time.monotonic()``; ``None`` for never.
    """
    waiter = Waiter(pending, allowed)
    try:
        enter(waiter)
        while True:
            # Looking again after the registration: some may have ended in between.
            waits = room.narrow(waiter, await find_unfinished(room.pending(waiter)))
            left = None if give_up is None else give_up - time.monotonic()
            if not waits or (left is not None and left <= 0):
                return
            await waiter.wait(left)
    finally:
        room.leave(waiter)
