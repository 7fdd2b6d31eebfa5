"""The stop signal between threads, which coroutines can wait for too."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

__all__ = ["StopEvent"]


class StopEvent:
    """A ``threading.Event`` that any number of coroutines, on any event loops, can await."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def set(self) -> None:
        """Ask for a stop."""
        with self._lock:
            self._event.set()
            waiting = list(self._waiting)
        for loop, waiter in waiting:
            with suppress(RuntimeError):  # its loop was closed
                loop.call_soon_threadsafe(waiter.set)

    def clear(self) -> None:
        """Take it back."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a stop is asked for, or ``timeout`` seconds have passed; return whether it was."""
        return self._event.wait(timeout)

    async def wait_async(self) -> None:
        """Wait until a stop is asked for."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self._event.is_set():
                return
            self._waiting.add(entry)
        try:
            await entry[1].wait()
        finally:
            with self._lock:
                self._waiting.discard(entry)
