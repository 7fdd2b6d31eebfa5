"""The v0.1 forms of what ``fit`` may be given, and the door to the package that serves them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["import_legacy", "is_server", "is_v0_1"]


def is_server(data: Any) -> bool:
    """Whether data are a v0.1 server: its URL, or a client of it."""
    return isinstance(data, str) or hasattr(data, "poll_next_task")


def is_v0_1(algorithm: Any, *data: Any) -> bool:
    """Whether the v0.1 API is used: data are a server, or the algorithm has a client of one."""
    return hasattr(algorithm, "get_client") or any(map(is_server, data))


def import_legacy(module: str, what: str) -> Any:
    """Import a module of ``lightning-legacy``.

    Args:
        module: Its name within the package.
        what: What it is needed for.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        import_module("lightning_legacy")
    except ModuleNotFoundError as error:
        if error.name != "lightning_legacy":
            raise
        raise ImportError(
            f"{what} is the v0.1 API, which the plugin lightning-legacy provides. "
            "To get it: pip install lightning-legacy",
            name="lightning_legacy",
        ) from None
    return import_module(f"lightning_legacy.{module}")
