"""The connections that all clients of a process share, on the loop that they all work on."""

from __future__ import annotations

import asyncio
import atexit

import aiohttp

from lightning_core.bridge import bridge_loop

__all__ = ["shared_session"]

_EXIT_SECONDS = 2.0

_session: aiohttp.ClientSession | None = None
_loop: asyncio.AbstractEventLoop | None = None


def shared_session() -> aiohttp.ClientSession:
    """Return the session of the running loop, which is the bridge's; it is closed when the process ends."""
    global _session, _loop
    loop = asyncio.get_running_loop()
    if _session is None or _session.closed or _loop is not loop:
        # After a fork the loop is another one, and the parent's session is not ours to close.
        _loop = loop
        _session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
    return _session


@atexit.register
def _close() -> None:
    # Not closed, it would say so at the end of every program.
    if _session is None or _session.closed or _loop is None or _loop is not bridge_loop():
        return
    closing = asyncio.run_coroutine_threadsafe(_session.close(), _loop)
    try:
        closing.result(_EXIT_SECONDS)
    except TimeoutError:
        closing.cancel()
