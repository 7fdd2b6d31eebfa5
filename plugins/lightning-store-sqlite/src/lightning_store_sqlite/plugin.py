"""Registers the ``sqlite`` store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lightning_core import Component, LightningStore, hookimpl

if TYPE_CHECKING:
    from .store import SqliteLightningStore

__all__ = ["SqliteConfig", "lightning_stores"]


class SqliteConfig(BaseModel):
    """Settings of the ``sqlite`` store."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        default=None,
        description="The database file; its directory must exist. None: a temporary file, removed on close.",
    )
    synchronous: Literal["full", "normal"] = Field(
        default="full",
        description=(
            "full: what was acknowledged survives the loss of power. normal: faster; it survives the death of "
            "the process, but a loss of power may take back the last moments."
        ),
    )
    busy_timeout: float = Field(
        default=30.0, gt=0, description="How long to wait for another process's write to end, in seconds."
    )
    poll_interval: float = Field(
        default=0.02,
        gt=0,
        description="How often, in seconds, to look for changes by other processes while somebody waits.",
    )
    must_exist: bool = Field(default=False, description="Refuse to make a new file.")


def _make(**settings: Any) -> SqliteLightningStore:
    from .store import SqliteLightningStore

    return SqliteLightningStore(**settings)


def _from_url(url: str) -> dict[str, Any]:
    from .url import parse_url

    return parse_url(url)


@hookimpl
def lightning_stores() -> Iterable[Component[LightningStore]]:
    """Register the store."""
    return [
        Component(
            name="sqlite",
            factory=_make,
            config=SqliteConfig,
            from_url=_from_url,
            summary="Durable store in one SQLite file that several processes may open.",
            api_version=1,
        )
    ]
