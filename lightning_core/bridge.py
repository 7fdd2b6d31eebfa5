"""The one bridge from synchronous code to async: a background thread with an event loop of its own."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["bridge_loop", "run_sync"]

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def bridge_loop() -> asyncio.AbstractEventLoop:
    """Return the background loop, starting its (daemon) thread when it is first needed."""
    global _loop
    with _lock:
        if _loop is None:
            # Importing it takes longer than the rest of the modules that a Trainer needs before it runs.
            import asyncio

            # A loop keeps the context that it was made in, which may hold a whole trace, for ever.
            _loop = contextvars.Context().run(asyncio.new_event_loop)
            threading.Thread(target=_loop.run_forever, name="lightning-bridge", daemon=True).start()
        return _loop


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, even where an event loop is running, and return its result.

    Raises:
        RuntimeError: If called on the bridge's own thread, which would wait for itself.
    """
    import asyncio

    loop = bridge_loop()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise RuntimeError(
            "run_sync was called from a coroutine that the bridge itself runs: await it instead"
        )
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def _forget_loop() -> None:
    # The thread does not survive a fork, and the lock may have been held by another thread.
    global _loop, _lock
    _loop = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)
