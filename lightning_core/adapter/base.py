"""The adapter interface: turns spans into what an algorithm learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from lightning_core.types import SpanLike

__all__ = ["BaseAdapter", "TraceAdapter"]

T_from = TypeVar("T_from", contravariant=True)
T_to = TypeVar("T_to", covariant=True)


class BaseAdapter(ABC, Generic[T_from, T_to]):
    """Converts one form of data into another; calling an adapter is the same as :meth:`adapt`."""

    @abstractmethod
    def adapt(self, source: T_from, /) -> T_to:
        """Convert ``source``."""

    def __call__(self, source: T_from, /) -> T_to:
        """Convert ``source``."""
        return self.adapt(source)


class TraceAdapter(BaseAdapter[Sequence[SpanLike], T_to], Generic[T_to]):
    """Converts the spans of one attempt, ordered as the store returns them, into training data."""

    @abstractmethod
    def adapt(self, source: Sequence[SpanLike], /) -> T_to:
        """Convert the spans of one attempt. Spans are never reordered by their timestamps."""

    def explain(self, source: Sequence[SpanLike], /) -> str:
        """Say in plain text what was made of which span, and why nothing was made of the others."""
        return f"{type(self).__name__} gives no explanation; {len(source)} spans in"
