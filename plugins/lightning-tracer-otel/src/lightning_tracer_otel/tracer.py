"""The tracer: one root span per rollout, and below it whatever OpenTelemetry sees of the agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from opentelemetry.sdk.trace import TracerProvider

from lightning_core.tracer.capture import SpanRouter, private_provider
from lightning_core.tracer.listening import attach_router, detach_router
from lightning_core.tracer.shared import SharedTracer
from lightning_core.tracer.threads import start_propagating, stop_propagating

from .instrumentation import INSTRUMENTATIONS
from .providers import claim_global_provider, find_global_provider

__all__ = ["OtelTracer"]


class OtelTracer(SharedTracer):
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
        self._instrumented = INSTRUMENTATIONS.choose(instrument)
        self._propagate_threads = propagate_threads
        self._strict = instrument != "auto"
        self._global_provider = global_provider
        self._provider = private_provider(SpanRouter(), service_name=service_name)
        self._listening: list[TracerProvider] = []
        super().__init__(self._provider.get_tracer("lightning_tracer_otel"))

    def set_up(self) -> None:
        """Carry traces into threads, and instrument."""
        if self._global_provider:
            claim_global_provider(self._provider)
        if self._propagate_threads:
            start_propagating()
        INSTRUMENTATIONS.start(self._instrumented, self._provider, strict=self._strict)

    def take_back(self) -> None:
        """Undo it, and listen to no provider any more."""
        INSTRUMENTATIONS.stop(self._instrumented)
        if self._propagate_threads:
            stop_propagating()
        while self._listening:
            detach_router(self._listening.pop())

    def refresh(self) -> None:
        """Listen to the global provider. Programs may set it late, for instance when the agent's module is imported."""
        found = find_global_provider()
        if found is not None and found is not self._provider and found not in self._listening:
            attach_router(found)
            self._listening.append(found)

    def idle_settings(self) -> list[str]:
        """Name what was to be instrumented and is not imported; see :meth:`BaseTracer.idle_settings`."""
        unused = INSTRUMENTATIONS.find_unused(self._instrumented) if self._strict else []
        return [f"tracer.instrument names {name!r}, which the program has not imported" for name in unused]
