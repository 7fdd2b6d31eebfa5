"""Exceptions: record one that was handled as a span."""

from __future__ import annotations

import traceback

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode

from lightning_core.errors import UnserializableValueError
from lightning_core.types import SpanNames

from .context import emit_span

__all__ = ["emit_exception"]


def emit_exception(exception: BaseException) -> ReadableSpan:
    """Record an exception as a span of the current trace: its type, its message and its stack.

    The attributes are those of OpenTelemetry's conventions: ``exception.type``, ``exception.message`` and
    ``exception.stacktrace``. The span's status is an error.

    Returns:
        The span, which has ended. Outside any trace it is stored nowhere.

    Raises:
        UnserializableValueError: If it is given something else than an exception. This is a ``TypeError``.
    """
    if not isinstance(exception, BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnserializableValueError(f"emit_exception takes an exception, not {type(exception).__name__}")
    kind = type(exception)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return emit_span(
        SpanNames.EXCEPTION.value,
        {
            "exception.type": name,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
        },
        Status(StatusCode.ERROR, f"{kind.__name__}: {exception}"),
    )
