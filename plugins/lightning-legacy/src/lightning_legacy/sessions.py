"""The connections that all clients of a process share, on the loop that they all work on."""

from __future__ import annotations

import asyncio
import atexit
import os

import aiohttp

__all__ = ["shared_session"]

_EXIT_SECONDS = 2.0

_session: aiohttp.ClientSession | None = None
_loop: asyncio.AbstractEventLoop | None = None
_of_parents: list[aiohttp.ClientSession] = []


def shared_session() -> aiohttp.ClientSession:
    """Return the session of the running loop, which is the bridge's; it is closed when the process ends."""
    global _session, _loop
    if _session is None:
        _loop = asyncio.get_running_loop()
        _session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
    return _session


@atexit.register
def _close() -> None:
    # Not closed, it would say so at the end of many a program.
    if _session is None or _loop is None:
        return
    closing = asyncio.run_coroutine_threadsafe(_session.close(), _loop)
    try:
        closing.result(_EXIT_SECONDS)
    except TimeoutError:
        closing.cancel()


def _forget() -> None:
    # After a fork the connections are the parent's, and the loop does not run. Kept, since a session that is collected
    # would complain that it was not closed.
    global _session
    if _session is not None:
        _of_parents.append(_session)
        _session = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
