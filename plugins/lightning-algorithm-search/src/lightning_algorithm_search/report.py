"""The table of a search, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .intervals import Interval, mean_interval
from .trials import Record

__all__ = ["Comparison", "final_text", "table"]

_WIDEST_NAME = 48


@dataclass(frozen=True)
class Comparison:
    """The winner and the first candidate on held-out tasks.

    Attributes:
        winner: The winner's mean; ``None`` if none of its rollouts counts.
        first: The first candidate's mean; ``None`` likewise, or if it is the winner itself.
        difference: Winner minus first, on the same tasks; ``None`` if they have none in common.
    """

    winner: Interval | None
    first: Interval | None = None
    difference: Interval | None = None


def table(
    records: Mapping[str, Record], rungs: Mapping[str, int], order: Sequence[str], confidence: float
) -> str:
    """Return a table of candidates.

    Args:
        records: By candidate.
        rungs: How many rungs each took part in.
        order: The candidates, best first.
        confidence: Of the intervals.
    """
    header = ("candidate", "rungs", "rollouts", "mean", f"{confidence:.0%} interval", "failed", "no reward")
    rows = [header, *(_row(name, records[name], rungs[name], confidence) for name in order)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def final_text(grid: str, winner: str, first: str, comparison: Comparison | None, confidence: float) -> str:
    """Return the table with the winner, and how it did on held-out tasks."""
    lines = [grid, "", f"winner: {winner}"]
    if comparison is None:
        lines.append(
            "No validation set was given. The winner's mean is that of the best of several on the tasks that chose it, "
            "so expect less on new ones."
        )
    elif winner == first:
        lines.append(f"held-out: {comparison.winner or 'no reward'}; the first candidate itself has won")
    elif comparison.difference is None:
        lines.append(
            "held-out: winner and first candidate have no task in common for which both have a reward"
        )
    else:
        lines += [
            f"held-out: {comparison.winner} against {comparison.first} of the first candidate ({first})",
            f"difference: {comparison.difference.mean:+.3f} {_bounds(comparison.difference)} at {confidence:.0%}, "
            f"paired on {comparison.difference.count} tasks",
        ]
    return "\n".join(lines)


def _row(name: str, record: Record, rungs: int, confidence: float) -> tuple[str, ...]:
    short = name if len(name) <= _WIDEST_NAME else name[: _WIDEST_NAME - 1] + "…"
    interval = mean_interval(list(record.rewards.values()), confidence) if record.rewards else None
    return (
        short,
        str(rungs),
        str(record.rollouts),
        f"{interval.mean:.3f}" if interval else "-",
        _bounds(interval) if interval else "-",
        str(record.failed),
        str(record.unrewarded),
    )


def _bounds(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if interval.count > 1 else "-"
