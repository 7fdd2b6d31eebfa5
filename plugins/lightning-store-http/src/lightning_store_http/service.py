"""What all requests to one server share: the store, the limits, recent answers, and whether the end is near."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lightning_core.store.base import LightningStore
from lightning_core.store.encoding import encode

from . import arguments as a
from .answers import Answers
from .bodies import Disconnected
from .failures import RequestError
from .operations import Operation

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["Limits", "Outcome", "Service", "identify"]

# A worker that waits for work asks again this long after its last answer, at the latest.
_ASK_AGAIN_SECONDS = 5.0

# Longer than it takes to write a nonce, and only waited for with data that have none yet.
_SETTLE_SECONDS = 0.25

_IDENTITY: Final = "lightning-store-http"
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


async def identify(store: LightningStore) -> str:
    """Return the nonce of a store: one that is kept with its data if they are durable, else one for this very object.

    So a server that was restarted with the same data is known to its clients, and one that has lost them is not.
    """
    if not store.capabilities.durable:
        return _nonces.setdefault(store, secrets.token_hex(16))
    while (state := await store.load_run_state(_IDENTITY)) is None:
        await store.save_run_state(_IDENTITY, {"nonce": secrets.token_hex(16)})
        # Then it is read again: of servers that begin at once, all have written by then, and the last one's is kept.
        await asyncio.sleep(_SETTLE_SECONDS)
    return str(state["nonce"])


class Outcome(NamedTuple):
    """What an operation gave.

    Attributes:
        result: Its result.
        complete: Whether there is nothing more to wait for.
    """

    result: Any
    complete: bool = True


class Service:
    """What all requests to one server share.

    Args:
        store: What is served.
        nonce: Tells this store from others; ``None`` for the store's own.
        token: What clients must show; ``None`` lets in everybody.
        limits: What is taken and granted.
    """

    def __init__(self, store: LightningStore, nonce: str | None, token: str | None, limits: Limits) -> None:
        self.store = store
        self._nonce = nonce
        # Such a store would take what no other client could read, such as infinity.
        self._any_value = store.capabilities.python_values
        self.token = token
        self.limits = limits
        self.answers = Answers()
        self.over = False
        self.stopping = False
        self.waits: set[_Wait] = set()
        # The workers that have asked for work and were not told yet that the run is over, and when they asked last.
        self._unaware: dict[str, float] = {}
        self._followers: set[str] = set()
        self.unfollowed = threading.Event()
        """Set while nobody elsewhere wants to see how the run ends."""
        self.unfollowed.set()

    @property
    def nonce(self) -> str:
        """Tells this store from others; known once :meth:`identify` was called."""
        assert self._nonce is not None
        return self._nonce

    @property
    def all_aware(self) -> bool:
        """Whether everybody who waits for work was told that the run is over.

        Who waits asks again before long; those who have not are busy, or dead.
        """
        silent = time.monotonic() - self.limits.max_wait - _ASK_AGAIN_SECONDS
        self._unaware = {worker: asked for worker, asked in self._unaware.items() if asked > silent}
        return not self._unaware

    async def identify(self) -> None:
        """Find out the nonce of the store."""
        if self._nonce is None:
            self._nonce = await identify(self.store)

    def announce_end(self, over: bool) -> None:
        """Say on every answer that the run is over, and answer at once those who wait for work; from any thread."""
        self.over = over
        if over:
            self._interrupt()

    def follow(self, follower: str, *, leaves: bool) -> str | None:
        """Note who wants to see how the run ends, and return the id of the run, if a single one is served."""
        if leaves:
            self._followers.discard(follower)
        else:
            self._followers.add(follower)
        if self._followers:
            self.unfollowed.clear()
        else:
            self.unfollowed.set()
        return getattr(self.store, "run_id", None)

    def drain(self) -> None:
        """Answer all who wait at once, and refuse new requests; may be called from any thread."""
        self.stopping = True
        self._interrupt()

    def _interrupt(self) -> None:
        for wait in self.waits.copy():
            wait.interrupt()

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
    ) -> Outcome:
        """Run an operation; while it waits, notice a client that goes away and the server's end.

        Raises:
            Disconnected: If the client went away while the operation waited; what it had taken is given back.
            UnserializableValueError: If a value is none that JSON can hold.
        """
        self.count(operation, arguments)
        if self._any_value:
            for place, value in operation.free_values(arguments):
                encode(value, place)
        if operation.waits is None:
            return Outcome(await operation.run(self.store, arguments))
        worker_id: str | None = getattr(arguments, "worker_id", None)
        if worker_id is not None:
            self._unaware[worker_id] = time.monotonic()
        asked: float | None = getattr(arguments, operation.waits)
        most = 0.0 if self.stopping or (self.over and operation.writes) else self.limits.max_wait
        granted = most if asked is None else min(asked, most)
        begun = time.monotonic()
        wait = _Wait(self, operation, arguments.model_copy(update={operation.waits: granted}))
        result = await (wait.run_at_once() if granted <= 0 else wait.run(receive))
        if self.over and worker_id is not None:
            self._unaware.pop(worker_id, None)
        return Outcome(result, complete=not wait.interrupted and time.monotonic() - begun < granted)


class _Wait:
    """An operation that waits, until it is done, the client goes away, or the end comes."""

    def __init__(self, service: Service, operation: Operation, arguments: a.Arguments) -> None:
        self._service = service
        self._operation = operation
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self.interrupted = False

    async def run_at_once(self) -> Any:
        """Run the operation without a wait."""
        assert self._operation.waits is not None
        arguments = self._arguments.model_copy(update={self._operation.waits: 0.0})
        return await self._operation.run(self._service.store, arguments)

    async def run(self, receive: Receive | None) -> Any:
        """Run the operation; see :meth:`Service.perform`."""
        running = self._loop.create_task(self._operation.run(self._service.store, self._arguments))
        gone = self._loop.create_task(_disconnect(receive)) if receive is not None else None
        ends = {running, self._end} if gone is None else {running, self._end, gone}
        self._service.waits.add(self)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await _end(running)
        except asyncio.CancelledError:
            await _end(running)
            if running.cancelled():
                raise
            # It has just taken work: whoever cancels must know what to give back.
        finally:
            self._service.waits.discard(self)
            self._end.cancel()
            if gone is not None:
                gone.cancel()
        if not running.cancelled():
            return running.result()
        if gone is not None and gone.done() and not gone.cancelled():
            raise Disconnected
        self.interrupted = True
        return await self.run_at_once()

    def interrupt(self) -> None:
        """End the wait, if the end concerns it; may be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._interrupt)
        except RuntimeError:
            # The loop has ended, and the wait with it.
            return

    def _interrupt(self) -> None:
        # The end of the run concerns those who wait for work, the end of the server everybody.
        if not self._end.done() and (self._operation.writes or self._service.stopping):
            self._end.set_result(None)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task unless it is done, and wait for its end."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
