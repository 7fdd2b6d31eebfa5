"""Daemon threads for sync agents, used again for the next rollout."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

__all__ = ["AgentThreads"]

_Job: TypeAlias = Callable[[], None]


class AgentThreads:
    """Runs functions in threads, each in a copy of the caller's context.

    A pool of fixed size would do for agents that return. One that is stuck past its time limit cannot be ended; here it
    keeps its thread, starves nobody, and does not keep the process alive.
    """

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[_Job | None]] = []

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread that has nothing to do, or a new one, and return its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def finish(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def job() -> None:
            result, failure = None, None
            try:
                result = context.run(function)
            except StopIteration as error:
                # A future refuses StopIteration.
                failure = RuntimeError(f"the agent raised StopIteration: {error}")
            except BaseException as error:
                failure = error
            self._idle.append(inbox)
            with suppress(RuntimeError):  # the loop was closed: nobody waits for a late result
                loop.call_soon_threadsafe(finish, result, failure)

        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = queue.SimpleQueue[_Job | None]()
            threading.Thread(target=_serve, args=(inbox,), name="lightning-agent", daemon=True).start()
        inbox.put(job)
        return await future

    def close(self) -> None:
        """End the threads that have nothing to do."""
        while self._idle:
            self._idle.pop().put(None)


def _serve(inbox: queue.SimpleQueue[_Job | None]) -> None:
    while (job := inbox.get()) is not None:
        job()
        # Or the last rollout's objects would live until the next one.
        del job
