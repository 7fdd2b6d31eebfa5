"""A run that is executed elsewhere, as its runners see it: which one it is, and how it has ended."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress

from lightning_core.bridge import run_sync
from lightning_core.errors import StoreError
from lightning_core.store.base import StoreStatistics
from lightning_core.types import Run

from .watched import WatchedClient

__all__ = ["FollowedRun"]

_PAUSE_SECONDS = 0.1
_LEAVE_SECONDS = 2.0


class FollowedRun:
    """The run of the other side, which waits at its end until this one has seen it.

    Args:
        url: The other side's server.
        token: Its token.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._name = secrets.token_hex(8)
        self._run_id: str | None = None
        self.run: Run | None = None
        """The run as it was seen last."""
        self.statistics = StoreStatistics()
        """Its counts as they were seen last."""

    def begin(self, patience: float) -> None:
        """Find out which run it is, and say that somebody follows it.

        Args:
            patience: How long to wait for the server, in seconds.

        Raises:
            StoreUnavailableError: If the server was not there by then, or does not let in who shows this token.
        """
        run_sync(self._begin(patience))

    async def _begin(self, patience: float) -> None:
        client = self._client(patience)
        try:
            self._run_id = await client.follow(self._name)
            await self._look(client)
        finally:
            await client.close()

    def see_end(self, patience: float) -> None:
        """Look how the run has ended, if it is over and as long as the server can tell.

        Args:
            patience: How long to wait for the end to be stored, in seconds.
        """
        run_sync(self._see_end(patience))

    async def _see_end(self, patience: float) -> None:
        client = self._client(0.0)
        give_up = time.monotonic() + patience
        try:
            with suppress(StoreError):
                await self._look(client)
                # Runners are told that the run is over before its end is stored, which nobody tells.
                while client.run_over and self._is_running() and time.monotonic() < give_up:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    await self._look(client)
        finally:
            await client.close()

    def leave(self) -> None:
        """Say that nobody waits here for the end of the run any more, if the server is there."""
        run_sync(self._leave())

    async def _leave(self) -> None:
        client = self._client(0.0)
        try:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await client.follow(self._name, leaves=True)
        finally:
            await client.close()

    def _client(self, retry_seconds: float) -> WatchedClient:
        return WatchedClient(self._url, token=self._token, retry_seconds=retry_seconds)

    def _is_running(self) -> bool:
        return self.run is not None and self.run.status == "running"

    async def _look(self, client: WatchedClient) -> None:
        if self._run_id is not None:
            runs = await client.query_runs(self._run_id)
            self.statistics = await client.statistics(run_id=self._run_id)
            self.run = runs[0] if runs else None
