"""Tracers: record what happens while an agent runs."""

from lightning_core._lazy import lazy_module

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
