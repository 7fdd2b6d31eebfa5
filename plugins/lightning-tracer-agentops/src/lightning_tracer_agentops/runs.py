"""The open runs of LangChain, and how spans that begin inside of them relate to them.

LangChain's callbacks cannot make a span the current one: those that end a run are called in another context than
those that begin it, so what they attach could never be detached. Instead a context variable names the innermost run.
It is never reset; a run that has ended counts for nothing, and its parent takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider
from opentelemetry.util._decorator import _agnosticcontextmanager  # pyright: ignore[reportPrivateUsage]

from lightning_core.tracer.capture import LightningSpanProcessor, private_provider
from lightning_core.types.llm import is_llm_call

__all__ = ["Run", "RunTracer", "RunTracerProvider"]


@dataclass(eq=False)
class Run:
    """A run of LangChain that is open, or was.

    Attributes:
        span: Stands for it.
        attributes: What its span is to have when it ends.
        parent: The run that it is part of.
        outer: The span that was current where it began.
        trace: The trace that it belongs to.
        asks: Whether it asks a model. Spans of instrumentations that begin in it are held back: its own is the call's.
        shared: Whether other runs began along with it, for further prompts. Nothing says whose a call is that was seen.
        held: Those that were.
        inside: Whether what begins in its context is part of it: until it ends, or until its stream begins to be read.
    """

    span: Span
    attributes: dict[str, Any]
    parent: Run | None
    outer: SpanContext
    trace: LightningSpanProcessor | None
    asks: bool = False
    shared: bool = False
    held: list[Span] = field(default_factory=list[Span])
    inside: bool = True

    def enter(self) -> None:
        """Make it the innermost run of the current context."""
        _innermost.set(self)

    def take_call(self) -> tuple[Mapping[str, Any], int]:
        """Return what an instrumentation saw of the call of the model, and how many calls there were.

        A model may be a wrapper that asks others several times. Then there is no such one call, and the spans that
        were held back become part of the trace in their own right.
        """
        spans = [span for span in self.held if isinstance(span, ReadableSpan) and span.end_time is not None]
        self.held.clear()
        calls = [span for span in spans if is_llm_call(span.attributes or {})]
        kept = calls if self.shared or len(calls) == 1 else []
        for span in spans:
            if span not in kept and self.trace is not None:
                self.trace.on_end(span)
        if self.shared or len(calls) != 1:
            return {}, 0 if self.shared else len(calls)
        return calls[0].attributes or {}, 1

    def close(self) -> None:
        """End it and its span."""
        self.inside = False
        self.span.set_attributes(self.attributes)
        self.span.end()
        # The context variable may keep the run for long.
        self.trace = None
        self.held.clear()


_innermost: ContextVar[Run | None] = ContextVar("lightning-agentops-run", default=None)


def _run_above(current: Span) -> Run | None:
    """Return the innermost run, unless another span lies between it and a span that begins now."""
    run = _innermost.get()
    while run is not None and not run.inside:
        run = run.parent
    if run is None or not run.outer.is_valid or run.outer != current.get_span_context():
        return None
    return run


class RunTracer(Tracer):
    """Starts spans below the innermost run of LangChain, and where there is none, as any tracer.

    Args:
        tracer: Starts them.
        aside: Starts those that are held back; without it, none is.
    """

    def __init__(self, tracer: Tracer, aside: Tracer | None = None) -> None:
        self._tracer = tracer
        self._aside = aside

    def start_span(self, name: str, context: Context | None = None, *args: Any, **kwargs: Any) -> Span:
        """Start a span; see :meth:`opentelemetry.trace.Tracer.start_span`."""
        run = _run_above(trace_api.get_current_span(context))
        if run is None:
            return self._tracer.start_span(name, context, *args, **kwargs)
        context = trace_api.set_span_in_context(run.span, context)
        if self._aside is None or not run.asks:
            return self._tracer.start_span(name, context, *args, **kwargs)
        span = self._aside.start_span(name, context, *args, **kwargs)
        run.held.append(span)
        return span

    @_agnosticcontextmanager
    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        *args: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **kwargs: Any,
    ) -> Iterator[Span]:
        """Start a span around a block; see :meth:`opentelemetry.trace.Tracer.start_as_current_span`."""
        span = self.start_span(name, context, *args, **kwargs)
        with trace_api.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


class RunTracerProvider(TracerProvider):
    """What instrumentations are given: the tracers of another provider, with regard to the runs of LangChain."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._aside = private_provider()

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        """Return a tracer; see :meth:`opentelemetry.trace.TracerProvider.get_tracer`."""
        return RunTracer(self._provider.get_tracer(*args, **kwargs), self._aside.get_tracer(*args, **kwargs))
