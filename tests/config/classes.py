"""Classes whose constructors become command lines in the tests."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, SecretStr

from lightning_core import BaseTracer, Hook, LightningStore, Trainer
from lightning_core.errors import ConfigurationError
from lightning_core.types import NamedResources

if TYPE_CHECKING:
    from lightning_core import BaseAlgorithm


class Color(enum.Enum):
    """Colors."""

    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Optimizer:
    """How weights change.

    Attributes:
        rate: The learning rate.
        steps: How many steps.
    """

    rate: float = 0.1
    steps: int = 3


class Solver:
    """Solves everything.

    It takes its time.

    Args:
        size: How large it is.
        color: Its color.
        tags: What it is known for, 100% of the time.
        weights: How much each thing weighs.
        optimizer: How it learns.
        folder: Where it writes.
        mode: How it works.
        limit: When it stops, in seconds.
        dry: Whether it only pretends.
        anything: Whatever you like.
        key: What it shows at the door.
    """

    def __init__(
        self,
        size: int,
        color: Color = Color.RED,
        tags: list[str] = ["plain"],  # noqa: B006 - as users write it
        weights: dict[str, float] | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008 - as users write it
        folder: Path | None = None,
        mode: Literal["fast", "slow"] = "fast",
        limit: float | None = None,
        dry: bool = False,
        anything: Any = None,
        key: SecretStr | None = None,
    ) -> None:
        self.given = {
            "size": size,
            "color": color,
            "tags": tags,
            "weights": weights,
            "optimizer": optimizer,
            "folder": folder,
            "mode": mode,
            "limit": limit,
            "dry": dry,
            "anything": anything,
            "key": key,
        }


class Recorder:
    """Takes parts as they are, and one of a type that is imported for type checkers only.

    Args:
        store: Where to.
        tracer: From where.
        hooks: What else.
        algorithm: What learns.
        resources: What with.
    """

    def __init__(
        self,
        store: LightningStore,
        tracer: BaseTracer | None = None,
        hooks: list[Hook] | None = None,
        algorithm: BaseAlgorithm | None = None,
        resources: NamedResources | None = None,
    ) -> None:
        self.store = store
        self.tracer = tracer
        self.hooks = hooks
        self.algorithm = algorithm
        self.resources = resources


class OwnTrainer(Trainer):
    """A trainer with a setting of its own.

    Args:
        rounds: How many rounds.
    """

    def __init__(self, rounds: int = 1, **others: Any) -> None:
        super().__init__(**others)
        self.rounds = rounds


class Limits(BaseModel):
    """Limits, as a model."""

    most: int = Field(3, ge=1, description="The most of it.")


class Note(Hook):
    """A hook with a setting."""

    def __init__(self, text: str = "") -> None:
        self.text = text


class Schedule:
    """A schedule.

    Args:
        start: Where it starts.
    """

    def __init__(self, start: float = 1.0) -> None:
        self.start = start


class Falling(Schedule):
    """A schedule that falls.

    Args:
        by: By how much.
    """

    def __init__(self, by: int = 1, start: float = 2.0) -> None:
        super().__init__(start)
        self.by = by


class Scheduled:
    """Takes an object of another class."""

    def __init__(self, schedule: Schedule, offset: int = 0) -> None:
        self.schedule = schedule
        self.offset = offset


class Door:
    """A class with a constructor that refuses.

    Args:
        password: What opens it.
    """

    def __init__(self, password: str = "sesame") -> None:
        if password != "sesame":
            raise ConfigurationError("the door stays closed")


class Proxy:
    """What an LLM proxy is at the least."""

    def __init__(self, port: int = 0) -> None:
        self.port = port

    def start(self) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop."""
