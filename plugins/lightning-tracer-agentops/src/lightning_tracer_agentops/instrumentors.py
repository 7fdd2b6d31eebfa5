"""Switching AgentOps' instrumentations on and off, once for all tracers of the process."""

from __future__ import annotations

import difflib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import TracerProvider
from wrapt import register_post_import_hook

from lightning_core.errors import ConfigurationError, TraceError

__all__ = ["check", "find_installed", "start_instrumenting", "stop_instrumenting"]

logger = logging.getLogger(__name__)

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
_BY_DEFAULT = ("openai",)

_lock = threading.Lock()
_uses: Counter[str] = Counter()
_provider: TracerProvider | None = None
_hooked: set[str] = set()
_ours: dict[str, Any] = {}


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        # The package around it is not.
        return False


def find_installed() -> list[str]:
    """Return the libraries that are instrumented by default and are installed; imports none."""
    return [name for name in _BY_DEFAULT if _is_installed(name)]


def check(names: Sequence[str]) -> None:
    """Refuse names that cannot be instrumented.

    Raises:
        ConfigurationError: If AgentOps does not know a library, or it is not installed.
    """
    for name in names:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"tracer 'agentops' cannot instrument {name!r}: {hint}AgentOps knows {', '.join(_KNOWN)}"
            )
        if not _is_installed(name):
            raise ConfigurationError(
                f"tracer 'agentops' cannot instrument {name!r}, since there is no module of that name: install the "
                "library, or take it out of `instrument`"
            )


def start_instrumenting(names: Sequence[str], provider: TracerProvider, *, strict: bool) -> None:
    """Have these libraries report their calls to ``provider``. Calls are counted.

    A library that is not imported yet is instrumented when it is, and AgentOps is not imported before that. If another
    tracer of this process instruments it already, its spans go on going to that tracer's provider, which is as good:
    both route by context.

    Args:
        names: The libraries.
        provider: Where their calls are reported.
        strict: Whether a library that cannot be instrumented is an error, rather than a line in the log.

    Raises:
        TraceError: If an instrumentation refuses, for instance because the library is too old for it.
    """
    global _provider
    with _lock:
        _provider = provider
        _uses.update(names)
    for name in names:
        if name in sys.modules:
            if strict:
                _switch_on(name)
            else:
                _switch_on_quietly(name)
        elif name not in _hooked:
            _hooked.add(name)
            # Quietly in any case: it is the user's own import that would fail.
            hook: Callable[[object], None] = lambda module, name=name: _switch_on_quietly(name)  # noqa: E731
            register_post_import_hook(hook, name)


def _switch_on_quietly(name: str) -> None:
    try:
        _switch_on(name)
    except TraceError as error:
        logger.warning("%s. Its calls are not traced", error)
    except Exception:
        logger.exception("%r cannot be instrumented. Its calls are not traced", name)


def _switch_on(name: str) -> None:
    module, class_name = _KNOWN[name]
    if not _uses[name]:
        return
    # Not under the lock: another thread may be importing the library, and be about to call the hook above.
    import_module(name)
    make: type[Any] = getattr(import_module(module), class_name)
    instrumentor = make()
    with _lock:
        if not _uses[name] or name in _ours:
            return
        if _is_theirs(make):
            logger.info("%s is instrumented by the program itself, and stays so", name)
            return
        instrumentor.instrument(tracer_provider=_provider, meter_provider=NoOpMeterProvider())
        if not instrumentor.is_instrumented_by_opentelemetry:
            raise TraceError(
                f"AgentOps' instrumentation of {name!r} refuses the installed version of the library, which needs to "
                f"be one of: {', '.join(instrumentor.instrumentation_dependencies())}"
            )
        _ours[name] = instrumentor


def _is_theirs(instrumentor: type[Any]) -> bool:
    """Say whether the program has instrumented the library; what ours is made of counts too."""
    instances: list[Any] = [getattr(each, "_instance", None) for each in instrumentor.__mro__]
    return any(each is not None and each.is_instrumented_by_opentelemetry for each in instances)


def stop_instrumenting(names: Sequence[str]) -> None:
    """Undo one :func:`start_instrumenting`; the last one leaves the libraries as they were."""
    with _lock:
        for name in names:
            _uses[name] -= 1
            if _uses[name] <= 0:
                del _uses[name]
                instrumentor = _ours.pop(name, None)
                if instrumentor is not None and instrumentor.is_instrumented_by_opentelemetry:
                    instrumentor.uninstrument()
