"""Listening to the user's tracer provider while a tracer is in use, and leaving it as it was."""

from __future__ import annotations

import logging
import threading
from typing import Any, cast
from weakref import WeakKeyDictionary

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import TracerProvider

from lightning_core.tracer.capture import SpanRouter

__all__ = ["attach_router", "claim_global_provider", "detach_router", "find_global_provider"]

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_routers: WeakKeyDictionary[TracerProvider, tuple[SpanRouter, int]] = WeakKeyDictionary()


def find_global_provider() -> TracerProvider | None:
    """Return the provider that the program has made the global one, if it is one of the SDK's."""
    provider = trace_api.get_tracer_provider()
    return provider if isinstance(provider, TracerProvider) else None


def claim_global_provider(provider: TracerProvider) -> None:
    """Make ``provider`` the global one, unless the program has one already."""
    if isinstance(trace_api.get_tracer_provider(), trace_api.ProxyTracerProvider):
        trace_api.set_tracer_provider(provider)


def attach_router(provider: TracerProvider) -> None:
    """Have a provider's spans routed to their traces. Calls are counted: one router serves them all."""
    with _lock:
        router, uses = _routers.get(provider, (None, 0))
        if router is None:
            router = SpanRouter()
            provider.add_span_processor(router)
        _routers[provider] = (router, uses + 1)


def detach_router(provider: TracerProvider) -> None:
    """Undo one :func:`attach_router`; the last one removes the router."""
    with _lock:
        entry = _routers.get(provider)
        if entry is None:
            return
        router, uses = entry
        if uses > 1:
            _routers[provider] = (router, uses - 1)
        elif _remove_processor(provider, router):
            del _routers[provider]
        else:
            # It stays and drops every span outside a trace; the next attach finds it again.
            _routers[provider] = (router, 0)
            logger.debug("the span router stays on %r, which keeps its processors elsewhere", provider)


def _remove_processor(provider: TracerProvider, router: SpanRouter) -> bool:
    # The SDK can add processors and has no way to remove one. It keeps them in a tuple, which it replaces
    # under a lock and reads without one.
    multi = cast(Any, getattr(provider, "_active_span_processor", None))
    lock = getattr(multi, "_lock", None)
    if lock is None or not isinstance(getattr(multi, "_span_processors", None), tuple):
        return False
    with lock:
        multi._span_processors = tuple(each for each in multi._span_processors if each is not router)
    return True
