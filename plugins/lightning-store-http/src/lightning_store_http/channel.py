"""A client's connection on one event loop: calls that are made at once share a request, and are tried again."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, cast

from lightning_core.errors import StoreClosedError, StoreError, StoreUnavailableError

from .connections import Connections
from .failures import restore
from .peer import Peer, TooLarge, Unanswered
from .wire import BATCH_PATH, JSON, MSGPACK, WireError, pack, pack_json, pack_map, unpack

__all__ = ["Call", "Channel"]

_IN_FLIGHT: Final = 4
_MOST_CALLS: Final = 500
_MOST_BYTES: Final = 1024 * 1024
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 60.0
_SHORT_SECONDS: Final = 1.0
_GIVE_BACK_SECONDS: Final = 2.0
# How long a server is tried again that has said that its run is over.
_OVER_SECONDS: Final = 2.0


class Call(NamedTuple):
    """One operation, written already."""

    name: str
    content_type: str
    body: bytes
    writes: bool

    @staticmethod
    def write(name: str, arguments: dict[str, Any], *, writes: bool) -> Call:
        """Write an operation.

        Raises:
            TypeError, ValueError: If neither msgpack nor JSON can hold the arguments.
        """
        try:
            return Call(name, MSGPACK, pack((name, arguments)), writes)
        except (ValueError, OverflowError):
            # Such as an integer of more than 64 bits.
            return Call(name, JSON, pack_json((name, arguments)), writes)


_Waiting: TypeAlias = tuple[Call, asyncio.Future[Any]]


def _settle(batch: list[_Waiting], error: Exception) -> None:
    """Raise an error in all callers that still wait."""
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


class _Numbers:
    """Numbers requests, and knows below which all have been answered."""

    def __init__(self) -> None:
        self.client = secrets.token_hex(8)
        self._next = 1
        self._open: dict[int, None] = {}

    def draw(self) -> int:
        number = self._next
        self._next += 1
        self._open[number] = None
        return number

    def close(self, number: int) -> None:
        self._open.pop(number, None)

    @property
    def below(self) -> int:
        return next(iter(self._open), self._next)


class Channel:
    """The connections of one event loop.

    Calls that are made while others are under way go together in the next request. There is no delay: a call that
    comes alone goes at once.

    Args:
        peer: The server.
        retry_seconds: How long to try again.
        forget: Called when the channel is closed.
    """

    def __init__(self, peer: Peer, retry_seconds: float, forget: Callable[[], object]) -> None:
        self._peer = peer
        self._forget = forget
        self._retry_seconds = retry_seconds
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(peer.url, _CONNECT_SECONDS)
        self._numbers = _Numbers()
        # Calls that wait must not hold up what the server may forget of the others.
        self._waiting_numbers = _Numbers()
        self._queue: deque[_Waiting] = deque()
        self._requests: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._keeper: AsyncGenerator[None, None] | None = None

    async def open(self) -> None:
        """Have the event loop close the channel when it shuts down, as ``asyncio.run`` makes it do."""
        self._keeper = self._keep()
        await anext(self._keeper)

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it belongs to."""
        return self._loop

    async def call(self, call: Call) -> Any:
        """Have an operation carried out, along with others, and return its result.

        Raises:
            LightningError: What the store raised.
            StoreUnavailableError: If the server could not be reached for too long.
            StoreClosedError: If the client is closed.
        """
        self._check_open()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append((call, future))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return await future

    async def call_alone(self, call: Call, *, wait: float = 0.0, withdraw: bool = False) -> Any:
        """Have an operation carried out that may take long; see :meth:`call`.

        Args:
            call: The operation.
            wait: How long the server may take for it, in seconds.
            withdraw: If the caller is cancelled, take back what the operation has done.
        """
        give_up = time.monotonic() + self._retry_seconds + wait
        pause = _FIRST_PAUSE
        while True:
            good, result = await self._call_once(call, wait, withdraw, give_up)
            if good:
                return result
            error = restore(result)
            now = time.monotonic()
            # What may take an hour is not tried again for an hour.
            give_up = min(give_up, now + self._retry_seconds)
            if not isinstance(error, StoreUnavailableError) or now > give_up:
                raise error
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _call_once(self, call: Call, wait: float, withdraw: bool, give_up: float) -> tuple[bool, Any]:
        self._check_open()
        number = self._waiting_numbers.draw() if call.writes else None
        request = asyncio.ensure_future(self._exchange([call], self._waiting_numbers, number, give_up, wait))
        try:
            await asyncio.wait({request, self._closing}, return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                raise self._closed()
            return request.result()[0]
        except asyncio.CancelledError:
            request.cancel()
            if withdraw and number is not None:
                await self._withdraw(number)
            raise
        finally:
            request.cancel()
            if number is not None:
                self._waiting_numbers.close(number)

    async def _withdraw(self, number: int) -> None:
        arguments = {"client": self._waiting_numbers.client, "number": number}
        call = Call.write("withdraw", arguments, writes=False)
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await self._exchange([call], self._numbers, None, time.monotonic() + _GIVE_BACK_SECONDS, 0.0)

    def _flush(self) -> None:
        self._scheduled = False
        while self._queue and len(self._requests) < _IN_FLIGHT:
            batch = self._take()
            if not batch:
                return
            request = self._loop.create_task(self._send(batch))
            self._requests.add(request)
            request.add_done_callback(self._sent)

    def _sent(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if self._queue and not self._closing.done():
            self._flush()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < _MOST_CALLS:
            call, future = self._queue[0]
            if future.done():
                self._queue.popleft()
                continue
            size += len(call.body)
            if batch and (size > _MOST_BYTES or call.content_type != batch[0][0].content_type):
                break
            batch.append(self._queue.popleft())
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        give_up = time.monotonic() + self._retry_seconds
        pause = _FIRST_PAUSE
        try:
            while batch := await self._send_once(batch, give_up):
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, _LONGEST_PAUSE)
        except Exception as error:
            _settle(batch, error)
        except BaseException:
            # The event loop or the client is being closed.
            _settle(batch, self._closed())
            raise

    async def _send_once(self, batch: list[_Waiting], give_up: float) -> list[_Waiting]:
        """Send a batch until there is an answer, and return those calls that are worth making again."""
        calls = [call for call, _ in batch]
        number = self._numbers.draw() if any(call.writes for call in calls) else None
        try:
            results = await self._exchange(calls, self._numbers, number, give_up, 0.0)
        except TooLarge as error:
            if len(batch) == 1:
                # Not raised: it does not concern those that travelled along.
                _settle(batch, error)
                return []
            half = len(batch) // 2
            return await self._send_once(batch[:half], give_up) + await self._send_once(batch[half:], give_up)
        finally:
            if number is not None:
                self._numbers.close(number)
        again: list[_Waiting] = []
        for (call, future), (good, result) in zip(batch, results, strict=True):
            if future.done():
                continue
            if good:
                future.set_result(result)
                continue
            error = restore(result)
            # Such as a full disk, which somebody may make room on.
            if isinstance(error, StoreUnavailableError) and time.monotonic() < give_up:
                again.append((call, future))
            else:
                future.set_exception(error)
        return again

    async def _exchange(
        self, calls: list[Call], numbers: _Numbers, number: int | None, give_up: float, wait: float
    ) -> list[tuple[bool, Any]]:
        """Send a batch until there is an answer, and return it."""
        body = _envelope(calls, numbers, number)
        content_type = calls[0].content_type
        pause = _FIRST_PAUSE
        away: float | None = None
        while True:
            begun = time.monotonic()
            try:
                return await self._try(body, content_type, wait, len(calls))
            except OSError as error:
                if isinstance(error, StoreError) and not isinstance(error, Unanswered):
                    raise
                now = time.monotonic()
                if away is None or now - begun > _SHORT_SECONDS:
                    # Before this failure, the server was there for a while.
                    away = now
                # A server whose run is over does not come back.
                patience = min(self._retry_seconds, _OVER_SECONDS) if self._peer.over else self._retry_seconds
                if now + pause > min(give_up, away + patience):
                    raise StoreUnavailableError(
                        f"the server at {self._peer.url} could not be reached for {patience:g} s: "
                        f"{error or type(error).__name__}"
                    ) from error
            # Full jitter: clients that lost the server together do not come back together.
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _try(self, body: bytes, content_type: str, wait: float, number: int) -> list[tuple[bool, Any]]:
        response = await self._connections.post(
            BATCH_PATH, {**self._peer.headers(), "content-type": content_type}, body, wait + _ANSWER_SECONDS
        )
        self._peer.learn(response.headers)
        self._peer.check(response.status, response.content_type, response.body)
        try:
            results = unpack(response.content_type, response.body, strict=False)
        except WireError as error:
            raise StoreError(f"the server at {self._peer.url} gave an answer that is none: {error}") from None
        if not isinstance(results, list) or len(cast("list[Any]", results)) != number:
            raise StoreError(f"the server at {self._peer.url} did not answer every operation of a request")
        return cast("list[tuple[bool, Any]]", results)

    def _check_open(self) -> None:
        if self._closing.done():
            raise self._closed()

    def _closed(self) -> StoreClosedError:
        return StoreClosedError(f"the client of {self._peer.url} is closed")

    def abandon(self) -> None:
        """Close the connections of a loop that was closed before them."""
        self._connections.abandon()

    def shut(self) -> None:
        """Begin to close the connections; who waits gets a ``StoreClosedError``."""
        if not self._closing.done():
            self._closing.set_result(None)
        for _, future in self._queue:
            if not future.done():
                future.set_exception(self._closed())
        self._queue.clear()
        for request in self._requests:
            request.cancel()
        self._connections.abort()

    async def close(self) -> None:
        """Close the connections; who waits gets a ``StoreClosedError``."""
        self.shut()
        if self._requests:
            await asyncio.wait(list(self._requests))
        await self._connections.close()
        self._forget()


def _envelope(calls: list[Call], numbers: _Numbers, number: int | None) -> bytes:
    fields: dict[str, Any] = {}
    if number is not None:
        fields = {"client": numbers.client, "number": number, "below": numbers.below}
    if calls[0].content_type == JSON:
        return pack_json(fields)[:-1] + (b"," if fields else b"") + b'"operations":[' + b",".join(
            call.body for call in calls
        ) + b"]}"  # fmt: skip
    return pack_map(fields, "operations", [call.body for call in calls])
