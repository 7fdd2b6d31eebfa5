"""Where a server listens, and who may reach it there."""

from __future__ import annotations

import socket
from typing import Final

from lightning_core.errors import ConfigurationError
from lightning_core.serving import bind

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
        return bind(host, port)
    except OSError as error:
        raise LegacyServerError(str(error)) from error
