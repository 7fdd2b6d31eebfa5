"""Plain-text tables for the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import click

__all__ = ["print_table"]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; on a terminal, the last column is cut to its width."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, row in enumerate((header, *rows)):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if room is not None and len(line) > room:
            line = line[: room - 1] + "…"
        click.secho(line, bold=number == 0)
