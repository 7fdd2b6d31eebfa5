"""Rollouts, attempts, tasks, workers, runs, and the ``Hook`` that follows their lifecycle."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from opentelemetry.sdk.trace import ReadableSpan
from pydantic import ConfigDict, Field, model_validator

from ._model import Model, StrictModel, copy_value
from .tracing import Span

if TYPE_CHECKING:
    from lightning_core.litagent import LitAgent
    from lightning_core.runner.base import BaseRunner
    from lightning_core.tracer.base import BaseTracer

__all__ = [
    "FINAL_ROLLOUT_STATUSES",
    "Attempt",
    "AttemptStatus",
    "AttemptedRollout",
    "Dataset",
    "Deletion",
    "FailureReason",
    "GenericResponse",
    "Hook",
    "ParallelWorkerBase",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutRawResult",
    "RolloutRawResultV2",
    "RolloutStatus",
    "RolloutV2",
    "Run",
    "RunOwner",
    "RunState",
    "RunStatus",
    "Task",
    "TaskInput",
    "Triplet",
    "Worker",
    "WorkerStatus",
]

T_co = TypeVar("T_co", covariant=True)

TaskInput: TypeAlias = Any
"""What an agent is asked to do: one item of a dataset. Stores that persist accept JSON values."""

RolloutMode = Literal["train", "val", "test"]
"""Why the rollout runs: to learn from it, to validate, or to test."""

RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
"""``failed``, ``succeeded`` and ``cancelled`` are final."""

AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout", "cancelled"]
"""Only ``preparing`` and ``running`` are live; an ``unresponsive`` attempt may come back to life."""

FailureReason = Literal[
    "agent_error", "timeout", "unresponsive", "cancelled", "no_resources", "infrastructure"
]
"""Why an attempt did not succeed: the agent raised or returned nonsense; it ran too long; its worker fell silent;
somebody stopped it; the resources it asked for do not exist; or something around the agent broke, such as the tracer
or the store."""

WorkerStatus = Literal["idle", "busy", "unknown"]
RunStatus = Literal["running", "succeeded", "failed", "cancelled"]

FINAL_ROLLOUT_STATUSES: frozenset[RolloutStatus] = frozenset({"succeeded", "failed", "cancelled"})


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


class RolloutConfig(StrictModel):
    """Limits and retries of one rollout.

    Attributes:
        timeout_seconds: Longest run time of an attempt, in seconds; ``None`` for no limit.
        unresponsive_seconds: Length of an attempt's lease, in seconds. Spans and heartbeats renew it; when it
            runs out the attempt is ``unresponsive``. ``None`` for the store's default of 60 seconds.
        max_attempts: How often the rollout may be tried, not counting attempts that were lost; at least 1.
        retry_condition: Which attempt endings are worth another attempt, while ``max_attempts`` allows one: statuses
            of attempts, reasons of failures, or both. A cancelled attempt is never retried.
        max_losses: How many lost attempts do not count, and are followed by another one whatever ``retry_condition``
            says. An attempt is lost that ends with the reason ``unresponsive`` or ``infrastructure``: its worker was
            killed, or something around the agent broke. 0 for an agent whose doings must not happen twice.
    """

    model_config = ConfigDict(defer_build=True, extra="forbid")

    timeout_seconds: float | None = Field(default=None, gt=0)
    unresponsive_seconds: float | None = Field(default=None, gt=0)
    max_attempts: int = Field(default=1, ge=1)
    retry_condition: list[AttemptStatus | FailureReason] = Field(
        default_factory=lambda: ["failed", "timeout", "unresponsive"]
    )
    max_losses: int = Field(default=3, ge=0)

    def detached(self) -> RolloutConfig:
        """Return a copy that shares no mutable part with this config."""
        return self.replace(retry_condition=self.retry_condition.copy())


class Attempt(Model):
    """One try at a rollout.

    Times are seconds since the epoch. ``sequence_id`` counts the attempts of a rollout from 1. ``reason`` says why an
    attempt did not succeed, and is set on every one that ended otherwise; what there is to say about it in words is in
    the metadata, as ``error`` or ``detail``. ``lost_before`` says how many of the attempts before it were lost; see
    ``RolloutConfig.max_losses``.
    """

    rollout_id: str
    attempt_id: str
    sequence_id: int
    start_time: float
    end_time: float | None = None
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    reason: FailureReason | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    lost_before: int = 0

    def detached(self) -> Attempt:
        """Return a copy that shares no mutable part with this attempt."""
        return self.replace(metadata=copy_value(self.metadata) if self.metadata else {})


class RolloutV2(Model):
    """A rollout: one task, put through an agent, in as many attempts as its config allows.

    Times are seconds since the epoch. ``run_id`` names the training run that enqueued it, and
    ``idempotency_key`` is the enqueuer's own name for it, which makes a repeated enqueue harmless.
    """

    rollout_id: str
    input: TaskInput
    start_time: float
    end_time: float | None = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] = Field(default_factory=dict)
    run_id: str | None = None
    idempotency_key: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the rollout has ended for good."""
        return self.status in FINAL_ROLLOUT_STATUSES

    def _detached_values(self) -> dict[str, Any]:
        values = self.__dict__.copy()
        values["input"] = copy_value(values["input"])
        values["config"] = values["config"].detached()
        metadata = values["metadata"]
        values["metadata"] = copy_value(metadata) if metadata else {}
        return values

    def detached(self) -> RolloutV2:
        """Return a copy that shares no mutable part with this rollout."""
        return self.trusted(self._detached_values())

    def with_attempt(self, attempt: Attempt) -> AttemptedRollout:
        """Return a copy along with a copy of ``attempt``.

        Raises:
            ValueError: If the attempt belongs to another rollout.
        """
        _check_own(self, attempt)
        values = self._detached_values()
        values["attempt"] = attempt.detached()
        return AttemptedRollout.trusted(values)


