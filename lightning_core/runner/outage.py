"""A store that is away for a while: what is tried again, for how long, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from lightning_core.errors import TraceError

__all__ = ["LAST_SECONDS", "Outage", "is_transient", "pauses"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_QUIET_SECONDS = 60.0

LAST_SECONDS = 5.0
"""How long what is cancelled may still take to reach the store, in seconds."""


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed later: the store, its disk or the way to it is at fault."""
    if isinstance(error, TraceError) and error.__cause__ is not None:
        error = error.__cause__
    # ``StoreUnavailableError``, ``TimeoutError`` and ``ConnectionError`` are all of this class.
    return isinstance(error, OSError)


def pauses() -> Iterator[float]:
    """Lengths of the pauses between tries, in seconds, which double up to a limit, with jitter."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Outage:
    """Tries calls of a store again while it is away, and logs once that it is away, and once that it is back.

    One runner's calls share it, on whatever thread.

    Args:
        worker_id: Who says so.
        retry_seconds: How long a call is tried again, in seconds.
        over: Says whether the store has announced that the run is over, so that trying again is of no use.
    """

    def __init__(self, worker_id: str, retry_seconds: float, over: Callable[[], bool]) -> None:
        self._worker_id = worker_id
        self._retry_seconds = retry_seconds
        self._over = over
        self._since: float | None = None
        self._error: BaseException | None = None
        self._said = False
        self._quiet_until = 0.0

    @property
    def seconds(self) -> float:
        """For how long the store has been away, in seconds; 0 if it answers."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def lasting(self) -> BaseException | None:
        """The last error, once the store has been away for longer than anything is tried again."""
        return self._error if self._since is not None and self.seconds >= self._retry_seconds else None

    def failed(self, error: BaseException) -> None:
        """Note that a call has failed."""
        self._error = error
        if self._since is not None:
            return
        now = self._since = time.monotonic()
        # A store of which only a part works is away and back all the time.
        self._said = now >= self._quiet_until
        if self._said:
            self._quiet_until = now + _QUIET_SECONDS
            logger.error(
                "%s: the store is away (%s: %s); trying again for up to %g s. What runs goes on",
                self._worker_id,
                type(error).__name__,
                error,
                self._retry_seconds,
            )

    def answered(self) -> None:
        """Note that a call has succeeded."""
        since, self._since = self._since, None
        if since is not None and self._said:
            logger.warning("%s: the store is back after %.1f s", self._worker_id, time.monotonic() - since)

    async def outlast(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it succeeds or has failed for ``retry_seconds``; within a cancelled task only for a moment.

        Raises:
            Exception: What the last call raised; at once if it was not for the store's being away.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            async with asyncio.timeout(LAST_SECONDS):
                return await self._outlast(call)
        return await self._outlast(call)

    async def _outlast(self, call: Callable[[], Awaitable[T]]) -> T:
        give_up: float | None = None
        for pause in pauses():
            try:
                result = await call()
            except Exception as error:
                if not is_transient(error):
                    raise
                self.failed(error)
                now = time.monotonic()
                give_up = now + self._retry_seconds if give_up is None else give_up
                if now + pause > give_up or self._over():
                    raise
                await asyncio.sleep(pause)
            else:
                self.answered()
                return result
        raise AssertionError("the pauses never end")
