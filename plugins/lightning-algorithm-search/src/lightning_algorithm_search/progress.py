"""How far a search has come, as it is kept in the store from rung to rung."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lightning_core.errors import ConfigurationError

from .trials import Record

__all__ = ["Progress"]


@dataclass
class Progress:
    """What a search needs to go on.

    Attributes:
        plan: The settings that decide how it goes on.
        resources_ids: The resources of each candidate, by its name, in the order in which the candidates were given.
        left: The candidates that are still in it, best first.
        rungs: In how many rungs each took part.
        records: What became of the rollouts of each.
        tasks_used: How many tasks of the shuffled training set are used up.
    """

    plan: dict[str, Any]
    resources_ids: dict[str, str]
    left: list[str]
    rungs: dict[str, int]
    records: dict[str, Record]
    tasks_used: int = 0

    @classmethod
    def start(cls, names: Iterable[str], plan: dict[str, Any]) -> Self:
        """Begin a search."""
        left = list(names)
        return cls(plan, {}, left, dict.fromkeys(left, 0), {name: Record() for name in left})

    def require_same(self, names: Iterable[str], plan: dict[str, Any]) -> None:
        """Refuse to go on with other candidates or settings.

        Raises:
            ConfigurationError: If they are not those with which the search was begun.
        """
        given = list(names)
        if given != list(self.rungs):
            raise ConfigurationError(
                f"search: the resumed run compares {', '.join(self.rungs)}, and not {', '.join(given)}; resume it "
                "with the same candidates, or begin a new run"
            )
        changed = [
            f"{name} was {was!r} and is {plan[name]!r}"
            for name, was in self.plan.items()
            if plan[name] != was
        ]
        if changed:
            raise ConfigurationError(
                f"search: the resumed run was begun with other settings: {'; '.join(changed)}; resume it with the "
                "same ones, or begin a new run"
            )

    def to_state(self) -> dict[str, Any]:
        """Return it as JSON values. Their order in objects means nothing: not every store keeps it."""
        return {
            "plan": self.plan,
            "left": self.left,
            "tasks_used": self.tasks_used,
            "candidates": [
                {
                    "name": name,
                    "resources_id": self.resources_ids[name],
                    "rungs": self.rungs[name],
                    "rewards": [[task, reward] for task, reward in record.rewards.items()],
                    "rollouts": record.rollouts,
                    "failed": record.failed,
                    "unrewarded": record.unrewarded,
                    "problems": [[problem, count] for problem, count in record.problems.items()],
                }
                for name, record in self.records.items()
            ],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Read what :meth:`to_state` returned."""
        candidates: dict[str, dict[str, Any]] = {each["name"]: each for each in state["candidates"]}
        records = {
            name: Record(
                rewards=dict(each["rewards"]),
                rollouts=each["rollouts"],
                failed=each["failed"],
                unrewarded=each["unrewarded"],
                problems=Counter(dict(each["problems"])),
            )
            for name, each in candidates.items()
        }
        return cls(
            plan=state["plan"],
            resources_ids={name: each["resources_id"] for name, each in candidates.items()},
            left=state["left"],
            rungs={name: each["rungs"] for name, each in candidates.items()},
            records=records,
            tasks_used=state["tasks_used"],
        )
