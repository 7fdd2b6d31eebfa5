"""The two ways to show a tally: a bar that rich draws, and lines at a limited rate."""

from __future__ import annotations

import sys
import weakref
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from .tally import Tally

__all__ = ["Bar", "Display", "Lines"]


class Display(Protocol):
    """Shows a tally. ``now`` is in seconds, ``total`` the number of rollouts if it is known."""

    def due(self, now: float) -> bool:
        """Whether an update would show anything now."""
        ...

    def update(self, tally: Tally, now: float, total: int | None) -> None:
        """Show the tally."""
        ...

    def close(self, tally: Tally, now: float, total: int | None) -> None:
        """Show the final tally, and stop."""
        ...


class Lines:
    """Writes a line at most every ``interval`` seconds, and one at the end."""

    def __init__(self, stream: TextIO, interval: float, now: float) -> None:
        self._stream = stream
        self._interval = interval
        self._next = now + interval

    def due(self, now: float) -> bool:
        """Whether the interval has passed."""
        return now >= self._next

    def update(self, tally: Tally, now: float, total: int | None) -> None:
        """Write a line."""
        if self.due(now):
            self._next = now + self._interval
            self.close(tally, now, total)

    def close(self, tally: Tally, now: float, total: int | None) -> None:
        """Write a line."""
        self._stream.write(tally.line(now, total) + "\n")
        self._stream.flush()


class Bar:
    """A live bar. Rich redraws it in a thread of its own, ten times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("rollouts"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("[bold]{task.fields[reward]}"),
            TextColumn("[red]{task.fields[troubles]}"),
            console=Console(file=stream, force_terminal=True),
            # What a script prints goes above the bar, unless it is piped elsewhere.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=None, rate="", reward="", troubles="")
        self._progress.start()
        # Gives the cursor back if nobody closes the bar, at the end of the process at the latest.
        self._stop = weakref.finalize(self, self._progress.stop)

    def due(self, now: float) -> bool:
        """Always: rich limits the rate."""
        return True

    def update(self, tally: Tally, now: float, total: int | None) -> None:
        """Set what the next redraw shows."""
        rate = tally.rate(now)
        self._progress.update(
            self._task,
            completed=tally.ended,
            total=max(total, tally.ended) if total else None,
            rate=f"{rate:.1f}/s" if rate is not None else "",
            reward=tally.reward(),
            troubles=tally.troubles(),
        )

    def close(self, tally: Tally, now: float, total: int | None) -> None:
        """Leave the final figures on the screen."""
        self.update(tally, now, total or tally.ended or None)
        self._stop()
