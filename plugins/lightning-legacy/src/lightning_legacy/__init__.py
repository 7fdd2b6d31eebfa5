"""The v0.1 API of Agent Lightning: a server of tasks, its client, and the runner that works for it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algorithm import LegacyAlgorithm
    from .client import AgentLightningClient
    from .dev import DevTaskLoader
    from .errors import LegacyServerError
    from .runner import AgentRunner
    from .server import AgentLightningServer
    from .store import ServerDataStore

__all__ = [
    "AgentLightningClient",
    "AgentLightningServer",
    "AgentRunner",
    "DevTaskLoader",
    "LegacyAlgorithm",
    "LegacyServerError",
    "ServerDataStore",
]
__version__ = "1.0.0"

_HOMES = {
    "AgentLightningClient": "client",
    "AgentLightningServer": "server",
    "AgentRunner": "runner",
    "DevTaskLoader": "dev",
    "LegacyAlgorithm": "algorithm",
    "LegacyServerError": "errors",
    "ServerDataStore": "store",
}


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must load neither the server nor the client.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
