"""OTLP's attribute values, times and trace states, to and from what stored spans hold."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from lightning_core.types import Attributes, AttributeValue

__all__ = [
    "nanoseconds",
    "read_attributes",
    "read_trace_state",
    "seconds",
    "text",
    "write_attributes",
    "write_trace_state",
]

_NANOSECONDS = 1_000_000_000
_LARGEST_TIME = 2**64 - 1
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**63 - 1
_UNIFORM = frozenset({"string_value", "bool_value", "int_value", "double_value"})
_NUMBERS = {"int_value", "double_value"}


def read_attributes(attributes: Iterable[KeyValue]) -> Attributes:
    """Read attributes.

    Strings, bools, numbers, and arrays of one of these stay what they are; integers in an array with floats become
    floats. Anything else becomes text as the OpenTelemetry specification writes it outside of OTLP: bytes are base64;
    maps, other arrays and empty values are JSON, with bytes in base64 and ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"`` as strings. Of two attributes of one name the last one counts.
    """
    return {attribute.key: _read_value(attribute.value) for attribute in attributes}


def _read_value(value: AnyValue) -> AttributeValue:
    kind = value.WhichOneof("value")
    if kind in _UNIFORM:
        return _scalar(value)
    if kind == "bytes_value":
        return _base64(value.bytes_value)
    if kind == "array_value":
        items = value.array_value.values
        kinds = {item.WhichOneof("value") or "" for item in items}
        if kinds == _NUMBERS:
            return [float(_scalar(item)) for item in items]
        if len(kinds) <= 1 and kinds <= _UNIFORM:
            return [_scalar(item) for item in items]
    return json.dumps(_plain(value), ensure_ascii=False)


def _scalar(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def _plain(value: AnyValue) -> Any:
    # Not deeper than protobuf's own limit on nesting, which the message has passed.
    kind = value.WhichOneof("value")
    if kind == "double_value":
        number = value.double_value
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if kind in _UNIFORM:
        return _scalar(value)
    if kind == "bytes_value":
        return _base64(value.bytes_value)
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    return None


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def write_attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    """Write attributes. Integers of more than 64 bits become text."""
    return [KeyValue(key=text(key), value=_write_value(value)) for key, value in attributes.items()]


def _write_value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=text(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        if _SMALLEST_INT <= value <= _LARGEST_INT:
            return AnyValue(int_value=value)
        return AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, Mapping):
        return AnyValue(kvlist_value=KeyValueList(values=write_attributes(cast("Mapping[str, Any]", value))))
    if isinstance(value, Sequence):
        items = cast("Sequence[Any]", value)
        return AnyValue(array_value=ArrayValue(values=[_write_value(item) for item in items]))
    return AnyValue() if value is None else AnyValue(string_value=text(str(value)))


def text(value: str) -> str:
    """Escape halves of surrogate pairs, which protobuf cannot hold."""
    if value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def seconds(nanoseconds: int) -> float | None:
    """Convert OTLP's time, of which 0 means unknown, to seconds since the epoch."""
    return nanoseconds / _NANOSECONDS if nanoseconds else None


def nanoseconds(seconds: float | None) -> int:
    """Convert back. A float holds a time of these days to about 0.2 microseconds."""
    if seconds is None or not math.isfinite(seconds):
        return 0
    # The product of the whole would be rounded to another float than the one it came from.
    whole = math.floor(seconds)
    return min(max(whole * _NANOSECONDS + round((seconds - whole) * _NANOSECONDS), 0), _LARGEST_TIME)


def read_trace_state(header: str) -> dict[str, str]:
    """Read a trace state in the format of the W3C's ``tracestate`` header; what is malformed is left out."""
    members = (member.partition("=") for member in header.split(","))
    return {key.strip(): value.strip() for key, equals, value in members if equals}


def write_trace_state(state: Mapping[str, str]) -> str:
    """Write a trace state."""
    return ",".join(f"{text(key)}={text(value)}" for key, value in state.items())
