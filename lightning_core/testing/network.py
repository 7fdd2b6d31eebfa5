"""A network that misbehaves on request, for tests of whatever talks over TCP."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

__all__ = ["FaultyProxy"]

_CHUNK = 1 << 16


class FaultyProxy:
    """Passes TCP connections on to a server, and cuts, delays or swallows when it is told to.

    Use it as an asynchronous context manager, on the event loop of the test::

        async with FaultyProxy("127.0.0.1", server.port) as proxy:
            client = LightningStoreClient(f"http://127.0.0.1:{proxy.port}", token=server.token)
            proxy.lose_answers(1)
            await client.enqueue_rollout({"task": 1})  # the first answer never arrives

    Args:
        host: Where the server is.
        port: Its port.
        listen: The address to listen on.

    Attributes:
        target: Where new connections go: a server that is started again may have another port.
        delay: How long each piece of data is held back, in seconds, in both directions.
        refusing: Whether new connections are closed at once.
        connections: How many connections were accepted.
        lost_answers: How many answers were swallowed.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_lose = 0
        self.delay = 0.0
        self.refusing = False
        self.connections = 0
        self.lost_answers = 0

    @property
    def port(self) -> int:
        """The port to connect to.

        Raises:
            RuntimeError: If the proxy is not running.
        """
        if self._server is None:
            raise RuntimeError("the proxy is not running; use it in an `async with`")
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._listen, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Reset every connection, in both directions, at once."""
        for writer in list(self._open):
            writer.transport.abort()

    def lose_answers(self, number: int = 1) -> None:
        """Let the next requests through, and reset their connections when the server answers."""
        self._to_lose = number

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if not self.refusing:
                answers, upstream = await asyncio.open_connection(*self.target)
                self._open.add(upstream)
                sending = asyncio.create_task(self._pass(reader, upstream))
                try:
                    await self._pass(answers, writer, answering=True)
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
        except OSError:
            # The server is away: the client's connection is closed below, as it would have been without a proxy.
            pass
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self._open.discard(each)
                    each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answering: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if answering and self._to_lose > 0:
                    self._to_lose -= 1
                    self.lost_answers += 1
                    return
                writer.write(data)
                await writer.drain()
