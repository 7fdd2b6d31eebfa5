"""A streaming reverse proxy for OpenAI-compatible endpoints that records every call of a rollout."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .proxy import LLMProxy
    from .settings import Upstream

__all__ = ["LLMProxy", "Upstream"]
__version__ = "1.0.0"

_HOMES = {"LLMProxy": "proxy", "Upstream": "settings"}


def __getattr__(name: str) -> Any:
    # Listing and describing plugins must load neither the server nor the client.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
