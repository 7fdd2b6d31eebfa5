"""How values are written for PostgreSQL: text that it refuses, and arrays in its binary format."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "Parameter",
    "flags",
    "integers",
    "json_text",
    "number",
    "quote",
    "reals",
    "texts",
    "unquote",
    "word",
]


class Parameter(NamedTuple):
    """A value of a statement, as it goes over the wire."""

    value: bytes | None
    is_binary: bool = False


# PostgreSQL's text holds neither NUL nor lone surrogates, and Python's does. Backslashes are doubled, so that what
# stands for these cannot be mistaken for itself: every string has exactly one quoted form, and equal ones stay equal.
_UNQUOTED = re.compile("[\\\\\x00\ud800-\udfff]")
_QUOTED = re.compile(r"\\(\\|[0-9a-f]{4})")


def quote(text: str) -> str:
    """Return a form of any string that PostgreSQL can keep; most are their own."""
    return _UNQUOTED.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return "\\\\" if character == "\\" else f"\\{ord(character):04x}"


def unquote(text: str) -> str:
    """Read what :func:`quote` wrote."""
    return _QUOTED.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    return "\\" if match[1] == "\\" else chr(int(match[1], 16))


def json_text(text: str) -> bytes:
    """Encode JSON text. What PostgreSQL refuses can only be inside its strings, where JSON's own escapes do."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = text.encode(errors="backslashreplace")
    return encoded.replace(b"\0", b"\\u0000") if b"\0" in encoded else encoded


def word(text: str | None) -> Parameter:
    """A string, such as an id."""
    return Parameter(quote(text).encode() if text is not None else None)


def number(value: float | None) -> Parameter:
    """A whole or real number."""
    return Parameter(repr(value).encode() if value is not None else None)


_BOOL, _INT8, _FLOAT8, _TEXT = 16, 20, 701, 25
_NULL = b"\xff\xff\xff\xff"


def _array(oid: int, length: int, has_nulls: bool, body: bytes) -> Parameter:
    if not length:
        return Parameter(struct.pack(">3i", 0, 0, oid), True)
    return Parameter(struct.pack(">5i", 1, has_nulls, oid, length, 1) + body, True)


def integers(values: Sequence[int]) -> Parameter:
    """An array of ``int8``."""
    items = [part for value in values for part in (8, value)]
    return _array(_INT8, len(values), False, struct.pack(">" + "iq" * len(values), *items))


def flags(values: Sequence[bool]) -> Parameter:
    """An array of ``bool``."""
    body = b"".join(b"\0\0\0\1\1" if value else b"\0\0\0\1\0" for value in values)
    return _array(_BOOL, len(values), False, body)


def reals(values: Sequence[float | None]) -> Parameter:
    """An array of ``float8``."""
    pack = struct.Struct(">id").pack
    body = b"".join(_NULL if value is None else pack(8, value) for value in values)
    return _array(_FLOAT8, len(values), None in values, body)


def texts(values: Sequence[bytes | str | None]) -> Parameter:
    """An array of ``text``: of bytes that are encoded already, and of strings, which are quoted here."""
    pack = struct.Struct(">i").pack
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
            continue
        encoded = quote(value).encode() if isinstance(value, str) else value
        parts.append(pack(len(encoded)))
        parts.append(encoded)
    return _array(_TEXT, len(values), None in values, b"".join(parts))
