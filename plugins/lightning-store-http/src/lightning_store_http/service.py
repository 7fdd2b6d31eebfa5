"""What all requests to one server share: the store, the limits, recent answers, and whether the end is near."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lightning_core.store.base import LightningStore

from . import arguments as a
from .answers import Answers
from .bodies import Disconnected
from .failures import RequestError
from .operations import Operation

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["Limits", "Service", "identify"]

_nonces: Final[weakref.WeakKeyDictionary[LightningStore, str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Limits:
    """What a server takes and grants.

    Attributes:
        max_body_bytes: The largest body of a request, in bytes, before and after decompression.
        max_batch: The most operations in a batch, and the most items in an operation.
        max_wait: The longest that a request may wait, in seconds; clients ask again.
    """

    max_body_bytes: int = 64 * 1024 * 1024
    max_batch: int = 100_000
    max_wait: float = 25.0


def identify(store: LightningStore) -> str:
    """Return the nonce of a store: that of its data if they are durable, else one for this very object."""
    if store.capabilities.durable:
        return hashlib.sha256(f"lightning-store {store.location}".encode()).hexdigest()[:32]
    nonce = _nonces.get(store)
    if nonce is None:
        _nonces[store] = nonce = secrets.token_hex(16)
    return nonce


class Service:
    """What all requests to one server share.

    Args:
        store: What is served.
        nonce: Tells this store from others.
        token: What clients must show; ``None`` lets in everybody.
        limits: What is taken and granted.
    """

    def __init__(self, store: LightningStore, nonce: str, token: str | None, limits: Limits) -> None:
        self.store = store
        self.nonce = nonce
        self.token = token
        self.limits = limits
        self.answers = Answers()
        self.over = False
        self.stopping = False
        self._waiting: set[_Interruption] = set()

    def announce_end(self, over: bool) -> None:
        """Say on every answer that the run is over, and answer at once those who wait for work; from any thread."""
        self.over = over
        if over:
            self._interrupt()

    def drain(self) -> None:
        """Answer all who wait at once, and refuse new requests; may be called from any thread."""
        self.stopping = True
        self._interrupt()

    def _interrupt(self) -> None:
        for interruption in list(self._waiting):
            interruption.come()

    def count(self, operation: Operation, arguments: a.Arguments) -> None:
        """Refuse an operation on too many items at once.

        Raises:
            RequestError: 413, if there are.
        """
        if operation.items is not None:
            self.limit(len(getattr(arguments, operation.items)), operation.items)

    def limit(self, number: int, what: str) -> None:
        """Refuse too many of something in one request.

        Raises:
            RequestError: 413, if there are.
        """
        most = self.limits.max_batch
        if number > most:
            raise RequestError(
                413,
                f"{number} {what} in one request, and this server takes {most}: send fewer at a time, or start the "
                "server with a larger max_batch",
                kind="ConfigurationError",
            )

    async def perform(
        self, operation: Operation, arguments: a.Arguments, receive: Receive | None = None
    ) -> Any:
        """Run an operation; while it waits, notice a client that goes away and the server's end.

        Raises:
            Disconnected: If the client went away while the operation waited; what it had taken is given back.
        """
        self.count(operation, arguments)
        if operation.waits is None:
            return await operation.run(self.store, arguments)
        asked: float | None = getattr(arguments, operation.waits)
        most = 0.0 if self.stopping or (self.over and operation.writes) else self.limits.max_wait
        granted = most if asked is None else min(asked, most)
        arguments = arguments.model_copy(update={operation.waits: granted})
        if granted <= 0:
            return await operation.run(self.store, arguments)
        return await self._wait(operation, arguments, receive)

    async def _wait(self, operation: Operation, arguments: a.Arguments, receive: Receive | None) -> Any:
        interruption = _Interruption(self, operation)
        waiting = asyncio.ensure_future(_run(operation.run, self.store, arguments))
        gone = asyncio.ensure_future(_disconnect(receive)) if receive is not None else None
        self._waiting.add(interruption)
        try:
            both = {waiting, interruption.future}
            await asyncio.wait(both if gone is None else {*both, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
            if not waiting.cancelled():
                return waiting.result()
            if gone is not None and gone.done():
                raise Disconnected
            assert operation.waits is not None
            return await operation.run(self.store, arguments.model_copy(update={operation.waits: 0.0}))
        finally:
            self._waiting.discard(interruption)
            waiting.cancel()
            interruption.future.cancel()
            if gone is not None:
                gone.cancel()


class _Interruption:
    """Ends a wait from any thread."""

    def __init__(self, service: Service, operation: Operation) -> None:
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._takes_work = operation.writes
        self.future: asyncio.Future[None] = self._loop.create_future()

    def come(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            # The loop has ended, and the wait with it.
            return

    def _end(self) -> None:
        # The end of the run concerns those who wait for work, the end of the server everybody.
        if not self.future.done() and (self._takes_work or self._service.stopping):
            self.future.set_result(None)


async def _run(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    return await call(*arguments)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
