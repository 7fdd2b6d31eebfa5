"""A thread that runs one coroutine on an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

__all__ = ["Worker", "join_workers"]

logger = logging.getLogger(__name__)


class Worker(threading.Thread):
    """A daemon thread with an event loop that runs one coroutine, which can be cancelled from outside.

    Args:
        name: The thread's name.
        work: Makes what is to be awaited.
        on_end: Called on the thread when the work has ended, however it did.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], on_end: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._on_end = on_end
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        """What the work raised; not the cancellation that :meth:`cancel` asked for."""
        self.finished = False
        """Whether the work has ended."""
        self.cancelled = False
        """Whether :meth:`cancel` was called."""

    def run(self) -> None:
        """Run the work; called by ``start``."""
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError as error:
            if self.cancelled:
                logger.debug("%s was cancelled", self.name)
            else:
                # Its own doing: it awaited something that was cancelled, and did not come to its end.
                self.error = error
        except BaseException as error:
            self.error = error
        finally:
            self.finished = True
            self._ready.set()
            self._on_end()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ready.set()
        await self._work()

    def cancel(self) -> None:
        """Cancel the work. It may take its time, or refuse."""
        self.cancelled = True
        self._ready.wait()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)


def join_workers(workers: Sequence[Worker], seconds: float) -> list[Worker]:
    """Wait for the threads together, and return those that still run after ``seconds``."""
    give_up = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, give_up - time.monotonic()))
    return [worker for worker in workers if worker.is_alive()]
