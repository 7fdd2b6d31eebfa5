"""What servers have in common: where they may listen, the loop that they run on, and how they start and stop."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Self

__all__ = ["StartStop", "bind", "listening_problem", "new_loop"]

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_SHORTEST_TOKEN: Final = 8
_BACKLOG: Final = 2048


class StartStop(ABC):
    """What is started and stopped by hand, by ``with``, or by ``async with``, which blocks no event loop meanwhile."""

    @abstractmethod
    def start(self) -> object:
        """Start to serve."""

    @abstractmethod
    def stop(self) -> None:
        """Stop to serve."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def listening_problem(what: str, host: str, token: str | None) -> str | None:
    """Say what is wrong with where a server is to listen and with who may call it, if anything is.

    Args:
        what: What to call the server, such as ``a proxy``.
        host: The interface.
        token: What clients must show; ``None`` lets everybody in, which only the loopback may do.
    """
    if token is None:
        if host in _LOOPBACK:
            return None
        return (
            f"{what} on {host!r} can be reached from other machines: give it a token (token=…, or --token-file on the "
            "command line), or let it listen on 127.0.0.1"
        )
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        return f"a token has at least {_SHORTEST_TOKEN} characters, all of them printable ASCII"
    return None


def bind(host: str, port: int) -> socket.socket:
    """Bind a port and listen there: without sharing it, so that two servers never have the same one.

    Args:
        host: The interface.
        port: The port; 0 for any free one.

    Returns:
        The socket, which does not block.

    Raises:
        OSError: If the port is taken or the interface does not exist; the message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"there is no interface {host!r} to listen on: {error}") from error
    try:
        # Takes over a port whose last server has ended, and never that of one which lives.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            f"port {port} of {host} cannot be had ({error.strerror or error}): another server may be running there; "
            "stop it, or choose another port, or 0 for a free one"
        ) from error
    listener.setblocking(False)
    return listener


def new_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop: uvloop's where it is installed, which serves more requests than Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
