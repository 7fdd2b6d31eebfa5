"""Registers the ``legacy`` runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import BaseRunner, Component, hookimpl

if TYPE_CHECKING:
    from .runner import AgentRunner

__all__ = ["LegacyRunnerConfig", "lightning_runners"]


class LegacyRunnerConfig(BaseModel):
    """Settings of the ``legacy`` runner."""

    model_config = ConfigDict(extra="forbid")

    endpoint: str = Field(description="The root URL of the v0.1 server, such as http://127.0.0.1:8000.")
    poll_interval: float = Field(
        5.0, ge=0, description="How long to wait before asking again when there is no task, in seconds."
    )
    timeout: float = Field(10.0, gt=0, description="How long an answer may take, in seconds.")
    token: SecretStr | None = Field(
        None, description="The server's token. None: from the variable LIGHTNING_CORE_LEGACY_TOKEN."
    )
    retry_seconds: float = Field(
        60.0, ge=0, description="How long to try again while the server cannot be reached, in seconds."
    )
    max_tasks: int | None = Field(None, ge=1, description="End after so many tasks. None: never.")


def _make(
    endpoint: str,
    poll_interval: float,
    timeout: float,
    token: SecretStr | None,
    retry_seconds: float,
    max_tasks: int | None,
    **injected: Any,
) -> AgentRunner:
    from .client import AgentLightningClient
    from .runner import AgentRunner

    client = AgentLightningClient(
        endpoint,
        poll_interval,
        timeout,
        token=token.get_secret_value() if token else None,
        retry_seconds=retry_seconds,
    )
    return AgentRunner(client=client, max_tasks=max_tasks, **injected)


@hookimpl
def lightning_runners() -> Iterable[Component[BaseRunner[Any]]]:
    """Register the runner."""
    return [
        Component(
            name="legacy",
            factory=_make,
            config=LegacyRunnerConfig,
            summary="Runs an agent on the tasks of a v0.1 server.",
            api_version=1,
        )
    ]