class AttemptedRollout(RolloutV2):
    """A rollout along with its active attempt.

    Raises:
        pydantic.ValidationError: If the attempt belongs to another rollout.
    """

    attempt: Attempt

    @model_validator(mode="after")
    def _own_attempt(self) -> AttemptedRollout:
        _check_own(self, self.attempt)
        return self


def _check_own(rollout: RolloutV2, attempt: Attempt) -> None:
    if attempt.rollout_id != rollout.rollout_id:
        raise ValueError(
            f"attempt {attempt.attempt_id!r} belongs to rollout {attempt.rollout_id!r}, "
            f"not to {rollout.rollout_id!r}"
        )


class Triplet(Model):
    """One turn of a trajectory: what the model was given, what it said, and what that was worth."""

    prompt: Any
    response: Any
    reward: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Task(Model):
    """A v0.1 rollout request, as a server hands it to a client. Times are seconds since the epoch."""

    rollout_id: str
    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    create_time: float | None = None
    last_claim_time: float | None = None
    num_claims: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Rollout(Model):
    """A v0.1 rollout report, as a client posts it to a server."""

    rollout_id: str
    task: Task | None = None
    final_reward: float | None = None
    triplets: list[Triplet] | None = None
    trace: list[dict[str, Any]] | None = Field(
        default=None, description="Spans as JSON objects, in the order in which they ended."
    )
    logs: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


RolloutRawResult: TypeAlias = (
    float | list[Triplet] | list[dict[str, Any]] | list[ReadableSpan] | Rollout | None
)
"""What a v0.1 agent may return."""

RolloutRawResultV2: TypeAlias = float | list[ReadableSpan] | list[Span] | None
"""What an agent may return: nothing (its spans tell), a reward, or spans of its own."""


class GenericResponse(Model):
    """A plain answer of a v0.1 server."""

    status: str = "success"
    message: str | None = None
    data: dict[str, Any] | None = None


