"""Who waits for something in a memory store, and how each is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Request", "Waiter", "WaitingRoom"]

Request: TypeAlias = tuple[str | None, str | None]
"""The worker that dequeues, and how the ids of the attempts begin by which it would know them again."""


class Waiter:
    """A coroutine, on any event loop, that waits for something in the store.

    Args:
        pending: The rollouts whose end it waits for.
        allowed: How many of them need not end.
    """

    __slots__ = ("_future", "_loop", "allowed", "pending", "request")

    def __init__(self, pending: set[str] | None = None, allowed: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self.pending: set[str] = pending if pending is not None else set()
        self.allowed = allowed
        self.request: Request = (None, None)

    @property
    def done(self) -> bool:
        """Whether enough rollouts have ended."""
        return len(self.pending) <= self.allowed

    def wake(self) -> None:
        """Wake it; may be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._finish)
        except RuntimeError:
            # Its loop was closed while it waited, so nobody is left to wake.
            return

    def _finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """Wait to be woken, at most so long; whether it was."""
        done, _ = await asyncio.wait([self._future], timeout=seconds)
        if done:
            # Ready to wait again.
            self._future = self._loop.create_future()
        return bool(done)


class WaitingRoom:
    """Everybody who waits, for work or for rollouts to end. Methods are called with the store's lock held.

    Args:
        has_work: Says whether there is work, of this run if one is given.
    """

    def __init__(self, has_work: Callable[[str | None], bool]) -> None:
        self._has_work = has_work
        # Who waits for work, in order, and of which run.
        self._for_work: dict[Waiter, str | None] = {}
        # Of those, the ones that say which request of which worker they are.
        self._requests: dict[Request, list[Waiter]] = {}
        self._for_ends: dict[Waiter, None] = {}
        self._by_rollout: dict[str, list[Waiter]] = {}

    def wait_for_work(self, waiter: Waiter, run_id: str | None, request: Request) -> None:
        """Have somebody woken when there is work."""
        self._for_work[waiter] = run_id
        waiter.request = request
        if request[1] is not None:
            self._requests.setdefault(request, []).append(waiter)

    def leave_work(self, waiter: Waiter) -> bool:
        """Forget somebody who waited for work; whether nobody had woken it."""
        if waiter.request[1] is not None:
            waiters = self._requests[waiter.request]
            waiters.remove(waiter)
            if not waiters:
                del self._requests[waiter.request]
        return self._for_work.pop(waiter, waiter) is not waiter

    def wake_workers(self, number: int) -> None:
        """Wake as many waiting workers as there is new work; those of a run wake only for their run."""
        if not self._for_work:
            return
        for waiter, run_id in list(self._for_work.items()):
            if number <= 0:
                return
            if self._has_work(run_id):
                del self._for_work[waiter]
                waiter.wake()
                number -= 1

    def wake_request(self, request: Request) -> None:
        """A dequeue with this request has taken work: whoever asks the same meanwhile gets the same."""
        for waiter in self._requests.get(request, ()):
            self._for_work.pop(waiter, None)
            waiter.wake()

    def wait_for_ends(self, waiter: Waiter) -> None:
        """Have somebody woken when enough of what it waits for has ended."""
        self._for_ends[waiter] = None
        for name in waiter.pending:
            self._by_rollout.setdefault(name, []).append(waiter)

    def leave_ends(self, waiter: Waiter) -> None:
        """Forget somebody who waited for rollouts to end."""
        self._for_ends.pop(waiter, None)
        for name in waiter.pending:
            waiters = self._by_rollout.get(name)
            if waiters is not None:
                waiters.remove(waiter)
                if not waiters:
                    del self._by_rollout[name]

    def ended(self, name: str) -> None:
        """A rollout has ended."""
        for waiter in self._by_rollout.pop(name, ()):
            waiter.pending.discard(name)
            if waiter.done:
                waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody, so that they look again."""
        for waiter in (*self._for_ends, *self._for_work):
            waiter.wake()
