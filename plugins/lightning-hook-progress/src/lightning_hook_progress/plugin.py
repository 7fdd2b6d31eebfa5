"""Registers the ``progress`` hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from lightning_core import Component, Hook, hookimpl

if TYPE_CHECKING:
    from .hook import ProgressHook

__all__ = ["ProgressConfig", "lightning_hooks"]


class ProgressConfig(BaseModel):
    """Settings of the ``progress`` hook."""

    model_config = ConfigDict(extra="forbid")

    total: int | None = Field(
        default=None,
        ge=1,
        description="How many rollouts there will be. None: as many as the store knows of so far.",
    )
    interval: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="The shortest time between two lines, in seconds, where there is no terminal.",
    )
    terminal: bool | None = Field(
        default=None, description="true: draw a bar. false: write lines. None: a bar if there is a terminal."
    )


def _make(**settings: Any) -> ProgressHook:
    from .hook import ProgressHook

    return ProgressHook(**settings)


@hookimpl
def lightning_hooks() -> Iterable[Component[Hook]]:
    """Register the hook."""
    return [
        Component(
            name="progress",
            factory=_make,
            config=ProgressConfig,
            summary="Progress, running mean reward and throughput: a bar on a terminal, quiet lines elsewhere.",
            api_version=1,
        )
    ]
