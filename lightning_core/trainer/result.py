"""What a training run came to."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError

from lightning_core.errors import ConfigurationError
from lightning_core.types import NamedResources, RolloutStatus, RunStatus
from lightning_core.types._model import Model

__all__ = ["TrainingResult"]


class TrainingResult(Model):
    """What ``Trainer.fit`` returns, and stores with the run.

    Attributes:
        run_id: The run, by which the store knows it.
        status: How it ended; ``cancelled`` also when the runners reached ``max_rollouts`` before the algorithm was
            done.
        best_resources: The best resources that the algorithm found, or ``None``.
        metrics: What the algorithm logged, oldest first; ``time`` is in seconds since the epoch.
        rollouts: How many rollouts of the run are in each status.
        store: Specification of the store, such as ``sqlite:///runs.db``; ``memory`` is gone with its process.
        start_time: Seconds since the epoch.
        end_time: Seconds since the epoch.
        resumed: How often the run was resumed.
        settings: Which parts were used, by name.
    """

    model_config = ConfigDict(defer_build=True, extra="forbid")

    run_id: str
    status: RunStatus = "succeeded"
    best_resources: NamedResources | None = None
    metrics: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    rollouts: dict[RolloutStatus, int] = Field(default_factory=dict[RolloutStatus, int])
    store: str = "memory"
    start_time: float
    end_time: float
    resumed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the result as JSON, keys of model endpoints left out, and return the path."""
        target = Path(path)
        target.write_text(self.without_keys().model_dump_json(indent=2) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ConfigurationError: If it holds no training result.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(f"{path} holds no training result: {error}") from error

    def without_keys(self) -> Self:
        """Return a copy whose resources carry no API keys."""
        if self.best_resources is None:
            return self
        best = {
            name: resource.model_copy(update={"api_key": None})
            if getattr(resource, "api_key", None) is not None
            else resource
            for name, resource in self.best_resources.items()
        }
        return self.replace(best_resources=best)
