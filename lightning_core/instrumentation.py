"""Switches every instrumentation that is installed on, and off again, outside of any tracer.

A tracer that records the calls of models does that by itself while a runner works. :func:`instrument_all` is for
programs that use a tracer which does not: ``dummy``, one of their own, or ``AgentOpsTracer(instrument_managed=False)``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import TracerProvider

from lightning_core.tracer.capture import SpanRouter, private_provider
from lightning_core.tracer.instrumentations import Instrumentation, Instrumentations

__all__ = ["InstrumentationReport", "instrument_all", "uninstrument_all"]

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_switched_on: list[tuple[Instrumentations, str]] = []
_provider: TracerProvider | None = None


@dataclass(frozen=True)
class InstrumentationReport:
    """What :func:`instrument_all` came to. ``str()`` gives it as text.

    Attributes:
        on: Names of libraries to what instruments them, such as ``{"openai": "tracer 'otel'"}``. One that is not
            imported yet is instrumented as soon as it is.
        off: Names of libraries to why they are not instrumented; also those plugins, as ``tracer.otel``, that
            could not be asked.
    """

    on: dict[str, str] = field(default_factory=dict[str, str])
    off: dict[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        lines = [f"{name}: instrumented by {owner}" for name, owner in self.on.items()]
        lines += [f"{name}: not instrumented, since {why}" for name, why in self.off.items()]
        if not lines:
            return "nothing is instrumented: no installed plugin can. To get one: pip install lightning-tracer-otel"
        return "\n".join(lines)


def instrument_all() -> InstrumentationReport:
    """Instrument every library that an installed plugin can instrument, along with what that needs.

    Calls of an instrumented library become spans of the trace in whose context they are made, whichever tracer has
    opened that; outside of a trace they leave nothing. Where several plugins know a library, the one that instruments
    it already goes on, else that of the tracer that is chosen by default; a call is never recorded twice. What the
    program instruments itself stays as it is. It holds for this process, until :func:`uninstrument_all`.

    Calling it again instruments what has been installed since, and nothing twice.

    Returns:
        What is instrumented, and what is not and why. It is logged, too.
    """
    global _provider
    report = InstrumentationReport()
    with _lock:
        provider = _provider = _provider or private_provider(SpanRouter())
        for candidates in _candidates(report).values():
            _instrument_one(candidates, provider, report)
    logger.info("instrument_all:\n%s", report)
    return report


def uninstrument_all() -> None:
    """Undo :func:`instrument_all`, however often it was called. What a tracer still uses stays on until it ends."""
    with _lock:
        while _switched_on:
            instrumentations, name = _switched_on.pop()
            instrumentations.stop([name])


def _candidates(report: InstrumentationReport) -> dict[str, list[tuple[Instrumentations, Instrumentation]]]:
    """Return who can instrument each library, in the order of preference."""
    by_library: dict[str, list[tuple[Instrumentations, Instrumentation]]] = {}
    for instrumentations in _installed(report):
        for each in instrumentations.known.values():
            by_library.setdefault(each.library or each.name, []).append((instrumentations, each))
    return by_library


def _installed(report: InstrumentationReport) -> Iterator[Instrumentations]:
    from lightning_core.plugin import plugin_manager
    from lightning_core.plugin.catalog import DEFAULTS

    found: dict[str, Instrumentations] = {}
    for entry, result in plugin_manager().call_each("tracer", "lightning_instrumentations"):
        if isinstance(result, Instrumentations):
            found[entry.name] = result
        else:
            why = result
            if not isinstance(result, Exception):
                why = f"lightning_instrumentations returned a {type(result).__name__}"
            report.off[entry.key] = f"{entry.provider} cannot be asked: {why}"
    seen: list[Instrumentations] = []
    for name in dict.fromkeys([*DEFAULTS["tracer"], *sorted(found)]):
        if name in found and found[name] not in seen:
            seen.append(found[name])
            yield found[name]


def _instrument_one(
    candidates: list[tuple[Instrumentations, Instrumentation]],
    provider: TracerProvider,
    report: InstrumentationReport,
) -> None:
    label = candidates[0][1].name
    for instrumentations, each in sorted(candidates, key=lambda one: not one[0].is_used(one[1].name)):
        missing = each.missing()
        if missing is not None:
            report.off.setdefault(label, missing)
            continue
        report.off.pop(label, None)
        # Counted once more at each call, and taken back as often.
        refused = instrumentations.start([each.name], provider, strict=False)
        if refused:
            instrumentations.stop([each.name])
            report.off[label] = refused[each.name]
        else:
            _switched_on.append((instrumentations, each.name))
            report.on[label] = instrumentations.owner
        return
