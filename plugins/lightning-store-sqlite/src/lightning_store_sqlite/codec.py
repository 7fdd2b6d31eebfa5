"""How values are written into columns, and read back."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_core.errors import UnserializableValueError
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
    "decode",
    "decode_config",
    "decode_span",
    "encode",
    "encode_config",
    "encode_span",
]

_SCALARS = frozenset({str, int, float, bool, type(None)})


def encode(value: Any, place: str) -> str:
    """Write a JSON value; tuples become arrays, and NaN and infinities are kept.

    Args:
        value: The value.
        place: What it is called in an error, such as ``input``.

    Raises:
        UnserializableValueError: If JSON cannot hold it; the message names the part that is at fault.
    """
    try:
        if _is_json(value):
            return _dump(value)
    except RecursionError:
        raise UnserializableValueError(
            f"{place} is nested too deeply, or contains itself: the sqlite store keeps JSON values only"
        ) from None
    where, part = _find_fault(value, place)
    raise UnserializableValueError(
        f"{where} is of type {type(part).__name__}, and the sqlite store keeps JSON values only (dict with string "
        "keys, list, str, int, float, bool, None); convert it, or use store='memory'"
    )


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


def encode_span(span: Span) -> str:
    """Write the parts of a span that have no column of their own.

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
        return _dump(body)
    except (TypeError, ValueError, RecursionError):
        # The careful way finds the culprit and says its name, or copes.
        return encode(body, f"span {span.name!r}: ")


def decode_span(
    rollout_id: str, attempt_id: str, sequence_id: int, span_id: str, trace_id: str, name: str, text: str
) -> Span:
    """Read a span back from its columns and its body."""
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


def _is_json(value: Any) -> bool:
    kind = value.__class__
    if kind in _SCALARS:
        return True
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return all(isinstance(key, str) and _is_json(item) for key, item in items)
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, cast("list[Any]", value)))
    return isinstance(value, (str, int, float))


def _find_fault(value: Any, place: str) -> tuple[str, Any]:
    """Return the place and the value of the first part that is no JSON value."""
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            if not isinstance(key, str):
                return f"key {key!r} of {place}", key
            if not _is_json(item):
                return _find_fault(item, f"{place}.{key}" if key.isidentifier() else f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("list[Any]", value)):
            if not _is_json(item):
                return _find_fault(item, f"{place}[{index}]")
    return place, cast("Any", value)
