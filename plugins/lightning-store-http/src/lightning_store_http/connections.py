"""HTTP/1.1 for one server over asyncio: a pool of kept-alive connections, and little else.

A general client spends several times as much on a request, and the requests here are all alike.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from httptools import HttpResponseParser

__all__ = ["Connections", "Response"]

_IDLE_SECONDS: Final = 60.0


class Response(NamedTuple):
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """Media type of the body, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Connections:
    """The connections of one event loop to one server.

    Args:
        url: Where the server is: scheme, host and port.
        connect_seconds: How long a connection may take to be made.
    """

    def __init__(self, url: str, connect_seconds: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._authority = parts.netloc
        self._connect_seconds = connect_seconds
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._closed = False

    async def post(self, path: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Response:
        """Send a request and return its answer.

        Args:
            path: Path of the URL.
            headers: Headers, besides those that every request has.
            body: Sent as it is.
            seconds: How long the answer may take.

        Raises:
            OSError: If the connection cannot be made, breaks, or what comes is no HTTP. A ``TimeoutError`` is one too.
        """
        lines = [f"POST {path} HTTP/1.1", f"host: {self._authority}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        connection = self._take() or await self._connect()
        try:
            response = await connection.exchange(request, body, seconds)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable and not self._closed:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()
        return response

    def _take(self) -> _Connection | None:
        oldest = self._loop.time() - _IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(self._connect_seconds):
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self._loop, self._all), self._host, self._port, ssl=self._tls
            )
        return connection

    def abort(self) -> None:
        """Begin to close all connections; requests that are under way fail."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()

    async def close(self) -> None:
        """Close all connections; requests that are under way fail."""
        ends = [connection.lost for connection in self._all]
        self.abort()
        if ends:
            # The sockets are closed in the loop's next round.
            await asyncio.wait(ends)

    def abandon(self) -> None:
        """Close all connections of a loop that was closed before them, and cannot do it any more."""
        for connection in list(self._all):
            connection.abandon()


class _Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, group: set[_Connection]) -> None:
        self._loop = loop
        self._group = group
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._parser: HttpResponseParser | None = None
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self.lost: asyncio.Future[None] = loop.create_future()
        self.reusable = True
        self.idle_since = 0.0

    async def exchange(self, head: bytes, body: bytes, seconds: float) -> Response:
        transport = self._transport
        if transport is None:
            raise ConnectionResetError("the connection was closed while it was idle")
        self._answer = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts = {}, []
        if len(body) < 65536:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        timer = self._loop.call_later(seconds, self._expire)
        try:
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None

    def _expire(self) -> None:
        self._fail(TimeoutError("there was no answer in time"))

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def abort(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        if self._transport is None:
            return
        # What the loop would call in its next round. Otherwise the socket stays open until it is collected, with a
        # warning that would blame whoever happens to run then.
        lost = getattr(self._transport, "_call_connection_lost", None)
        with suppress(RuntimeError):
            self._transport.abort()
        if lost is not None:
            lost(None)

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._group.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._parser is None:
            # Nothing was asked.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"what came is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._group.discard(self)
        if not self.lost.done() and not self._loop.is_closed():
            self.lost.set_result(None)
        self._fail(ConnectionResetError(f"the connection was lost{f': {exc}' if exc else ''}"))

    # The parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        parser, answer = self._parser, self._answer
        if parser is None or answer is None or answer.done():
            return
        if not parser.should_keep_alive():
            self.reusable = False
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if self._headers.get("content-encoding", "").lower() == "gzip":
            try:
                body = zlib.decompress(body, wbits=31)
            except zlib.error as error:
                self._fail(ConnectionError(f"what came is no gzip: {error}"))
                return
        answer.set_result(Response(parser.get_status_code(), self._headers, body))
