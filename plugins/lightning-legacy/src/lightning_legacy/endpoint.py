"""Where a client finds its server."""

from __future__ import annotations

from urllib.parse import urlsplit

from lightning_core.errors import ConfigurationError

__all__ = ["read_endpoint"]


def read_endpoint(endpoint: str) -> str:
    """Return the root URL of a server, without a slash at its end.

    Raises:
        ConfigurationError: If it is none; the message names what is wrong with it.
    """
    if not isinstance(endpoint, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
        raise ConfigurationError(
            f"endpoint must be the URL of a server, such as 'http://127.0.0.1:8000', not a {type(endpoint).__name__}"
        )
    shown = repr(endpoint)
    try:
        parts = urlsplit(endpoint.strip())
        credentials = parts.username is not None or parts.password is not None
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"endpoint {shown} is no URL: {error}") from None
    if credentials:
        raise ConfigurationError(
            f"the endpoint of the server at {host} holds a name or a password, which may be printed: "
            "give the server's token as token=…"
        )
    if parts.scheme not in ("http", "https"):
        said = f"the scheme {parts.scheme!r}" if "://" in endpoint else "no scheme"
        rest = endpoint.strip().partition("://")[2] if "://" in endpoint else endpoint.strip()
        raise ConfigurationError(f"endpoint {shown} has {said}; did you mean {f'http://{rest}'!r}?")
    if not host or port == 0 or parts.query or parts.fragment:
        raise ConfigurationError(
            f"endpoint {shown} is not the root URL of a server, such as 'http://127.0.0.1:8000'"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
