"""The ``otel`` tracer of lightning-core: LLM calls, the user's own spans and emitted rewards, by OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tracer import OtelTracer as OtelTracer

__all__ = ["OtelTracer"]


def __getattr__(name: str) -> Any:
    # Selecting a plugin imports its package, and must not import what only its use needs.
    if name == "OtelTracer":
        from .tracer import OtelTracer

        return OtelTracer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
