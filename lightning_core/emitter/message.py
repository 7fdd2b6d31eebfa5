"""Messages: record a line of text as a span."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import UnserializableValueError
from lightning_core.types import SpanAttributeNames, SpanNames

from .context import emit_span

__all__ = ["emit_message"]


def emit_message(message: str) -> ReadableSpan:
    """Record a text as a span of the current trace.

    Returns:
        The span, which has ended. Outside any trace it is stored nowhere.

    Raises:
        UnserializableValueError: If ``message`` is no string. This is a ``TypeError``.
    """
    if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnserializableValueError(
            f"emit_message takes a string, not {type(message).__name__}; use emit_object for other values"
        )
    return emit_span(SpanNames.MESSAGE.value, {SpanAttributeNames.MESSAGE.value: message})
