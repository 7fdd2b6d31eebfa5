"""The error of a client whose server is none, and of a server that cannot listen."""

from __future__ import annotations

from lightning_core.errors import LightningError

__all__ = ["LegacyServerError"]


class LegacyServerError(LightningError, ConnectionError):
    """A v0.1 server cannot be had: it cannot listen, or a client finds none, or something else, at its endpoint."""
