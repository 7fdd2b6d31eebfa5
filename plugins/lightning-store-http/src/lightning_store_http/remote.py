"""What a client needs to reach its server: from any event loop and thread, after a fork, and out of a pickle."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

from lightning_core.errors import StoreClosedError, UnserializableValueError
from lightning_core.store.base import LightningStore, StoreCapabilities
from lightning_core.store.otlp import OtlpEndpoint

from .channel import Call, Channel
from .handshake import describe_store
from .operations import OPERATIONS
from .peer import Peer

__all__ = ["RemoteStore"]


class RemoteStore(LightningStore):
    """A store whose operations are carried out by a server; which these are, a subclass says.

    It has a :class:`Channel` for each event loop that uses it. See ``LightningStoreClient`` for the arguments.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        nonce: str | None = None,
        retry_seconds: float = 60.0,
        compress: bool | None = None,
    ) -> None:
        self._peer = Peer(url, token, nonce, compress)
        self._retry_seconds = retry_seconds
        self._durable: bool | None = None
        self._begin()

    def _begin(self) -> None:
        self._closed = False
        self._lock = threading.Lock()
        self._channels: dict[asyncio.AbstractEventLoop, Channel] = {}
        self._inherited: dict[asyncio.AbstractEventLoop, Channel] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"peer": self._peer, "retry_seconds": self._retry_seconds, "durable": self._durable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._peer = state["peer"]
        self._retry_seconds = state["retry_seconds"]
        self._durable = state["durable"]
        self._begin()

    @property
    def capabilities(self) -> StoreCapabilities:  # pyright: ignore[reportIncompatibleVariableOverride] - known only once the server is asked
        """What the server's store can do; JSON values only."""
        if self._durable is None:
            self._durable = describe_store(self._peer, self._retry_seconds)
        return StoreCapabilities(durable=self._durable, processes=True, python_values=False)

    @property
    def location(self) -> str:
        """The server's URL."""
        return self._peer.url

    @property
    def otlp_endpoint(self) -> OtlpEndpoint:
        """The server, which takes spans over OTLP as well, with the token that it asks for."""
        token = self._peer.token
        return OtlpEndpoint(self._peer.url, {} if token is None else {"authorization": f"Bearer {token}"})

    @property
    def run_over(self) -> bool:
        """Whether the server has said that the run is over: there will be no more work."""
        return self._peer.over

    async def _channel(self) -> Channel:
        if self._process != os.getpid():
            self._leave_parent()
        loop = asyncio.get_running_loop()
        channel = self._channels.get(loop)
        if channel is not None:
            return channel
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"the client of {self._peer.url} is closed")
            channels = self._channels
            for other in [other for other in channels if other.is_closed()]:
                channels.pop(other).abandon()
            channel = channels[loop] = Channel(
                self._peer, self._retry_seconds, lambda: channels.pop(loop, None)
            )
        await channel.open()
        return channel

    def _leave_parent(self) -> None:
        """After a fork: leave the connections to the parent process, and the lock, which somebody may have held."""
        self._inherited = self._channels
        self._channels = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    async def _call(self, name: str, **arguments: Any) -> Any:
        channel = await self._channel()
        return await channel.call(_write(name, arguments))

    async def _call_alone(
        self, name: str, *, wait: float = 0.0, withdraw: bool = False, **arguments: Any
    ) -> Any:
        channel = await self._channel()
        return await channel.call_alone(_write(name, arguments), wait=wait, withdraw=withdraw)

    async def close(self) -> None:
        """Close the connections of all event loops. The server and its store go on."""
        if self._process != os.getpid():
            self._leave_parent()
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels = {}
        for channel in channels:
            if channel.loop is asyncio.get_running_loop():
                await channel.close()
            elif channel.loop.is_closed():
                channel.abandon()
            else:
                with suppress(RuntimeError):
                    channel.loop.call_soon_threadsafe(channel.shut)


def _write(name: str, arguments: dict[str, Any]) -> Call:
    # Names that are also those of parameters on the way here.
    given = {key.removesuffix("_"): value for key, value in arguments.items()}
    try:
        return Call.write(name, given, writes=OPERATIONS[name].writes)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnserializableValueError(f"{name}: {error}") from None
