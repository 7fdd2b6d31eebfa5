"""Counts what is lost, and says so in the log at most once per minute."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

__all__ = ["Losses"]

_REASONS = 20


class Losses:
    """A count of lost spans that reports itself. May be used from any thread.

    Args:
        logger: Where to report.
        what: What happened to the spans, after their number: ``"spans were not forwarded"``.
        every: The shortest time between two reports, in seconds.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        what: str,
        *,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._what = what
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._unreported: Counter[str] = Counter()
        self._total = 0
        self._due = clock()

    @property
    def total(self) -> int:
        """How many were lost in all."""
        return self._total

    def add(self, count: int, reason: str) -> None:
        """Count ``count`` spans as lost, and report if it is time to."""
        with self._lock:
            self._total += count
            known = reason in self._unreported or len(self._unreported) < _REASONS
            self._unreported[reason if known else "other reasons"] += count
        self.report()

    def until_due(self) -> float | None:
        """In how many seconds :meth:`report` has something to say; ``None`` if nothing waits to be said."""
        with self._lock:
            return max(self._due - self._clock(), 0.0) if self._unreported else None

    def report(self, *, now: bool = False) -> None:
        """Log what was lost since the last report, unless that was less than ``every`` seconds ago.

        Args:
            now: However long ago it was.
        """
        with self._lock:
            time_ = self._clock()
            if not self._unreported or (time_ < self._due and not now):
                return
            self._due = time_ + self._every
            lost, self._unreported = self._unreported, Counter()
            total = self._total
        reasons = "; ".join(f"{count}: {reason}" for reason, count in lost.most_common())
        self._logger.warning("%d %s (%s); %d in all", lost.total(), self._what, reasons, total)
