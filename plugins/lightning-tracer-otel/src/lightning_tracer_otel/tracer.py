"""The tracer: one root span per rollout, and below it whatever OpenTelemetry sees of the agent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from lightning_core.store.base import LightningStore
from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.capture import (
    LightningSpanProcessor,
    SpanRouter,
    TraceContext,
    last_trace,
    private_provider,
)
from lightning_core.tracer.listening import attach_router, detach_router
from lightning_core.tracer.threads import start_propagating, stop_propagating

from .instrumentation import check, find_installed, find_unused, start_instrumenting, stop_instrumenting
from .providers import claim_global_provider, find_global_provider

__all__ = ["OtelTracer"]


class OtelTracer(BaseTracer):
    """Records LLM calls, the user's own spans, and what the emitters emit, under one root span per trace.

    It never replaces the program's global tracer provider, and nothing leaves the process by its doing: spans
    of the global provider are listened to, and still go where the program sends them; everything else is
    recorded with a private provider that has no exporter.

    It is set up by :meth:`init_worker`, or else by the first trace, and takes everything back when the last
    of its workers is torn down. Several workers may share one tracer, and several tracers one process.

    Args:
        instrument: Libraries whose calls become spans, by name: ``openai``, ``langchain``, ``anthropic``,
            ``openai-agents``, ``litellm``, or any other for which an OpenTelemetry instrumentation is installed.
            ``"auto"``: those of the five that are installed, along with their instrumentations.
        service_name: What spans name as their service; by default ``OTEL_SERVICE_NAME``, else
            ``lightning-core``.
        propagate_threads: Have threads and thread pools that an agent starts belong to its trace.
        global_provider: Become the global tracer provider where the program has set none by the time of the
            set-up, so that spans made through ``opentelemetry.trace.get_tracer()`` are seen. It stays.

    Raises:
        ConfigurationError: If something to instrument is not installed; the message says what to install.
    """

    def __init__(
        self,
        *,
        instrument: Literal["auto"] | Sequence[str] = "auto",
        service_name: str | None = None,
        propagate_threads: bool = True,
        global_provider: bool = False,
    ) -> None:
        names = find_installed() if instrument == "auto" else list(dict.fromkeys(instrument))
        if instrument != "auto":
            check(names)
        self._instrumented = names
        self._propagate_threads = propagate_threads
        self._strict = instrument != "auto"
        self._global_provider = global_provider
        self._provider = private_provider(SpanRouter(), service_name=service_name)
        self._tracer = self._provider.get_tracer("lightning_tracer_otel")
        self._lock = threading.RLock()
        self._users = 0
        self._workers = 0
        self._set_up = False
        self._listening: list[TracerProvider] = []
        self._latest: LightningSpanProcessor | None = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Count one more that will call :meth:`teardown`, such as each of several runners."""
        super().init(*args, **kwargs)
        with self._lock:
            self._users += 1

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Set up for one more worker."""
        super().init_worker(worker_id, *args, **kwargs)
        with self._lock:
            self._start()
            self._workers += 1

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Take everything back, if no other worker needs it."""
        with self._lock:
            self._workers = max(0, self._workers - 1)
            if self._workers == 0:
                self._stop()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Take everything back, whichever worker needs it, unless others that called :meth:`init` still use it."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                self._workers = 0
                self._stop()

    def _start(self) -> None:
        if not self._set_up:
            if self._global_provider:
                claim_global_provider(self._provider)
            self._set_up = True
            if self._propagate_threads:
                start_propagating()
            try:
                start_instrumenting(self._instrumented, self._provider, strict=self._strict)
            except BaseException:
                self._stop()
                raise
        # Programs may set their provider late, for instance when the module of the agent is imported.
        found = find_global_provider()
        if found is not None and found is not self._provider and found not in self._listening:
            attach_router(found)
            self._listening.append(found)

    def _stop(self) -> None:
        if self._set_up:
            self._set_up = False
            stop_instrumenting(self._instrumented)
            if self._propagate_threads:
                stop_propagating()
        while self._listening:
            detach_router(self._listening.pop())

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Open a trace whose root span is called ``name``; see :meth:`BaseTracer.trace_context`."""
        with self._lock:
            self._start()
        self._latest = LightningSpanProcessor(store, rollout_id, attempt_id, tracer=self._tracer)
        return TraceContext(self._latest, root=name or "trace")

    def idle_settings(self) -> list[str]:
        """Name what was to be instrumented and is not imported; see :meth:`BaseTracer.idle_settings`."""
        unused = find_unused(self._instrumented) if self._strict else []
        return [f"tracer.instrument names {name!r}, which the program has not imported" for name in unused]

    def get_last_trace(self) -> list[ReadableSpan]:
        """Return the spans of the last trace; see :meth:`BaseTracer.get_last_trace`."""
        trace = last_trace(self._tracer) or self._latest
        return trace.spans if trace is not None else []
