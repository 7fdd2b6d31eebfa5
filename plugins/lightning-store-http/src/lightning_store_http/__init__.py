"""Stores of lightning-core over HTTP: a server over any store, and the client that is a store itself."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app
    from .client import LightningStoreClient
    from .server import LightningStoreServer
    from .strategy import ClientServerExecutionStrategy

__all__ = ["ClientServerExecutionStrategy", "LightningStoreClient", "LightningStoreServer", "create_app"]
__version__ = "1.0.0"

_HOMES = {
    "ClientServerExecutionStrategy": "strategy",
    "LightningStoreClient": "client",
    "LightningStoreServer": "server",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must load neither the server nor the client.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
