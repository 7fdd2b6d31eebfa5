"""Registers the ``legacy`` algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import BaseAlgorithm, Component, hookimpl

if TYPE_CHECKING:
    from .algorithm import LegacyAlgorithm

__all__ = ["LegacyConfig", "lightning_algorithms"]


class LegacyConfig(BaseModel):
    """Settings of the ``legacy`` algorithm."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(
        "127.0.0.1",
        description="The interface of the server. Any other than the loopback needs a token.",
    )
    port: int = Field(8000, ge=1, le=65535, description="The port of the server.")
    task_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="How long a client may have a task before it is handed out again, in seconds.",
    )
    max_requeues: int = Field(5, ge=0, description="How often that happens to a task, before it is given up.")
    token: SecretStr | None = Field(
        None,
        description="What clients must show. None: from the variable LIGHTNING_CORE_LEGACY_TOKEN, if it is set.",
    )
    poll_interval: float = Field(
        1.0, ge=0, description="How long the workers of fit wait before they ask again, in seconds."
    )


def _make(**settings: Any) -> LegacyAlgorithm:
    from .algorithm import LegacyAlgorithm

    token: SecretStr | None = settings.pop("token")
    return LegacyAlgorithm(token=token.get_secret_value() if token else None, **settings)


@hookimpl
def lightning_algorithms() -> Iterable[Component[BaseAlgorithm]]:
    """Register the algorithm."""
    return [
        Component(
            name="legacy",
            factory=_make,
            config=LegacyConfig,
            summary="Has v0.1 clients run every task once and reports.",
            api_version=1,
        )
    ]
