"""Rewards that a program has written as text."""

from __future__ import annotations

import json
from typing import Any, cast

from lightning_core.emitter import parse_reward
from lightning_core.errors import InvalidOutcomeError

__all__ = ["last_line", "read_reward"]

_SHOWN_LINE = 200


def last_line(text: str, *, cut: bool, label: str) -> str:
    """Return the last line of a standard output that is not blank.

    Args:
        text: The output, or the end of it.
        cut: Whether it is the end only.
        label: Whose output it is, for messages.

    Raises:
        InvalidOutcomeError: If there is none, or its beginning is missing.
    """
    lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not lines:
        raise InvalidOutcomeError(
            f"{label} has written nothing to its standard output, whose last line should be the reward; print it, or "
            "choose another reward=..."
        )
    if len(lines) == 1 and cut:
        raise InvalidOutcomeError(
            f"the last line of the standard output of {label}, which should be the reward, is longer than its "
            f"max_output_bytes"
        )
    return lines[-1]


def read_reward(text: str, *, place: str, label: str) -> float | None:
    """Read a reward: a number, or a JSON object with one as ``reward``.

    Args:
        text: What is to be read; blanks around it do not count.
        place: Where it was found, for messages.
        label: Whose it is, for messages.

    Returns:
        The reward, or ``None`` for ``{"reward": null}``, which says that there is none.

    Raises:
        InvalidOutcomeError: If it is something else, or the number is not finite. The message shows the text.
    """
    text = text.strip()
    value: Any
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _number(text)
    if isinstance(value, dict) and "reward" in value:
        value = cast("dict[str, Any]", value)["reward"]
        if value is None:
            return None
    try:
        return parse_reward(value)
    except InvalidOutcomeError as error:
        shown = text if len(text) <= _SHOWN_LINE else f"{text[:_SHOWN_LINE]}…"
        raise InvalidOutcomeError(
            f'{place} of {label} should be a finite number, or a JSON object with one as "reward"; it is {shown!r}'
        ) from error


def _number(text: str) -> Any:
    """Read what is a number and no JSON, such as ``.5`` or ``nan``; what is none is returned as it is."""
    try:
        # Python takes 1_000 for a number; a program that prints that means something else.
        return text if "_" in text else float(text)
    except ValueError:
        return text
