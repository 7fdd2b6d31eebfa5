"""AgentOps' instrumentations, by the names of the modules that they instrument."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import TracerProvider
from wrapt import register_post_import_hook

from lightning_core.tracer.instrumentations import Instrumentation, Instrumentations

from .runs import RunTracerProvider

__all__ = ["INSTRUMENTATIONS"]

_PROVIDERS = "agentops.instrumentation.providers"
_AGENTS = "agentops.instrumentation.agentic"
_KNOWN = {
    "openai": ("lightning_tracer_agentops.openai_calls", "WholeOpenaiInstrumentor"),
    "anthropic": (f"{_PROVIDERS}.anthropic", "AnthropicInstrumentor"),
    "google.genai": (f"{_PROVIDERS}.google_genai", "GoogleGenaiInstrumentor"),
    "ibm_watsonx_ai": (f"{_PROVIDERS}.ibm_watsonx_ai", "WatsonxInstrumentor"),
    "mem0": (f"{_PROVIDERS}.mem0", "Mem0Instrumentor"),
    "agents": (f"{_AGENTS}.openai_agents", "OpenAIAgentsInstrumentor"),
    "agno": (f"{_AGENTS}.agno", "AgnoInstrumentor"),
    "autogen": (f"{_AGENTS}.ag2", "AG2Instrumentor"),
    "crewai": (f"{_AGENTS}.crewai", "CrewaiInstrumentor"),
    "google.adk": (f"{_AGENTS}.google_adk", "GooogleAdkInstrumentor"),
    "haystack": (f"{_AGENTS}.haystack", "HaystackInstrumentor"),
    "langgraph": (f"{_AGENTS}.langgraph", "LanggraphInstrumentor"),
    "smolagents": (f"{_AGENTS}.smolagents", "SmolagentsInstrumentor"),
    "xpander_sdk": (f"{_AGENTS}.xpander", "XpanderInstrumentor"),
}


def _instrumentations() -> Iterator[Instrumentation]:
    for name, (module, instrumentor) in _KNOWN.items():
        yield Instrumentation(
            name, partial(_make, module, instrumentor), name, partial(_missing, name), _options
        )


def _make(module: str, instrumentor: str) -> Any:
    # AgentOps is not imported before the library is.
    return getattr(import_module(module), instrumentor)()


def _missing(name: str) -> str | None:
    try:
        found = find_spec(name) is not None
    except ModuleNotFoundError:
        # The package around it is not there.
        found = False
    return None if found else f"there is no module {name!r}. Install the library that has it"


def _options(provider: TracerProvider) -> dict[str, Any]:
    return {"tracer_provider": RunTracerProvider(provider), "meter_provider": NoOpMeterProvider()}


INSTRUMENTATIONS = Instrumentations(
    "tracer 'agentops'", _instrumentations(), when_imported=register_post_import_hook, default=["openai"]
)
"""Switched on and off once for all tracers of the process."""
