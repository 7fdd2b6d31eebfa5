"""The instrumentations that this package vouches for, and others of OpenTelemetry that are installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.trace import TracerProvider
from wrapt import register_post_import_hook

from lightning_core.tracer.instrumentations import Instrumentation, Instrumentations, missing_package

__all__ = ["INSTRUMENTATIONS"]

_GROUP = "opentelemetry_instrumentor"


def _openinference(
    name: str, instrumentor: str, *, sdk: str | None = None, library: str | None = None, **options: Any
) -> Instrumentation:
    """Describe one of OpenInference's. The extra has its name, and so have the library and its module by default."""
    needs = (sdk or name, f"openinference-instrumentation-{name}")
    return Instrumentation(
        name,
        partial(_make, f"openinference.instrumentation.{name.replace('-', '_')}", instrumentor),
        library or name,
        partial(missing_package, needs, f"'lightning-tracer-otel[{name}]'"),
        partial(_options, options),
    )


def _make(module: str, instrumentor: str) -> Any:
    return getattr(import_module(module), instrumentor)()


def _options(options: Mapping[str, Any], provider: TracerProvider) -> dict[str, Any]:
    from openinference.instrumentation import TraceConfig

    # Images are recorded whole, unless the user has set a limit. By default those of more than 32,000 characters are
    # replaced, and with them a part of what the model saw.
    limit = None if "OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH" in os.environ else sys.maxsize
    return {"tracer_provider": provider, "config": TraceConfig(base64_image_max_length=limit), **options}


def _others() -> Iterator[Instrumentation]:
    """Those that announce themselves, as OpenTelemetry's and Traceloop's do."""
    for each in entry_points(group=_GROUP):
        yield Instrumentation(each.name, partial(_load, each))


def _load(entry_point: EntryPoint) -> Any:
    return entry_point.load()()


INSTRUMENTATIONS = Instrumentations(
    "tracer 'otel'",
    [
        _openinference("openai", "OpenAIInstrumentor"),
        _openinference("langchain", "LangChainInstrumentor", sdk="langchain-core", library="langchain_core"),
        _openinference("anthropic", "AnthropicInstrumentor"),
        # The processors that the program has set go on receiving the SDK's traces.
        _openinference(
            "openai-agents", "OpenAIAgentsInstrumentor", library="agents", exclusive_processor=False
        ),
        _openinference("litellm", "LiteLLMInstrumentor"),
    ],
    when_imported=register_post_import_hook,
    others=_others,
)
"""Switched on and off once for all tracers of the process."""
