"""Registers the ``otel`` tracer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lightning_core import BaseTracer, Component, hookimpl

if TYPE_CHECKING:
    from lightning_core.tracer.instrumentations import Instrumentations

    from .tracer import OtelTracer

__all__ = ["OtelConfig", "lightning_instrumentations", "lightning_tracers"]


class OtelConfig(BaseModel):
    """Settings of the ``otel`` tracer."""

    model_config = ConfigDict(extra="forbid")

    instrument: Literal["auto"] | list[str] = Field(
        default="auto",
        description=(
            "Libraries whose calls become spans, by name: openai, langchain, anthropic, openai-agents, litellm, or any "
            "other for which an OpenTelemetry instrumentation is installed. auto: those of the five that are installed."
        ),
    )
    service_name: str | None = Field(
        default=None,
        description="What spans name as their service. None: OTEL_SERVICE_NAME, else lightning-core.",
    )
    propagate_threads: bool = Field(
        default=True,
        description="Have threads and thread pools that an agent starts belong to its rollout.",
    )
    global_provider: bool = Field(
        default=False,
        description=(
            "Become the global tracer provider where the program has set none, so that spans made through "
            "opentelemetry.trace.get_tracer() are seen. It stays until the process ends."
        ),
    )


def _make(**settings: Any) -> OtelTracer:
    from .tracer import OtelTracer

    return OtelTracer(**settings)


@hookimpl
def lightning_tracers() -> Iterable[Component[BaseTracer]]:
    """Register the tracer."""
    return [
        Component(
            name="otel",
            factory=_make,
            config=OtelConfig,
            summary="LLM calls, your own OpenTelemetry spans and emitted rewards.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_instrumentations() -> Instrumentations:
    """Lend the tracer's instrumentations to ``instrument_all``."""
    from .instrumentation import INSTRUMENTATIONS

    return INSTRUMENTATIONS
