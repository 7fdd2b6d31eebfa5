"""Switching instrumentations of other libraries on and off, once for all tracers of the process."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import Any

from opentelemetry.trace import TracerProvider
from wrapt import register_post_import_hook

from lightning_core.errors import ConfigurationError, TraceError

__all__ = ["check", "find_installed", "find_unused", "start_instrumenting", "stop_instrumenting"]

logger = logging.getLogger(__name__)

_GROUP = "opentelemetry_instrumentor"


@dataclass(frozen=True)
class _Known:
    """An instrumentation that this package vouches for.

    Attributes:
        sdk: The distribution that is instrumented.
        library: Its module. Other code may have one of the same name.
        distribution: The distribution of the instrumentation.
        module: Its module.
        instrumentor: The class that switches it on.
        options: What to tell that class.
    """

    sdk: str
    library: str
    distribution: str
    module: str
    instrumentor: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _openinference(name: str, sdk: str, library: str, instrumentor: str, **options: Any) -> _Known:
    module = f"openinference.instrumentation.{name.replace('-', '_')}"
    return _Known(sdk, library, f"openinference-instrumentation-{name}", module, instrumentor, options)


_KNOWN = {
    "openai": _openinference("openai", "openai", "openai", "OpenAIInstrumentor"),
    "langchain": _openinference("langchain", "langchain-core", "langchain_core", "LangChainInstrumentor"),
    "anthropic": _openinference("anthropic", "anthropic", "anthropic", "AnthropicInstrumentor"),
    "openai-agents": _openinference(
        "openai-agents",
        "openai-agents",
        "agents",
        "OpenAIAgentsInstrumentor",
        # The processors that the program has set go on receiving the SDK's traces.
        exclusive_processor=False,
    ),
    "litellm": _openinference("litellm", "litellm", "litellm", "LiteLLMInstrumentor"),
}

_lock = threading.Lock()
_uses: Counter[str] = Counter()
_provider: TracerProvider | None = None
_hooked: set[str] = set()
_ours: dict[str, Any] = {}


def find_installed() -> list[str]:
    """Return the known libraries that are installed along with their instrumentations; imports neither."""
    return [name for name, known in _KNOWN.items() if _missing(known) is None]


def find_unused(names: Sequence[str]) -> list[str]:
    """Return those known libraries that the program has not imported so far."""
    return [name for name in names if name in _KNOWN and _KNOWN[name].library not in sys.modules]


def _missing(known: _Known) -> str | None:
    for name in (known.sdk, known.distribution):
        try:
            distribution(name)
        except PackageNotFoundError:
            return name
    return None


def check(names: Sequence[str]) -> None:
    """Refuse names that nothing installed can instrument.

    Raises:
        ConfigurationError: If a library or its instrumentation is missing; says what to install.
    """
    for name in names:
        known = _KNOWN.get(name)
        if known is None:
            _entry_point(name)
        elif (missing := _missing(known)) is not None:
            raise ConfigurationError(
                f"tracer 'otel' cannot instrument {name!r}, since {missing} is not installed. "
                f"To get it: pip install 'lightning-tracer-otel[{name}]'"
            )


def _entry_point(name: str) -> Any:
    found = {each.name: each for each in entry_points(group=_GROUP)}
    if name in found:
        return found[name]
    names = sorted({*_KNOWN, *found})
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"tracer 'otel' cannot instrument {name!r}: no OpenTelemetry instrumentation of that name is installed; "
        f"{hint}There are: {', '.join(names)}"
    )


def start_instrumenting(names: Sequence[str], provider: TracerProvider, *, strict: bool) -> None:
    """Have these libraries report their calls to ``provider``. Calls are counted.

    A known library that is not imported yet is instrumented when it is, so nobody pays for what is not used.
    If another tracer of this process instruments it already, its spans go on going to that tracer's provider, which
    is as good: every provider of ours routes by context.

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
        known = _KNOWN.get(name)
        if known is None or known.library in sys.modules:
            if strict:
                _switch_on(name)
            else:
                _switch_on_quietly(name)
        elif name not in _hooked:
            _hooked.add(name)
            # Quietly in any case: it is the user's own import that would fail.
            hook: Callable[[object], None] = lambda module, name=name: _switch_on_quietly(name)  # noqa: E731
            register_post_import_hook(hook, known.library)


def _switch_on_quietly(name: str) -> None:
    try:
        _switch_on(name)
    except TraceError as error:
        logger.warning("%s. Its calls are not traced", error)
    except Exception:
        logger.exception("%r cannot be instrumented. Its calls are not traced", name)


def _switch_on(name: str) -> None:
    known = _KNOWN.get(name)
    options: dict[str, Any] = {}
    if known is None:
        instrumentor: Any = _entry_point(name).load()()
    else:
        # Not under the lock: another thread may be importing the library, and be about to call the hook above.
        import_module(known.library)
        instrumentor = getattr(import_module(known.module), known.instrumentor)()
        options = {**known.options, "config": _unabridged()}
    with _lock:
        if not _uses[name] or name in _ours:
            return
        if instrumentor.is_instrumented_by_opentelemetry:
            logger.info(
                "%s is instrumented by the program itself; its spans are stored if they go to the global "
                "tracer provider",
                name,
            )
            return
        instrumentor.instrument(tracer_provider=_provider, **options)
        if not instrumentor.is_instrumented_by_opentelemetry:
            raise TraceError(
                f"the instrumentation of {name!r} refuses the installed version of the library, which needs to be "
                f"one of: {', '.join(instrumentor.instrumentation_dependencies())}"
            )
        _ours[name] = instrumentor


def _unabridged() -> Any:
    """Settings of OpenInference under which images are recorded whole, unless the user has set a limit.

    By default it replaces those of more than 32,000 characters, and with them a part of what the model saw.
    """
    from openinference.instrumentation import TraceConfig

    limit = None if "OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH" in os.environ else sys.maxsize
    return TraceConfig(base64_image_max_length=limit)


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
