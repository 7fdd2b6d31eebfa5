"""The one event loop that clients and servers work on, whichever thread or loop they are called from.

It is that of :mod:`lightning_core.bridge`. So there is one implementation for synchronous and asynchronous callers, no
lock or connection ever meets a second loop, and what is shared needs no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from lightning_core.bridge import bridge_loop

__all__ = ["call", "on_loop"]

T = TypeVar("T")


async def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from any event loop; it is cancelled if the caller is."""
    loop = bridge_loop()
    if asyncio.get_running_loop() is loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


def call(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code; it is cancelled if the caller is interrupted.

    Raises:
        RuntimeError: If called on the loop's own thread, which would wait for itself.
    """
    loop = bridge_loop()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise RuntimeError(
            "a synchronous method was called on the bridge's own event loop: use its async twin"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        # Such as Ctrl+C: what nobody waits for any more must not go on to take a task.
        future.cancel()
        raise
