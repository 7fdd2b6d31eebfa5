"""What has ended so far: counts, mean rewards and the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Mean", "Tally"]


@dataclass
class Mean:
    """A running mean, and its standard error, by Welford's method.

    B. P. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4
    (1962) 419-420: it sums squares of differences to the running mean, so that nothing large cancels.
    """

    count: int = 0
    value: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one more value in."""
        self.count += 1
        before = value - self.value
        self.value += before / self.count
        self._squares += before * (value - self.value)

    @property
    def standard_error(self) -> float | None:
        """``s / sqrt(n)`` with the sample standard deviation ``s``; ``None`` for fewer than two values."""
        if self.count < 2:
            return None
        return math.sqrt(max(self._squares, 0.0) / (self.count - 1) / self.count)

    def __str__(self) -> str:
        error = self.standard_error
        return f"{self.value:.2f}" if error is None else f"{self.value:.2f} ± {error:.2f}"


@dataclass
class Tally:
    """Counts of the rollouts of one run. Times are seconds on any one clock."""

    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    unrewarded: int = 0
    rewards: dict[str, Mean] = field(default_factory=dict[str, Mean])
    started_at: float | None = None

    def start(self, now: float) -> None:
        """Note the start of a rollout; the first one starts the clock."""
        if self.started_at is None:
            self.started_at = now

    def rate(self, now: float) -> float | None:
        """Rollouts that ended, per second since the first one started; ``None`` as long as none has ended."""
        if not self.ended or self.started_at is None or now <= self.started_at:
            return None
        return self.ended / (now - self.started_at)

    def reward(self) -> str:
        """The mean rewards, by mode if there are several; empty if there is no reward."""
        if not self.rewards:
            return ""
        if len(self.rewards) == 1:
            return f"reward {next(iter(self.rewards.values()))}"
        return "reward " + ", ".join(f"{mode} {mean}" for mode, mean in self.rewards.items())

    def troubles(self) -> str:
        """What did not go well; empty if all did."""
        counts = {
            "failed": self.failed,
            "cancelled": self.cancelled,
            "retried": self.retried,
            "without reward": self.unrewarded,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def line(self, now: float, total: int | None) -> str:
        """Say it all in one line."""
        rate = self.rate(now)
        parts = [
            f"{self.ended}{f'/{total}' if total else ''} rollouts",
            f"{rate:.1f}/s" if rate is not None else "",
            self.reward(),
            self.troubles(),
        ]
        return "progress: " + ", ".join(part for part in parts if part)
