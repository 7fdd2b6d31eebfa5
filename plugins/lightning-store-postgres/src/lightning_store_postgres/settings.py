"""How a store reaches its database, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import conninfo

from lightning_core.errors import ConfigurationError, StoreUnavailableError

from .url import SECRETS, format_url

__all__ = ["DEFAULT_SCHEMA", "ConnectionLostError", "ServerError", "Settings"]

DEFAULT_SCHEMA = "lightning_core"

# Notice within half a minute that the other side is gone, though nothing says so.
_LIVENESS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


class ConnectionLostError(Exception):
    """There is no connection, or there is none any more. What was sent may have been done or not."""


class ServerError(Exception):
    """The server refused a statement.

    Attributes:
        sqlstate: PostgreSQL's code of the error.
    """

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Settings:
    """How to open a store.

    Args:
        url: A URL or a connection string of libpq; ``None`` for what its environment variables say.
        schema: The schema that holds the tables.
        retry_seconds: How long to try to reach the server, in seconds, before a call fails.
        poll_interval: How often to look for changes while somebody waits, in seconds.
        writers: How many transactions may run at once.
        readers: How many connections are read from.
        clock: Tells the time, in seconds since the epoch; ``None`` for the server's.

    Raises:
        ConfigurationError: If libpq cannot read the URL.
    """

    def __init__(
        self,
        url: str | None,
        *,
        schema: str,
        retry_seconds: float,
        poll_interval: float,
        writers: int,
        readers: int,
        clock: Callable[[], float] | None,
    ) -> None:
        try:
            self.parameters: dict[str, Any] = conninfo.conninfo_to_dict(url or "")
        except psycopg.Error:
            # libpq's message may quote what was given, and with it the password.
            raise ConfigurationError(
                "the url of the PostgreSQL store cannot be read: write postgresql://user@host:5432/database, with "
                "special characters of user and password percent-encoded"
            ) from None
        self.url = url
        self.schema = schema
        self.retry_seconds = retry_seconds
        self.poll_interval = poll_interval
        self.writers = writers
        self.readers = readers
        self.clock = clock
        self.location = format_url(self.parameters, schema if schema != DEFAULT_SCHEMA else None)
        self._secrets = [str(self.parameters[name]) for name in SECRETS if self.parameters.get(name)]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``psycopg.connect``."""
        return {**_LIVENESS, "application_name": "lightning-store-postgres", **self.parameters}

    def hide(self, message: str) -> str:
        """Take secrets out of a message."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return message

    def unreachable(self, error: BaseException, seconds: float) -> StoreUnavailableError:
        """The error for a server that stays away."""
        return StoreUnavailableError(
            f"{self.location} cannot be reached, for {seconds:.0f} s by now: check that the server runs, that its "
            f"address is right and that it lets this user in ({self.hide(_one_line(error))})"
        )

    def explain(self, error: ServerError) -> StoreUnavailableError:
        """Say in this project's terms what an error of the server means, and what to do."""
        code, shown = error.sqlstate, self.hide(_one_line(error))
        where = self.location
        if code in ("53100", "53200") or code == "58030":
            return StoreUnavailableError(
                f"{where} cannot store more: its disk or memory is full, or failing. Make room there and try again "
                f"({shown})"
            )
        if code == "54000":
            return StoreUnavailableError(
                f"{where} cannot store an id this long: ids and keys have up to 2,000 bytes ({shown})"
            )
        if code == "42501":
            return StoreUnavailableError(
                f"{where}: this user may not use the schema {self.schema!r}: grant it, or create the schema for the "
                f"user ({shown})"
            )
        if code in ("42P01", "3F000"):
            return StoreUnavailableError(
                f"{where}: the tables in schema {self.schema!r} are gone; open the store again to make new ones "
                f"({shown})"
            )
        if code == "25006":
            return StoreUnavailableError(
                f"{where} is a read-only replica: give the address of the primary ({shown})"
            )
        return StoreUnavailableError(f"{where} cannot be read or written: {shown} (SQLSTATE {code})")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
