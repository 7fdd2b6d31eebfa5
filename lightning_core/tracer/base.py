"""The tracer interface: records what happens while an agent runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.tracer.capture import TraceContext
from lightning_core.types import ParallelWorkerBase

if TYPE_CHECKING:
    from lightning_core.store.base import LightningStore

__all__ = ["BaseTracer"]

P = ParamSpec("P")
R = TypeVar("R")


class BaseTracer(ParallelWorkerBase, ABC):
    """Records the spans of a block of code, and writes them to a store if there is one.

    A tracer may have many traces open at once, each in a context of its own, and may be set up and torn down
    repeatedly. The runners of a process share one, and each sets it up and tears it down: it must go on working for
    the others. It never takes over the user's global tracer provider.
    """

    @abstractmethod
    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Open a trace around a ``with`` or ``async with`` block.

        Args:
            name: Name of the trace's root span, for tracers that make one.
            store: Where to write the spans; without it they are only kept for :meth:`get_last_trace`.
            rollout_id: The rollout to store them under.
            attempt_id: The attempt to store them under.

        Returns:
            A context manager that yields the ``LightningSpanProcessor`` that collects the spans. When the
            block ends, the spans are in the store.

        Raises:
            TraceError: At the end of the block, if spans could not be stored.
        """

    @abstractmethod
    def get_last_trace(self) -> list[ReadableSpan]:
        """Return the spans of a trace, in the order in which they ended.

        It is the trace that was opened or closed last in the current context. Where there was none, it is the
        one that this tracer opened last anywhere, so that what ``asyncio.run`` or a thread traced can be read.
        """

    def idle_settings(self) -> list[str]:
        """Say which settings have had no effect so far, a sentence each. ``Trainer.check`` asks at a rollout's end."""
        return []

    def trace_run(self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function inside a trace that is named after it, and return its result."""
        with self.trace_context(name=getattr(func, "__name__", None)):
            return func(*args, **kwargs)

    async def trace_run_async(self, func: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await a function inside a trace that is named after it, and return its result."""
        async with self.trace_context(name=getattr(func, "__name__", None)):
            return await func(*args, **kwargs)
