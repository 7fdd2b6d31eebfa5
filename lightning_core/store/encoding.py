"""How values and spans are written as JSON text, for stores that keep text and for the network between them.

A span travels as an :class:`EncodedSpan`: what a store looks for, and the rest as one JSON text that it need not read.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_core.errors import UnserializableValueError
from lightning_core.store.values import require_json
from lightning_core.types import (
    Event,
    Link,
    OtelResource,
    RolloutConfig,
    Span,
    SpanContext,
    TraceStatus,
)

__all__ = [
    "EncodedSpan",
    "decode",
    "decode_config",
    "decode_span",
    "encode",
    "encode_config",
    "encode_span",
]


class EncodedSpan(NamedTuple):
    """A span of which only the fields that stores look for can be read without decoding ``body``, a JSON object."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    span_id: str
    trace_id: str
    name: str
    body: str


_PLAIN = frozenset({str, int, bool, type(None)})


def encode(value: Any, place: str) -> str:
    """Write a JSON value.

    Args:
        value: The value.
        place: What it is called in an error, such as ``input``.

    Raises:
        UnserializableValueError: If JSON cannot hold it; the message names the part that is at fault.
    """
    try:
        plain = _is_plain(value)
    except RecursionError:
        plain = False
    if not plain:
        # Slower, and says what is wrong where.
        require_json(value, place)
    return _dump(value)


def decode(text: str) -> Any:
    """Read what :func:`encode` wrote."""
    try:
        return from_json(text)
    except ValueError:
        # Nesting and lone surrogates that the fast reader refuses.
        return json.loads(text)


def encode_config(config: RolloutConfig) -> str:
    """Write a rollout's config."""
    return _dump(config.__dict__)


def decode_config(text: str) -> RolloutConfig:
    """Read a rollout's config."""
    config = _cached_config(text)
    return config.replace(retry_condition=list(config.retry_condition))


@lru_cache(maxsize=256)
def _cached_config(text: str) -> RolloutConfig:
    # Nearly all rollouts of a run share one config.
    return RolloutConfig.model_validate_json(text)


def encode_span(span: Span) -> EncodedSpan:
    """Encode a span.

    Raises:
        UnserializableValueError: If an attribute is no JSON value.
    """
    values = span.__dict__
    context, parent, resource = values["context"], values["parent"], values["resource"]
    body: dict[str, Any] = {
        "attributes": values["attributes"],
        "status": values["status"].__dict__,
        "start_time": values["start_time"],
        "end_time": values["end_time"],
        "resource": resource.__dict__,
    }
    # What most spans lack is left out.
    if values["parent_id"] is not None:
        body["parent_id"] = values["parent_id"]
    if context is not None:
        body["context"] = context.__dict__
    if parent is not None:
        body["parent"] = parent.__dict__
    if values["events"]:
        body["events"] = [event.__dict__ for event in values["events"]]
    if values["links"]:
        body["links"] = [
            {"context": link.context.__dict__, "attributes": link.attributes} for link in values["links"]
        ]
    if span.__pydantic_extra__:
        body["extra"] = span.__pydantic_extra__
    try:
        text = _dump(body)
    except (TypeError, ValueError, RecursionError):
        raise _fault(span) from None
    return EncodedSpan(
        values["rollout_id"],
        values["attempt_id"],
        values["sequence_id"],
        values["span_id"],
        values["trace_id"],
        values["name"],
        text,
    )


def decode_span(encoded: EncodedSpan) -> Span:
    """Read a span back."""
    rollout_id, attempt_id, sequence_id, span_id, trace_id, name, text = encoded
    body = decode(text)
    context, parent = body.get("context"), body.get("parent")
    return Span.trusted(
        {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": sequence_id,
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_id": body.get("parent_id"),
            "name": name,
            "status": TraceStatus.trusted(body["status"]),
            "attributes": body["attributes"],
            "events": [Event.trusted(event) for event in body.get("events", ())],
            "links": [
                Link.trusted(
                    {"context": SpanContext.trusted(link["context"]), "attributes": link["attributes"]}
                )
                for link in body.get("links", ())
            ],
            "start_time": body["start_time"],
            "end_time": body["end_time"],
            "context": SpanContext.trusted(context) if context is not None else None,
            "parent": SpanContext.trusted(parent) if parent is not None else None,
            "resource": OtelResource.trusted(body["resource"]),
        },
        body.get("extra", {}),
    )


def _dump(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except (PydanticSerializationError, UnicodeEncodeError, ValueError):
        # Deep nesting and lone surrogates are refused by the fast writer alone.
        return json.dumps(value, separators=(",", ":"))


def _is_plain(value: Any) -> bool:
    kind = value.__class__
    if kind in _PLAIN:
        return True
    if kind is dict:
        items = cast("dict[Any, Any]", value).items()
        return all(key.__class__ is str and _is_plain(item) for key, item in items)
    if kind is list:
        return all(map(_is_plain, cast("list[Any]", value)))
    return kind is float and math.isfinite(value)


def _fault(span: Span) -> UnserializableValueError:
    """Say which part of a span cannot be written."""
    parts = {"attributes": span.attributes, "resource": span.resource.attributes}
    for place, attributes in parts.items():
        for key, value in attributes.items():
            try:
                _dump(value)
            except (TypeError, ValueError, RecursionError):
                return UnserializableValueError(
                    f"span {span.name!r}: {place}.{key} is of type {type(value).__name__}; attributes are strings, "
                    "bools, numbers, or lists of one of these"
                )
    return UnserializableValueError(f"span {span.name!r} holds a value that JSON cannot hold")
