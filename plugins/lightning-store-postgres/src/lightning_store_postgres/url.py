"""Reading and writing store URLs such as ``postgresql://user@host:5432/database``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from lightning_core.errors import ConfigurationError

__all__ = ["SECRETS", "format_url", "parse_url"]

_SETTINGS = frozenset({"schema", "retry_seconds", "poll_interval", "writers", "readers"})

SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret"})
"""Parameters of libpq that are shown to nobody."""


def parse_url(url: str) -> dict[str, Any]:
    """Turn a URL into the settings of a store.

    Settings of the store may follow the parameters of libpq: ``postgresql://host/runs?schema=mine&sslmode=require``.

    Raises:
        ConfigurationError: If the URL has another form.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in ("postgresql", "postgres") or not rest.startswith("//"):
        # The URL itself may hold a password.
        raise ConfigurationError(
            "this is no PostgreSQL store URL: write postgresql://user@host:5432/database, or "
            "postgresql:///database?host=/directory for a Unix socket"
        )
    location, _, query = rest[2:].partition("?")
    settings: dict[str, Any] = {}
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _SETTINGS:
            settings[name] = value
        else:
            kept.append((name, value))
    tail = f"?{urlencode(kept, quote_via=quote)}" if kept else ""
    return settings | {"url": f"postgresql://{location}{tail}"}


def format_url(parameters: Mapping[str, Any], schema: str | None) -> str:
    """Return a URL for parameters of libpq, without secrets.

    Args:
        parameters: As ``psycopg.conninfo.conninfo_to_dict`` gives them.
        schema: The store's schema, if it is not the usual one.
    """
    rest = {name: str(value) for name, value in parameters.items() if name not in SECRETS}
    user = f"{quote(rest.pop('user'), safe='')}@" if "user" in rest else ""
    hosts = rest.get("host", "").split(",")
    ports = rest.get("port", "").split(",")
    place = ""
    # Sockets' directories, and lists that do not match, stay parameters.
    if not any(host.startswith(("/", "@")) for host in hosts) and len(ports) in (1, len(hosts)):
        rest.pop("host", None)
        rest.pop("port", None)
        ports = ports * len(hosts) if len(ports) == 1 else ports
        place = ",".join(
            (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
            for host, port in zip(hosts, ports, strict=True)
        )
    name = quote(rest.pop("dbname", ""), safe="")
    if schema is not None:
        rest["schema"] = schema
    tail = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    return f"postgresql://{user}{place}/{name}{tail}"
