"""The program's global tracer provider: finding it, and being it where there is none."""

from __future__ import annotations

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["claim_global_provider", "find_global_provider"]


def find_global_provider() -> TracerProvider | None:
    """Return the provider that the program has made the global one, if it is one of the SDK's."""
    provider = trace_api.get_tracer_provider()
    return provider if isinstance(provider, TracerProvider) else None


def claim_global_provider(provider: TracerProvider) -> None:
    """Make ``provider`` the global one, unless the program has one already."""
    if isinstance(trace_api.get_tracer_provider(), trace_api.ProxyTracerProvider):
        trace_api.set_tracer_provider(provider)
