"""Registers the ``agentops`` tracer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lightning_core import BaseTracer, Component, hookimpl

if TYPE_CHECKING:
    from lightning_core.tracer.instrumentations import Instrumentations

    from .tracer import AgentOpsTracer

__all__ = ["AgentOpsConfig", "lightning_instrumentations", "lightning_tracers"]


class AgentOpsConfig(BaseModel):
    """Settings of the ``agentops`` tracer."""

    model_config = ConfigDict(extra="forbid")

    agentops_managed: bool = Field(
        default=True,
        description=(
            "Have the tracer start AgentOps' client where there is an api_key. False: your program calls "
            "agentops.init() itself, and spans of AgentOps' own provider are recorded as well."
        ),
    )
    instrument_managed: bool = Field(
        default=True,
        description="Instrument the libraries below while a runner works. False: nothing is instrumented.",
    )
    daemon: bool = Field(default=True, description="No effect: there is no local AgentOps server to run.")
    instrument: Literal["auto"] | list[str] = Field(
        default="auto",
        description=(
            "Libraries whose calls become spans, by the name of their module: openai, or any other that AgentOps "
            "instruments. auto: openai, if it is installed."
        ),
    )
    api_key: SecretStr | None = Field(
        default=None,
        description=(
            "A key of AgentOps: send every trace there. None: nothing leaves the machine, whatever the "
            "environment says."
        ),
    )
    endpoint: str = Field(
        default="https://api.agentops.ai", description="Where an api_key is exchanged for a token."
    )
    exporter_endpoint: str = Field(
        default="https://otlp.agentops.ai/v1/traces",
        description="Where traces are sent, if there is an api_key.",
    )
    service_name: str | None = Field(
        default=None,
        description="What spans name as their service. None: OTEL_SERVICE_NAME, else lightning-core.",
    )
    propagate_threads: bool = Field(
        default=True,
        description="Have threads and thread pools that an agent starts belong to its rollout.",
    )


def _make(**settings: Any) -> AgentOpsTracer:
    from .tracer import AgentOpsTracer

    return AgentOpsTracer(**settings)


@hookimpl
def lightning_tracers() -> Iterable[Component[BaseTracer]]:
    """Register the tracer."""
    return [
        Component(
            name="agentops",
            factory=_make,
            config=AgentOpsConfig,
            summary="LLM calls as AgentOps records them, LangChain, and emitted rewards; offline unless given a key.",
            api_version=1,
        )
    ]


@hookimpl
def lightning_instrumentations() -> Instrumentations:
    """Lend the tracer's instrumentations to ``instrument_all``."""
    from .instrumentors import INSTRUMENTATIONS

    return INSTRUMENTATIONS
