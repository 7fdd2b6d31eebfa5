"""Carrying the trace into threads and thread pools that an agent starts.

``contextvars`` do not follow a new thread. OpenTelemetry's own instrumentation of ``threading`` is not used:
up to 0.60b0 it breaks threads that were created before it was switched on, it misses subclasses that override
``run``, and the workers of a pool keep the context of whoever made the pool grow.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from opentelemetry import context as context_api

from lightning_core.tracer.capture import current_trace

__all__ = ["start_propagating", "stop_propagating"]

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_uses = 0
_start = threading.Thread.start
_submit = ThreadPoolExecutor.submit


def start_propagating() -> None:
    """Have threads that start inside a trace, and what is given to pools there, belong to it. Calls are counted."""
    global _uses, _start, _submit
    with _lock:
        _uses += 1
        # Another library may have wrapped ours meanwhile: then ours is still in place, and works again.
        if _uses == 1 and not _is_ours(threading.Thread.start):
            _start = threading.Thread.start
            threading.Thread.start = _start_in_context
        if _uses == 1 and not _is_ours(ThreadPoolExecutor.submit):
            _submit = ThreadPoolExecutor.submit
            ThreadPoolExecutor.submit = _submit_in_context


def stop_propagating() -> None:
    """Undo one :func:`start_propagating`; the last one leaves both classes as they were."""
    global _uses
    with _lock:
        _uses -= 1
        if _uses == 0 and threading.Thread.start is _start_in_context:
            threading.Thread.start = _start
        if _uses == 0 and ThreadPoolExecutor.submit is _submit_in_context:
            ThreadPoolExecutor.submit = _submit


def _is_ours(function: Any) -> bool:
    while function is not None:
        if function in (_start_in_context, _submit_in_context):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _in_context(function: Callable[P, R]) -> Callable[P, R]:
    context = context_api.get_current()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        token = context_api.attach(context)
        try:
            return function(*args, **kwargs)
        finally:
            context_api.detach(token)

    return run


@functools.wraps(threading.Thread.start)
def _start_in_context(self: threading.Thread) -> None:
    if _uses and current_trace() is not None:
        run = _in_context(self.run)

        def run_once() -> None:
            # The thread would otherwise refer to itself, and keep the trace for as long.
            del self.run
            run()

        self.run = run_once
    _start(self)


@functools.wraps(ThreadPoolExecutor.submit)
def _submit_in_context(
    self: ThreadPoolExecutor, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Future[R]:
    if not _uses or current_trace() is None:
        return _submit(self, fn, *args, **kwargs)
    fn = _in_context(fn)
    # A worker that the pool starts for this serves others later, so it belongs to no trace.
    token = context_api.attach(context_api.Context())
    try:
        return _submit(self, fn, *args, **kwargs)
    finally:
        context_api.detach(token)
