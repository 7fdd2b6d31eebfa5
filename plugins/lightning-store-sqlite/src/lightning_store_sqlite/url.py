"""Reading and writing store URLs such as ``sqlite:///runs.db``."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from lightning_core.errors import ConfigurationError

__all__ = ["format_url", "parse_url"]

_HINT = (
    "write sqlite:///relative/path.db, sqlite:////absolute/path.db, or sqlite:// for a temporary file "
    "that is removed when the store is closed"
)


def parse_url(url: str) -> dict[str, Any]:
    """Turn a URL into the settings of a store.

    ``sqlite:///runs.db`` is relative to the working directory, ``sqlite:////data/runs.db`` absolute, and ``sqlite://``
    a temporary file. Settings may follow: ``sqlite:///runs.db?synchronous=normal``. Special characters of the path
    may be percent-encoded; ``%``, ``?`` and ``#`` must be.

    Raises:
        ConfigurationError: If the URL has another form.
    """
    scheme, colon, rest = url.partition(":")
    if scheme != "sqlite" or not colon or not rest.startswith("//"):
        raise ConfigurationError(f"{url!r} is no SQLite store URL: {_HINT}")
    location, _, query = rest[2:].partition("?")
    settings: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if location == "":
        return settings
    if not location.startswith("/") or location == "/":
        raise ConfigurationError(f"{url!r} names no file after three slashes: {_HINT}")
    path = unquote(location[1:])
    if path == ":memory:":
        raise ConfigurationError(
            f"{url!r}: an SQLite database in memory cannot be shared; use store='memory', or sqlite:// for a "
            "temporary file"
        )
    return settings | {"path": path}


def format_url(path: Path) -> str:
    """Return the URL that opens the file at ``path`` from any working directory."""
    return f"sqlite:///{quote(str(path.absolute()), safe='/:')}"
