"""What goes into the calls of a store besides the data models, and what comes out of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, Field

from lightning_core.types import RolloutConfig, RolloutMode, RolloutStatus, TaskInput
from lightning_core.types._model import Model

__all__ = ["UNSET", "EnqueueRequest", "Maybe", "StoreCapabilities", "StoreStatistics", "Unset"]

T = TypeVar("T")


class Unset(Enum):
    """Type of :data:`UNSET`."""

    UNSET = "unset"


UNSET = Unset.UNSET
"""The default of update arguments: leave the field as it is (``None`` is a value)."""

Maybe: TypeAlias = T | Literal[Unset.UNSET]


@dataclass(frozen=True)
class StoreCapabilities:
    """What a store can do beyond the contract that all keep.

    Attributes:
        durable: Acknowledged writes survive the death of the process.
        processes: Several processes may open the same data at once.
        python_values: Inputs and metadata may hold any Python value; otherwise JSON values only.
    """

    durable: bool = False
    processes: bool = False
    python_values: bool = False


class EnqueueRequest(Model):
    """One rollout to enqueue; the fields are the arguments of :meth:`LightningStore.enqueue_rollout`."""

    model_config = ConfigDict(defer_build=True, extra="forbid")

    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] = Field(default_factory=dict)
    run_id: str | None = None
    idempotency_key: str | None = None


class StoreStatistics(Model):
    """How much a store holds."""

    rollouts: dict[RolloutStatus, int] = Field(default_factory=dict[RolloutStatus, int])
    attempts: int = 0
    spans: int = 0
    resources: int = 0
    workers: int = 0
    runs: int = 0
