"""Objects: record any value that JSON can hold as a span."""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import UnserializableValueError
from lightning_core.types import SpanAttributeNames, SpanNames

from .context import emit_span

__all__ = ["emit_object"]


def emit_object(obj: Any) -> ReadableSpan:
    """Record a value as a span of the current trace, as JSON text.

    Args:
        obj: Made of dicts with string keys, lists, strings, finite numbers, bools and ``None``.

    Returns:
        The span, which has ended. Outside any trace it is stored nowhere.

    Raises:
        UnserializableValueError: If JSON cannot hold the value. This is a ``TypeError``.
    """
    try:
        text = json.dumps(obj, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnserializableValueError(
            f"emit_object takes a value that JSON can hold; this {type(obj).__name__} is not: {error}. "
            "Convert it to dicts, lists, strings and finite numbers first"
        ) from error
    return emit_span(SpanNames.OBJECT.value, {SpanAttributeNames.OBJECT.value: text})
