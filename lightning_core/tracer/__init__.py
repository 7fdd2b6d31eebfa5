"""Tracers: record what happens while an agent runs."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_tracer_agentops import AgentOpsTracer as AgentOpsTracer
    from lightning_tracer_otel import OtelTracer as OtelTracer

    from .base import BaseTracer as BaseTracer
    from .capture import LightningSpanProcessor as LightningSpanProcessor
    from .dummy import DummyTracer as DummyTracer

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "BaseTracer": "lightning_core.tracer.base",
        "DummyTracer": "lightning_core.tracer.dummy",
        "LightningSpanProcessor": "lightning_core.tracer.capture",
    },
    plugins={
        "OtelTracer": ("lightning_tracer_otel", "lightning-tracer-otel"),
        "AgentOpsTracer": ("lightning_tracer_agentops", "lightning-tracer-agentops"),
    },
)
