"""The adapter interface: turns spans into what an algorithm learns from, and says how."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from lightning_core.types import SpanLike

__all__ = ["BaseAdapter", "Explanation", "TraceAdapter"]

T_contra = TypeVar("T_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Explanation:
    """What an adapter made of a trace, and why it made nothing more. ``str()`` gives it as text.

    Adapters that know more subclass it, and extend :meth:`lines`.

    Attributes:
        spans: Number of spans that the adapter was given.
        results: Number of training samples that it made of them.
        empty_because: Why there is no sample; ``None`` when there is one.
        notes: Anything else worth knowing, one sentence each.
    """

    spans: int
    results: int
    empty_because: str | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the text, line by line."""
        head = f"{self.spans} span{'' if self.spans == 1 else 's'} -> {self.results} training samples"
        if self.results == 1:
            head = head.removesuffix("s")
        if self.empty_because is not None:
            head = f"{head}: {self.empty_because}"
        return [head, *self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class BaseAdapter(ABC, Generic[T_contra, T_co]):
    """Converts one form of data into another; calling an adapter is the same as :meth:`adapt`."""

    @abstractmethod
    def adapt(self, source: T_contra, /) -> T_co:
        """Convert ``source``."""

    def __call__(self, source: T_contra, /) -> T_co:
        """Convert ``source``."""
        return self.adapt(source)


class TraceAdapter(BaseAdapter[Sequence[SpanLike], T_co], Generic[T_co]):
    """Converts the spans of one attempt into training data.

    ``lightning_core.testing.AdapterConformance`` checks what every trace adapter promises: stored spans are read
    in the order of their ``sequence_id`` and OpenTelemetry's in the order given, never by their timestamps; the
    spans are left as they are; sparse attributes and deep traces are no error; and an empty result is explained.
    """

    @abstractmethod
    def adapt(self, source: Sequence[SpanLike], /) -> T_co:
        """Convert the spans of one attempt."""

    def warn(self, message: str, *args: object) -> None:
        """Log a warning about a trace, and of those with the same message the 1st, 2nd, 4th, 8th and so on.

        Args:
            message: A format for ``logging``; what differs from trace to trace belongs into ``args``.
            args: Its arguments.
        """
        counts = cast("Counter[str]", vars(self).setdefault("_warnings", Counter()))
        counts[message] += 1
        times = counts[message]
        if times & (times - 1) == 0:
            more = f" (so far {times} traces like this)" if times > 1 else ""
            logging.getLogger(type(self).__module__).warning("%s%s", message % args, more)

    def explain(self, source: Sequence[SpanLike], /) -> Explanation:
        """Say what was made of which span, and why nothing was made of the others."""
        result = self.adapt(source)
        results = len(result) if isinstance(result, Sized) else 1
        if results:
            return Explanation(len(source), results)
        reason = (
            f"{type(self).__name__} found nothing in them that it can use"
            if source
            else "the trace has no spans"
        )
        return Explanation(len(source), 0, reason)
