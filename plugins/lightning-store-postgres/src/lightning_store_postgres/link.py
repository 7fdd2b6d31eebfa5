"""A connection that comes back: opened when it is needed, and again when it was lost."""

from __future__ import annotations

import asyncio
import random

from .settings import ConnectionLostError, Settings
from .wire import Wire

__all__ = ["Backoff", "Link"]

_SHORTEST, _LONGEST = 0.02, 1.0


class Backoff:
    """Pauses between attempts, which grow, and vary so that many clients do not come back at once."""

    def __init__(self) -> None:
        self._pause = _SHORTEST

    async def rest(self) -> None:
        """Wait for the next attempt."""
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, _LONGEST)


class Link:
    """One connection of a store, used by one task.

    Args:
        settings: Where to connect to.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wire: Wire | None = None

    async def wire(self) -> Wire:
        """Return the connection, making it if there is none.

        Raises:
            ConnectionLostError: If that fails.
        """
        if self._wire is None:
            self._wire = await Wire.open(self._settings)
        return self._wire

    async def wire_by(self, deadline: float) -> Wire:
        """Return the connection, trying until a time of the event loop's clock.

        Raises:
            StoreUnavailableError: If the server stays away so long.
        """
        loop = asyncio.get_running_loop()
        began, backoff = loop.time(), Backoff()
        while True:
            try:
                return await self.wire()
            except ConnectionLostError as error:
                if loop.time() >= deadline:
                    raise self._settings.unreachable(error, loop.time() - began) from None
            await backoff.rest()

    async def drop(self) -> None:
        """Close the connection, if there is one; the next use opens another."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()
