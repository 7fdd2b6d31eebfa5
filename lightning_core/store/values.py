"""Checks that a value is one that JSON can hold, and names the part that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

from lightning_core.errors import UnserializableValueError

__all__ = ["require_json"]


def require_json(value: Any, place: str) -> None:
    """Refuse a value that JSON cannot hold, or would give back as something else.

    Args:
        value: Made of dicts with string keys, lists, strings, finite numbers, bools and ``None``.
        place: What it is called in an error, such as ``input``.

    Raises:
        UnserializableValueError: If it holds anything else; the message names the part, such as ``input.items[2]``.
    """
    waiting: list[tuple[str, Any, int]] = [(place, value, 0)]
    while waiting:
        where, part, depth = waiting.pop()
        kind = part.__class__
        if part is None or kind is str or kind is bool or kind is int:
            continue
        if kind is float and math.isfinite(part):
            continue
        if kind is not dict and kind is not list:
            raise UnserializableValueError(
                f"{where} is {_shown(part)}, and this store keeps JSON values only (dict with string keys, list, str, "
                "int, finite float, bool, None); convert it, or use store='memory'"
            )
        if depth > 500:
            raise UnserializableValueError(f"{where[:100]}… is nested too deeply, or contains itself")
        waiting.extend((*child, depth + 1) for child in _children(where, part))


def _children(where: str, part: dict[Any, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(part, list):
        for index, item in enumerate(part):
            yield f"{where}[{index}]", item
        return
    for key, item in part.items():
        if not isinstance(key, str):
            raise UnserializableValueError(
                f"{where} has the key {key!r}; JSON has string keys only, so it would come back as another"
            )
        yield f"{where}.{key}", item


def _shown(part: Any) -> str:
    kind = type(cast("object", part)).__name__
    return f"{part!r}" if kind == "float" else f"of type {kind}"
