"""From the body of an OTLP/HTTP request to its message: decompression within a limit, protobuf, JSON."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["BodyTooLargeError", "UndecodableBodyError", "decode_json", "decode_protobuf", "decompress"]

_CODINGS: dict[str, list[int]] = {
    # zlib's window sizes. "deflate" should be zlib's format, and is bare deflate from some senders.
    "gzip": [31],
    "x-gzip": [31],
    "deflate": [15, -15],
}


class BodyTooLargeError(ValueError):
    """A body is larger than the server takes."""


class UndecodableBodyError(ValueError):
    """A body is not what its headers say."""


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Undo a content coding.

    Args:
        body: The body as it was sent.
        coding: The request's ``Content-Encoding``; empty or ``identity`` for none.
        limit: The most bytes that may come out.

    Raises:
        LookupError: If the coding is not known.
        BodyTooLargeError: If more would come out; nothing beyond the limit is decompressed.
        UndecodableBodyError: If it is not compressed like that.
    """
    if coding in ("", "identity"):
        return body
    error: zlib.error | None = None
    for window in _CODINGS[coding]:
        try:
            return _inflate(body, window, limit)
        except zlib.error as this:
            error = error or this
    raise UndecodableBodyError(f"the body is not {coding}: {error}")


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    parts: list[bytes] = []
    left = limit
    while True:
        stream = zlib.decompressobj(window)
        parts.append(part := stream.decompress(body, left + 1))
        left -= len(part)
        if left < 0:
            raise BodyTooLargeError(f"the body is larger than {limit} bytes when decompressed")
        if not stream.eof:
            raise zlib.error("it ends too early")
        body = stream.unused_data
        # Only gzip may consist of several members.
        if window != 31 or not body.startswith(b"\x1f\x8b"):
            return b"".join(parts)


def decode_protobuf(body: bytes) -> ExportTraceServiceRequest:
    """Read a body of ``application/x-protobuf``.

    Raises:
        UndecodableBodyError: If it is none.
    """
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise UndecodableBodyError(f"the body is no ExportTraceServiceRequest: {error}") from None


def decode_json(body: bytes) -> ExportTraceServiceRequest:
    """Read a body of ``application/json``.

    It is protobuf's JSON mapping, except that the ids of traces and spans are hexadecimal. Unknown fields are ignored.
    Halves of surrogate pairs, which JavaScript strings may hold and protobuf strings may not, are escaped.

    Raises:
        UndecodableBodyError: If it is none.
    """
    message = ExportTraceServiceRequest()
    try:
        loaded: Any = json.loads(body)
        if not isinstance(loaded, dict):
            raise UndecodableBodyError("the body is no JSON object")
        value = cast("dict[str, Any]", _escape(loaded) if b"\\u" in body else loaded)
        attributes: list[list[KeyValue]] = []
        for span in _spans(value):
            _convert_ids(span, "traceId", "spanId", "parentSpanId")
            for link in _dicts(span, "links"):
                _convert_ids(link, "traceId", "spanId")
            attributes.append(_take_attributes(span))
        json_format.ParseDict(value, message, ignore_unknown_fields=True)
        # What json_format reads has as many spans, or it would have refused it.
        for span, taken in zip(_read_spans(message), attributes, strict=True):
            span.attributes.extend(taken)
    except UndecodableBodyError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.Error) as error:
        reason = (
            str(error) if isinstance(error, (ValueError, json_format.Error)) else "wrong types or nesting"
        )
        raise UndecodableBodyError(f"the body is no ExportTraceServiceRequest in JSON: {reason}") from None
    return message


def _read_spans(message: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource_spans in message.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield from scope_spans.spans


def _take_attributes(span: dict[str, Any]) -> list[KeyValue]:
    """Read the attributes of a span, most of what there is to read, several times faster than json_format does."""
    if not isinstance(span.get("attributes"), list):
        return []
    return [_read_attribute(item) for item in cast("list[Any]", span.pop("attributes"))]


def _read_attribute(item: Any) -> KeyValue:
    match item:
        case {"key": str(key), "value": {"stringValue": str(text)}} if len(item) == 2:
            return KeyValue(key=key, value=AnyValue(string_value=text))
        case {"key": str(key), "value": {"intValue": int(number)}} if len(item) == 2:
            return KeyValue(key=key, value=AnyValue(int_value=number))
        case _:
            return json_format.ParseDict(item, KeyValue(), ignore_unknown_fields=True)


def _spans(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        span
        for resource_spans in _dicts(value, "resourceSpans")
        for scope_spans in _dicts(resource_spans, "scopeSpans")
        for span in _dicts(scope_spans, "spans")
    ]


def _dicts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    # What is not of the right type is left for the real reader to refuse.
    items = value.get(key)
    if not isinstance(items, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", items) if isinstance(item, dict)]


def _convert_ids(value: dict[str, Any], *keys: str) -> None:
    """Write ids as the JSON mapping has bytes, in base64."""
    for key in keys:
        if isinstance(digits := value.get(key), str):
            try:
                value[key] = _base64(bytes.fromhex(digits))
            except ValueError:
                # An id of one byte is invalid, too, which concerns its span alone.
                value[key] = _base64(b"?")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {_escape(key): _escape(item) for key, item in items}
    if isinstance(value, list):
        return [_escape(item) for item in cast("list[Any]", value)]
    return value
