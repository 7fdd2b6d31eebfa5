"""The tracer: one root span per rollout, and below it what AgentOps' instrumentations and LangChain tell."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr

from lightning_core.errors import ConfigurationError
from lightning_core.tracer.capture import SpanRouter, private_provider
from lightning_core.tracer.listening import attach_router, detach_router
from lightning_core.tracer.shared import SharedTracer
from lightning_core.tracer.threads import start_propagating, stop_propagating

from .instrumentors import INSTRUMENTATIONS
from .runs import RunTracer

if TYPE_CHECKING:
    from .callbacks import LangchainCallbackHandler
    from .client import Client

__all__ = ["AgentOpsTracer"]

logger = logging.getLogger(__name__)


class AgentOpsTracer(SharedTracer):
    """Records LLM calls as AgentOps does, runs of LangChain, and what the emitters emit, under one root span per trace.

    Nothing leaves the machine unless there is an ``api_key``; ``AGENTOPS_API_KEY`` in the environment is not asked. The
    program's global tracer provider is never replaced, nor listened to.

    It is set up by :meth:`init_worker`, or else by the first trace, and takes everything back when the last of its
    workers is torn down. Several workers may share one tracer, and several tracers one process.

    Args:
        agentops_managed: Start AgentOps' client where there is an ``api_key``. If false, the program calls
            ``agentops.init`` itself, and spans of AgentOps' own provider are recorded as well.
        instrument_managed: Instrument libraries.
        daemon: Without effect: there is no local AgentOps server to run.
        instrument: Libraries whose calls become spans, by the name of their module: ``openai``, or any other that
            AgentOps instruments. ``"auto"``: ``openai``, if it is installed.
        api_key: A key of AgentOps, to have all traces sent there.
        endpoint: Where an ``api_key`` is exchanged for a token.
        exporter_endpoint: Where traces are sent, if there is an ``api_key``.
        service_name: What spans name as their service; by default ``OTEL_SERVICE_NAME``, else ``lightning-core``.
        propagate_threads: Have threads and thread pools that an agent starts belong to its trace.

    Raises:
        ConfigurationError: If something to instrument is unknown or not installed; or if there is a key and AgentOps
            is not managed.
    """

    def __init__(
        self,
        agentops_managed: bool = True,
        instrument_managed: bool = True,
        daemon: bool = True,
        *,
        instrument: Literal["auto"] | Sequence[str] = "auto",
        api_key: SecretStr | str | None = None,
        endpoint: str = "https://api.agentops.ai",
        exporter_endpoint: str = "https://otlp.agentops.ai/v1/traces",
        service_name: str | None = None,
        propagate_threads: bool = True,
    ) -> None:
        if api_key and not agentops_managed:
            raise ConfigurationError(
                "tracer 'agentops' is given an api_key, and told by agentops_managed=False to leave AgentOps alone: "
                "pass the key to your own agentops.init(), or leave agentops_managed out"
            )
        names = INSTRUMENTATIONS.choose(instrument)
        self._strict = instrument != "auto"
        self.agentops_managed = agentops_managed
        self.instrument_managed = instrument_managed
        self.daemon = daemon
        self._instrumented = names if instrument_managed else []
        self._propagate_threads = propagate_threads
        self._provider = private_provider(SpanRouter(), service_name=service_name)
        self._listening: list[TracerProvider] = []
        self._client: Client | None = None
        if api_key:
            from .client import Client

            key = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
            self._client = Client(self._provider, key, endpoint, exporter_endpoint)
        super().__init__(RunTracer(self._provider.get_tracer("lightning_tracer_agentops")))

    def set_up(self) -> None:
        """Instrument, and start the client if there is a key."""
        if self._propagate_threads:
            start_propagating()
        INSTRUMENTATIONS.start(self._instrumented, self._provider, strict=self._strict)
        if self._client is not None:
            self._client.start()

    def take_back(self) -> None:
        """Undo it, once what is under way to AgentOps has arrived."""
        INSTRUMENTATIONS.stop(self._instrumented)
        if self._propagate_threads:
            stop_propagating()
        while self._listening:
            detach_router(self._listening.pop())
        if self._client is not None:
            self._client.stop()

    def refresh(self) -> None:
        """Listen to AgentOps' own provider, if the program has called ``agentops.init``."""
        core: Any = sys.modules.get("agentops.sdk.core")
        provider = core.tracer.provider if core is not None and core.tracer.initialized else None
        known = (self._provider, *self._listening)
        if isinstance(provider, TracerProvider) and provider not in known:
            attach_router(provider)
            self._listening.append(provider)

    def idle_settings(self) -> list[str]:
        """Say that ``daemon`` has no effect, if somebody set it; see :meth:`BaseTracer.idle_settings`."""
        return (
            []
            if self.daemon
            else ["tracer.daemon is false, and there is no local AgentOps server it could be about"]
        )

    def get_langchain_callback_handler(self, tags: list[str] | None = None) -> LangchainCallbackHandler:
        """Make a handler that records runs of LangChain: chains, tools, retrievers and calls of models.

        Pass it along with a call: ``chain.invoke(..., config={"callbacks": [handler]})``. One handler serves any number
        of rollouts at once; it may be made before the tracer is set up.

        Args:
            tags: Tags of every span that it makes.

        Raises:
            ConfigurationError: If ``langchain-core`` is not installed.
        """
        try:
            from .callbacks import LangchainCallbackHandler
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "langchain_core":
                raise
            raise ConfigurationError(
                "a callback handler for LangChain needs langchain-core. "
                "To get it: pip install 'lightning-tracer-agentops[langchain]'"
            ) from None
        return LangchainCallbackHandler(self._provider.get_tracer("lightning_tracer_agentops"), tags)
