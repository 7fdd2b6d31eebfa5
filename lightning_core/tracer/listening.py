"""Listening to a tracer provider that is not ours, and leaving it as it was."""

from __future__ import annotations

import logging
import threading
from typing import Any, cast
from weakref import WeakKeyDictionary

from opentelemetry.sdk.trace import TracerProvider

from lightning_core.tracer.capture import SpanRouter

__all__ = ["attach_router", "detach_router"]

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_routers: WeakKeyDictionary[TracerProvider, tuple[SpanRouter, int]] = WeakKeyDictionary()


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
