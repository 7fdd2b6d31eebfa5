"""Reading and writing JSON as fast as it goes, and what the fast way refuses in the slow one."""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["read_json", "write_json"]


def read_json(data: bytes | str) -> Any:
    """Read JSON, also with lone halves of characters, NaN and infinities in it.

    Raises:
        ValueError: If it is none.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def write_json(value: Any) -> bytes:
    """Write JSON, also with lone halves of characters and huge whole numbers. NaN and infinities become null."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()
