"""Prints what a run came to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

__all__ = ["counts_text", "print_fields", "print_outcome", "value_text"]


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print labels and values in two columns."""
    for label, value in fields:
        click.echo(f"{label:<10} {value}")


def print_outcome(best: Mapping[str, Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Print the best resources and the metrics; those that are tables or lists are left out."""
    for name, resource in best.items():
        click.echo(f"\nbest {name} ({resource.get('resource_type')})")
        for key, value in resource.items():
            if key != "resource_type" and value not in (None, {}):
                click.echo(f"  {key}: {value_text(value)}")
    if metrics:
        click.echo()
    for entry in metrics:
        plain = {key: value for key, value in entry.items() if not isinstance(value, dict | list)}
        report = plain.pop("report", None)
        shown = ", ".join(f"{key}={value_text(value)}" for key, value in plain.items() if key != "time")
        click.echo(f"metrics    {shown}")
        if report:
            click.echo(f"\n{report}")


def counts_text(counts: Mapping[Any, int]) -> str:
    """Return counts in words: ``1 failed, 2 succeeded``."""
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"


def value_text(value: Any, width: int | None = None) -> str:
    """Return a value as text, cut to a width if there is one."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if width is None else " ".join(text.split())
    return text if width is None or len(text) <= width else text[: width - 1] + "…"
