"""A tracer that changes something in the process while it is in use: once for all who use it, and never for longer."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Tracer

from lightning_core.tracer.base import BaseTracer
from lightning_core.tracer.capture import LightningSpanProcessor, TraceContext, last_trace

if TYPE_CHECKING:
    from lightning_core.store.base import LightningStore

__all__ = ["SharedTracer"]


class SharedTracer(BaseTracer):
    """Counts who uses it, and opens traces under a root span.

    It is set up by :meth:`init_worker`, or else by the first trace, and takes everything back when the last of its
    workers is torn down. Several workers may share it, and it may be set up again.

    Args:
        tracer: Starts the root spans and whatever is emitted.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._lock = threading.RLock()
        self._users = 0
        self._workers = 0
        self._is_set_up = False
        self._latest: LightningSpanProcessor | None = None

    @abstractmethod
    def set_up(self) -> None:
        """Change what has to be changed. If this raises, :meth:`take_back` is called."""

    @abstractmethod
    def take_back(self) -> None:
        """Leave everything as it was, also what a :meth:`set_up` that raised has changed."""

    def refresh(self) -> None:
        """Called before each trace, when it is set up."""

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
        if not self._is_set_up:
            self._is_set_up = True
            try:
                self.set_up()
            except BaseException:
                self._stop()
                raise
        self.refresh()

    def _stop(self) -> None:
        if self._is_set_up:
            self._is_set_up = False
            self.take_back()

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

    def get_last_trace(self) -> list[ReadableSpan]:
        """Return the spans of the last trace; see :meth:`BaseTracer.get_last_trace`."""
        trace = last_trace(self._tracer) or self._latest
        return trace.spans if trace is not None else []
