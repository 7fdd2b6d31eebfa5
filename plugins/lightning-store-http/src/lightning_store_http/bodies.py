"""Bodies of requests: read up to a limit, decompressed up to a limit, and checked where they are passed on unread."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pydantic_core import SchemaValidator, ValidationError, core_schema

from lightning_core.errors import ConfigurationError
from lightning_core.store.encoding import EncodedSpan, decode

from .failures import RequestError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["IN_THREAD", "Disconnected", "check_encoded_spans", "content_type", "header", "read_body"]

IN_THREAD: Final = 256 * 1024
"""From this size on, in bytes, what is compressed or decompressed does not hold up the event loop."""


class Disconnected(Exception):
    """The client has gone before its request was complete."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request's header, given its name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def content_type(scope: Scope) -> str:
    """Return the media type of a request's body, in lower case and without parameters."""
    return (header(scope, b"content-type") or "").partition(";")[0].strip().lower()


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a request's body, decompressed.

    Args:
        scope: The request.
        receive: Gives its parts.
        limit: The most bytes that the body may have, before and after decompression.

    Raises:
        RequestError: 413 if it is larger, 415 if it is compressed in an unknown way, 400 if it is not what it says.
        Disconnected: If the client goes away before the end.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    encoding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise RequestError(
            415, f"a body compressed with {encoding[:50]!r} is not understood; use gzip or none",
            headers={"accept-encoding": "gzip, identity"},
        )  # fmt: skip
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    if encoding == "identity":
        return body
    if len(body) < IN_THREAD:
        return _decompress(body, limit)
    return await asyncio.to_thread(_decompress, body, limit)


def _decompress(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        result = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is no gzip: {error}") from None
    if len(result) > limit:
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        raise RequestError(400, "the body is not exactly one gzip stream")
    return result


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413,
        f"the body is larger than {limit} bytes, the most that this server takes: send less at a time, or start the "
        "server with a larger max_body_bytes",
        kind="ConfigurationError",
        headers={"connection": "close"},
    )


def _object(
    required: dict[str, core_schema.CoreSchema], optional: dict[str, core_schema.CoreSchema] | None = None
) -> core_schema.CoreSchema:
    """Describe a JSON object of which only some members are looked at, so that the rest is parsed and dropped."""
    fields = {name: core_schema.typed_dict_field(schema) for name, schema in required.items()}
    for name, schema in (optional or {}).items():
        fields[name] = core_schema.typed_dict_field(schema, required=False)
    return core_schema.typed_dict_schema(fields, extra_behavior="ignore")


_text = core_schema.str_schema(strict=True)
_number = core_schema.float_schema(strict=True)
_attributes = _object({})
_context = _object({"trace_id": _text, "span_id": _text, "is_remote": core_schema.bool_schema(strict=True)})
_SPAN_BODY: Final = SchemaValidator(
    _object(
        {
            "attributes": _attributes,
            "status": _object(
                {
                    "status_code": core_schema.literal_schema(["UNSET", "OK", "ERROR"]),
                    "description": core_schema.nullable_schema(_text),
                }
            ),
            "start_time": core_schema.nullable_schema(_number),
            "end_time": core_schema.nullable_schema(_number),
            "resource": _object({"attributes": _attributes, "schema_url": _text}),
        },
        {
            "parent_id": core_schema.nullable_schema(_text),
            "context": core_schema.nullable_schema(_context),
            "parent": core_schema.nullable_schema(_context),
            "extra": _attributes,
            "events": core_schema.list_schema(
                _object(
                    {
                        "name": _text,
                        "attributes": _attributes,
                        "timestamp": core_schema.nullable_schema(_number),
                    }
                ),
                strict=True,
            ),
            "links": core_schema.list_schema(
                _object({"context": _context, "attributes": core_schema.nullable_schema(_attributes)}),
                strict=True,
            ),
        },
    )
)


def check_encoded_spans(spans: Sequence[EncodedSpan]) -> None:
    """Refuse encoded spans that could not be read back.

    Raises:
        ConfigurationError: If the body of one is not that of a span.
    """
    for span in spans:
        try:
            _SPAN_BODY.validate_json(span.body)
        except ValidationError as error:
            _check_slowly(span, error)


def _check_slowly(span: EncodedSpan, error: ValidationError) -> None:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if problem["type"] == "json_invalid":
        # Lone surrogates and deep nesting are refused by the fast reader alone.
        try:
            value = decode(span.body)
        except (ValueError, RecursionError):
            pass
        else:
            try:
                _SPAN_BODY.validate_python(value)
            except ValidationError as other:
                problem = other.errors(include_url=False, include_context=False, include_input=False)[0]
            else:
                return
    place = ".".join(str(part) for part in ("body", *problem["loc"]))
    raise ConfigurationError(f"span {span.span_id!r}: {place}: {problem['msg']}") from None
