"""Text of a command line to a value, or to ``None`` where the text says that there is none."""

from __future__ import annotations

from typing import Final

__all__ = ["NOTHING", "nullable_float", "nullable_int", "nullable_str"]

NOTHING: Final = frozenset({"", "~", "nil", "none", "null"})
"""Texts that stand for ``None``, in any case and with any blanks around them."""


def nullable_str(value: str | None) -> str | None:
    """Return ``None`` for ``none``, ``null``, ``nil``, ``~`` and the empty text, in any case, else the text itself."""
    return None if value is None or value.strip().lower() in NOTHING else value


def nullable_int(value: str | None) -> int | None:
    """Return ``None`` for what :func:`nullable_str` takes for it, else the integer.

    Raises:
        ValueError: If the text is neither.
    """
    text = nullable_str(value)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no integer; give one such as 8, or 'none'") from None


def nullable_float(value: str | None) -> float | None:
    """Return ``None`` for what :func:`nullable_str` takes for it, else the number.

    Raises:
        ValueError: If the text is neither.
    """
    text = nullable_str(value)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number; give one such as 0.5, or 'none'") from None
