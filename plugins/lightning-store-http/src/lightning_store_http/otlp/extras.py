"""Fields of stored spans that OTLP has no place for: they travel as one attribute of JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from lightning_core.types import Attributes, Span

from .names import EXTRA

__all__ = ["parse_extra", "render_extra"]


def render_extra(extra: Mapping[str, Any]) -> Attributes:
    """Make the attribute, or none where there is nothing to say."""
    if not extra:
        return {}
    return {EXTRA: json.dumps(extra, ensure_ascii=False, default=str)}


def parse_extra(attributes: Attributes) -> dict[str, Any]:
    """Read it back, without what would hide a field of the span.

    Raises:
        ValueError: If it is no JSON object.
    """
    if EXTRA not in attributes:
        return {}
    try:
        extra: Any = json.loads(cast("str", attributes[EXTRA]))
    except (ValueError, TypeError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ValueError(f"their attribute {EXTRA} is no JSON object")
    items = cast("dict[str, Any]", extra).items()
    return {key: value for key, value in items if key not in Span.model_fields}
