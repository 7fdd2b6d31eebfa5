"""Moments in time, as users write them."""

from __future__ import annotations

import re
import time
from datetime import datetime

import click

__all__ = ["format_moment", "moment_option", "parse_moment"]

_AGE = re.compile(r"(\d+)(s|m|h|d|w)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].+)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_moment(text: str, now: float) -> float:
    """Return a moment of the past, in seconds since the epoch.

    Args:
        text: An age such as ``30d`` (s, m, h, d or w), or a date or time as ISO 8601 has it, such as ``2026-01-31`` or
            ``2026-01-31T12:00:00+01:00``. Without an offset it is local time.
        now: Seconds since the epoch.

    Raises:
        ValueError: If it is neither, or not in the past; the message says what is wrong.
    """
    text = text.strip()
    age = _AGE.fullmatch(text)
    if age is not None:
        return now - int(age[1]) * _SECONDS[age[2]]
    if not _DATE.fullmatch(text):
        hint = f"; did you mean {text}d?" if text.isdigit() else ""
        raise ValueError(
            f"{text!r} is neither an age such as 30d, 12h or 90m, nor a date such as 2026-01-31 or "
            f"2026-01-31T12:00:00+01:00{hint}"
        )
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no date: {error}") from error
    if moment > now:
        raise ValueError(f"{text!r} is in the future")
    return moment


def format_moment(seconds: float) -> str:
    """Return a moment as local time, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moment_option(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read an option that holds a moment; give this as the option's callback."""
    try:
        return parse_moment(value, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
