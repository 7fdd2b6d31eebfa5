"""Annotations and operations: record attributes as a span, and give a block of code a span of its own."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span

from lightning_core.errors import UnserializableValueError
from lightning_core.types import AttributeValue, SpanNames

from .context import emit_span, emitting_tracer

__all__ = ["emit_annotation", "operation"]


def emit_annotation(attributes: Mapping[str, AttributeValue]) -> ReadableSpan:
    """Record attributes as a span of the current trace.

    Args:
        attributes: Names to strings, bools, numbers, or lists of one of these.

    Returns:
        The span, which has ended. Outside any trace it is stored nowhere.

    Raises:
        UnserializableValueError: If an attribute is of another type. This is a ``TypeError``.
    """
    _check(attributes)
    return emit_span(SpanNames.ANNOTATION.value, attributes)


@contextmanager
def operation(name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Generator[Span]:
    """Give a block of code a span of its own; spans that start inside become its children.

    Works in plain and in async code, and as a decorator of plain functions. An exception that leaves the
    block is recorded in the span.

    Args:
        name: Name of the span.
        attributes: Names to strings, bools, numbers, or lists of one of these.

    Yields:
        The open span, for attributes that are known only later: ``span.set_attribute(name, value)``.

    Raises:
        UnserializableValueError: If an attribute is of another type. This is a ``TypeError``.
    """
    if attributes:
        _check(attributes)
    span = emitting_tracer().start_span(name, attributes=attributes)
    with trace_api.use_span(span, end_on_exit=True):
        yield span


_SCALARS = (str, bool, int, float)
_SCALAR_TYPES = frozenset(_SCALARS)


def _check(attributes: Mapping[str, AttributeValue]) -> None:
    """Refuse what OpenTelemetry would drop with a warning."""
    for key, value in cast("Mapping[Any, Any]", attributes).items():
        if key.__class__ is str and key and value.__class__ in _SCALAR_TYPES:
            continue
        if not isinstance(key, str) or not key:
            raise UnserializableValueError(
                f"the name of an attribute must be a non-empty string, not {key!r}"
            )
        if not isinstance(value, _SCALARS) and not _is_list_of_scalars(value):
            raise UnserializableValueError(
                f"attribute {key!r} must be a string, a bool, a number or a list of one of these, not "
                f"{type(value).__name__}; use emit_object for nested values"
            )


def _is_list_of_scalars(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray, memoryview)):
        return False
    kinds: set[type[Any]] = {type(item) for item in cast("Sequence[Any]", value)}
    return not kinds or (len(kinds) == 1 and kinds.pop() in _SCALARS)