class Worker(Model):
    """A process or thread that runs rollouts. Times are seconds since the epoch."""

    worker_id: str
    status: WorkerStatus = "unknown"
    last_heartbeat_time: float | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None
    heartbeat_stats: dict[str, Any] = Field(default_factory=dict)


class RunOwner(Model):
    """The process that a run runs in.

    Attributes:
        host: Which machine, and on it which namespace of process ids.
        pid: Process id.
        token: Tells this hold on the run from every other one.
        heartbeat_time: When it was last heard of, in seconds since the epoch.
    """

    host: str
    pid: int
    token: str
    heartbeat_time: float


class Run(Model):
    """One call of ``Trainer.fit``, as its store keeps it. Times are seconds since the epoch.

    Attributes:
        settings: Which parts were used, by name.
        result: The ``TrainingResult`` as JSON, once there is one.
        resumed: How often it was resumed.
        owner: The process that it runs in, while it is ``running`` in a store that outlives the process.
    """

    run_id: str = Field(default_factory=lambda: _new_id("run"))
    status: RunStatus = "running"
    start_time: float = Field(default_factory=time.time)
    end_time: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: str | None = None
    resumed: int = 0
    owner: RunOwner | None = None


class RunState(Model):
    """What the algorithm of a run has saved, so that it can go on after a crash; made of JSON values."""

    run_id: str
    state: dict[str, Any]


class Deletion(Model):
    """What a vacuum has deleted: things by id, rollouts along with their attempts and spans, runs with their states."""

    rollout_ids: list[str] = Field(default_factory=list[str])
    run_ids: list[str] = Field(default_factory=list[str])
    worker_ids: list[str] = Field(default_factory=list[str])
    resources_ids: list[str] = Field(default_factory=list[str])


class Dataset(Protocol[T_co]):
    """Anything with a length and item access; a plain list will do."""

    def __getitem__(self, index: int, /) -> T_co:
        """Return the item at ``index``."""
        ...

    def __len__(self) -> int:
        """Return how many items there are."""
        ...


class ParallelWorkerBase:
    """The life of an object that works in parallel.

    ``init`` in the main process, ``init_worker`` in each worker, ``run`` there, then ``teardown_worker`` in
    each worker and ``teardown`` in the main process. All of them do nothing unless a subclass says otherwise.
    """

    worker_id: int | None = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Prepare the object in the main process."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Prepare the object in the worker that has this number."""
        self.worker_id = worker_id

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work."""

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Clean up in the worker."""

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Clean up in the main process."""


class Hook(ParallelWorkerBase):
    """Follows the lifecycle of rollouts. Override any of the four events; all of them are async.

    The runner awaits the hooks of an event one after another. A hook that fails is logged, and changes
    neither the rollout nor the other hooks. Every start has its end, also after an error or a cancellation.
    """

    async def on_rollout_start(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], rollout: RolloutV2
    ) -> None:
        """Called before an attempt begins, once its resources are known.

        Raises:
            VetoRollout: To end the rollout as ``cancelled``, for instance when a budget is spent.
        """

    async def on_trace_start(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], tracer: BaseTracer, rollout: RolloutV2
    ) -> None:
        """Called when the trace context is open and the agent has not started."""

    async def on_trace_end(
        self, *, agent: LitAgent[Any], runner: BaseRunner[Any], tracer: BaseTracer, rollout: RolloutV2
    ) -> None:
        """Called when the agent has ended and the trace context is still open."""

    async def on_rollout_end(
        self,
        *,
        agent: LitAgent[Any],
        runner: BaseRunner[Any],
        rollout: RolloutV2,
        spans: Sequence[ReadableSpan] | Sequence[Span],
    ) -> None:
        """Called when the attempt has ended, with the spans that are in the store by then.

        ``rollout`` is an ``AttemptedRollout`` whose attempt has the status and the metadata with which it is
        about to be reported: ``rollout.attempt.status`` tells success from failure.
        """
