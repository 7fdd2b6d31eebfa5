"""Registers the ``http`` store and the ``client-server`` strategy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import Component, ExecutionStrategy, LightningStore, hookimpl

if TYPE_CHECKING:
    from .client import LightningStoreClient
    from .strategy import ClientServerExecutionStrategy

__all__ = ["ClientServerConfig", "HttpConfig", "lightning_stores", "lightning_strategies"]


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
        default=60.0,
        ge=0,
        description="How long to try again while the server cannot be reached, in seconds.",
    )
    compress: bool | None = Field(
        default=None,
        description="Compress what is sent and received. None: unless the server is on this machine.",
    )
    must_exist: bool = Field(
        default=False, description="Ignored: the server has a store, or does not answer."
    )


class ClientServerConfig(BaseModel):
    """Settings of the ``client-server`` strategy."""

    model_config = ConfigDict(extra="forbid")

    n_runners: int = Field(1, ge=1, description="How many runner processes take rollouts at the same time.")
    role: Literal["both", "algorithm", "runner"] | None = Field(
        None, description="Which sides are started from here; none: ``LIGHTNING_CORE_ROLE``, else both."
    )
    server_host: str | None = Field(
        None,
        description=(
            "The interface of the server, or the machine that has it; none: ``LIGHTNING_CORE_SERVER_HOST``, else "
            "127.0.0.1."
        ),
    )
    server_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description=(
            "Its port, 0 for a free one; none: ``LIGHTNING_CORE_SERVER_PORT``, else a free one for both, 4747 for a "
            "single side."
        ),
    )
    token: SecretStr | None = Field(
        None,
        description="What both sides know; none: ``LIGHTNING_CORE_STORE_TOKEN``, else drawn, if both start here.",
    )
    main_process: Literal["algorithm", "runner"] = Field(
        "algorithm", description="Which side runs in this process; runner: to stop in it with a debugger."
    )
    start_method: Literal["spawn", "fork", "forkserver"] = Field(
        "spawn", description="How processes are started; see ``multiprocessing``."
    )
    graceful_seconds: float = Field(
        5.0,
        ge=0,
        description="Seconds in which running rollouts may end once the run is over or interrupted.",
    )
    terminate_seconds: float = Field(
        5.0, ge=0, description="Seconds in which a process may end after an interrupt, and after SIGTERM."
    )
    startup_seconds: float = Field(
        120.0,
        gt=0,
        description="Seconds in which a process must start, and the other side's server be there.",
    )
    max_restarts: int = Field(
        10, ge=0, description="Runner processes that are replaced within ten minutes before that is an error."
    )
    retry_seconds: float = Field(
        60.0, ge=0, description="Seconds for which the server may be out of reach before a runner leaves."
    )


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


def _make_strategy(**settings: Any) -> ClientServerExecutionStrategy:
    from .strategy import ClientServerExecutionStrategy

    token: SecretStr | None = settings.pop("token")
    return ClientServerExecutionStrategy(token=token.get_secret_value() if token else None, **settings)


@hookimpl
def lightning_strategies() -> Iterable[Component[ExecutionStrategy]]:
    """Register the strategy."""
    return [
        Component(
            name="client-server",
            factory=_make_strategy,
            config=ClientServerConfig,
            summary="Runs the runners in processes, here or on other machines, over HTTP.",
            api_version=1,
            aliases=("cs",),
        )
    ]
