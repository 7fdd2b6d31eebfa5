"""What a check reports: its points, each with what was found and what to do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from lightning_core.types import FailureReason, RolloutStatus, Span
from lightning_core.types._model import Model

__all__ = ["CheckPoint", "CheckReport", "Level", "counted"]

Level = Literal["ok", "warning", "problem"]


class CheckPoint(Model):
    """What was found about one thing.

    Attributes:
        name: What was looked at, such as ``reward``.
        level: ``problem`` if training on it would fail or learn the wrong thing, ``warning`` if it may.
        text: What was found.
        fix: What to do about it; empty where nothing is to be done.
        details: Lines that say more, such as a traceback.
    """

    model_config = ConfigDict(defer_build=True, extra="forbid")

    name: str
    level: Level
    text: str
    fix: str = ""
    details: list[str] = Field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return the point as text, line by line."""
        lines = [
            f"  {self.level + ':':<9}{self.name}: {self.text}",
            *(f"      {line}" for line in self.details),
        ]
        return [*lines, f"      fix: {self.fix}"] if self.fix else lines


class CheckReport(Model):
    """What ``Trainer.check`` has found. ``str()`` gives it as text.

    Attributes:
        agent: What the agent is called.
        status: How its rollout ended; ``None`` if it could not be run at all.
        reason: Why, unless it succeeded.
        reward: The final reward, if there is one.
        points: What was looked at, each with what was found.
        spans: The spans of the rollout, in the order of their sequence ids.
    """

    model_config = ConfigDict(defer_build=True, extra="forbid")

    agent: str
    status: RolloutStatus | None = None
    reason: FailureReason | None = None
    reward: float | None = None
    points: list[CheckPoint] = Field(default_factory=list[CheckPoint])
    spans: list[Span] = Field(default_factory=list[Span], exclude=True, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is a problem."""
        return not self.problems

    @property
    def problems(self) -> list[CheckPoint]:
        """The points that are a problem."""
        return self._of("problem")

    @property
    def warnings(self) -> list[CheckPoint]:
        """The points that may become one."""
        return self._of("warning")

    def _of(self, level: Level) -> list[CheckPoint]:
        return [point for point in self.points if point.level == level]

    def summary(self) -> str:
        """Return the report in one line."""
        counts = [(len(self.problems), "problem"), (len(self.warnings), "warning")]
        said = ", ".join(counted(count, what) for count, what in counts if count)
        return f"one rollout of {self.agent}: {said or 'nothing is wrong'}"

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(line for point in self.points for line in point.lines())])


def counted(count: int, what: str) -> str:
    """Return a number of things as text, such as ``1 call`` or ``2 calls``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
