"""Registers the ``http`` store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import Component, LightningStore, hookimpl

if TYPE_CHECKING:
    from .client import LightningStoreClient

__all__ = ["HttpConfig", "lightning_stores"]


class HttpConfig(BaseModel):
    """Settings of the ``http`` store."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="Where the server is, such as http://127.0.0.1:4747.")
    token: SecretStr | None = Field(
        default=None, description="The server's token. None: from the variable LIGHTNING_CORE_STORE_TOKEN."
    )
    nonce: str | None = Field(
        default=None,
        description="Talk to the server of this nonce only. None: to the one that answers first, and no other.",
    )
    retry_seconds: float = Field(
        default=60.0, ge=0, description="How long to try again while the server cannot be reached, in seconds."
    )
    compress: bool | None = Field(
        default=None, description="Compress what is sent and received. None: unless the server is on this machine."
    )
    must_exist: bool = Field(default=False, description="Ignored: the server has a store, or does not answer.")


def _make(**settings: Any) -> LightningStoreClient:
    from .client import LightningStoreClient

    del settings["must_exist"]
    token: SecretStr | None = settings.pop("token")
    return LightningStoreClient(token=token.get_secret_value() if token else None, **settings)


def _from_url(url: str) -> dict[str, Any]:
    return {"url": url}


@hookimpl
def lightning_stores() -> Iterable[Component[LightningStore]]:
    """Register the store."""
    return [
        Component(
            name="http",
            factory=_make,
            config=HttpConfig,
            from_url=_from_url,
            summary="The store of a LightningStoreServer, on this machine or another.",
            api_version=1,
            aliases=("https",),
        )
    ]
