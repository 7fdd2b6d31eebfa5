"""Where a server listens, and who may reach it there."""

from __future__ import annotations

import socket
from typing import Final

from lightning_core.errors import ConfigurationError

from .errors import LegacyServerError

__all__ = ["check_address", "listen"]

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def check_address(host: str, port: int, token: str | None) -> None:
    """Refuse an address that would be open to everybody, and a port that is none.

    Raises:
        ConfigurationError: If it is such a one.
    """
    if token is None and host not in _LOOPBACK:
        raise ConfigurationError(
            f"a server on {host!r} can be reached from other machines: give it a token (token=…, or the variable "
            "LIGHTNING_CORE_LEGACY_TOKEN on both sides), or let it listen on 127.0.0.1"
        )
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"a port is from 0 to 65535, not {port}")


def listen(host: str, port: int) -> socket.socket:
    """Bind a port, without sharing it, so that two servers never have the same one.

    Raises:
        LegacyServerError: If it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LegacyServerError(f"there is no interface {host!r} to listen on: {error}") from error
    try:
        # Takes over a port whose last server has ended, and never that of one which lives.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise LegacyServerError(
            f"port {port} of {host} cannot be had ({error.strerror or error}): another server may be running there; "
            "stop it, or choose another port, or 0 for a free one"
        ) from error
    listener.setblocking(False)
    return listener
