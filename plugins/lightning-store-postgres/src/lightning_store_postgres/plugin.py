"""Registers the ``postgres`` store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import Component, LightningStore, hookimpl

if TYPE_CHECKING:
    from .store import PostgresLightningStore

__all__ = ["PostgresConfig", "lightning_stores"]


class PostgresConfig(BaseModel):
    """Settings of the ``postgres`` store."""

    model_config = ConfigDict(extra="forbid")

    url: SecretStr | None = Field(
        default=None,
        description=(
            "Where the database is, such as postgresql://user@host:5432/database, with any parameter of libpq. "
            "None: what libpq's environment variables say."
        ),
    )
    schema_name: str = Field(
        default="lightning_core",
        alias="schema",
        pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,47}$",
        description="The schema that holds the tables; several stores may share a database, each in its own.",
    )
    retry_seconds: float = Field(
        default=30.0,
        gt=0,
        description="How long to go on trying, in seconds, when the server is away, before a call fails.",
    )
    poll_interval: float = Field(
        default=2.0,
        gt=0,
        description="How often, in seconds, to look for changes that no notification told of, while somebody waits.",
    )
    writers: int = Field(default=2, ge=1, le=16, description="How many transactions may run at once.")
    readers: int = Field(default=2, ge=1, le=16, description="How many connections are read from.")


def _make(**settings: Any) -> PostgresLightningStore:
    from .store import PostgresLightningStore

    url = settings.pop("url", None)
    settings["schema"] = settings.pop("schema_name", "lightning_core")
    return PostgresLightningStore(url.get_secret_value() if url is not None else None, **settings)


def _from_url(url: str) -> dict[str, Any]:
    from .url import parse_url

    return parse_url(url)


@hookimpl
def lightning_stores() -> Iterable[Component[LightningStore]]:
    """Register the store."""
    return [
        Component(
            name="postgres",
            factory=_make,
            config=PostgresConfig,
            from_url=_from_url,
            summary="Durable store in a PostgreSQL database that many processes and machines may share.",
            api_version=1,
            aliases=("postgresql",),
        )
    ]
