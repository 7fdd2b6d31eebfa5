"""The arguments of each operation as they come over the network, validated before they reach the store."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from lightning_core.store.base import EnqueueRequest
from lightning_core.store.encoding import EncodedSpan
from lightning_core.types import (
    AttemptStatus,
    FailureReason,
    NamedResources,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Run,
    Span,
)

__all__ = [
    "AddResources",
    "AddSpan",
    "AddSpans",
    "Arguments",
    "Dequeue",
    "EncodedSpans",
    "Enqueue",
    "NoArguments",
    "OfAttempt",
    "OfResources",
    "OfRollout",
    "OfRun",
    "QueryAttempts",
    "QueryRollouts",
    "QueryRuns",
    "QuerySpans",
    "RenewLeases",
    "SaveRun",
    "SaveRunState",
    "StartAttempt",
    "StartRollout",
    "Statistics",
    "UpdateAttempt",
    "UpdateResources",
    "UpdateRollout",
    "UpdateWorker",
    "Vacuum",
    "WaitForRollouts",
]

_MOST = 2**53
Count = Annotated[int, Field(ge=0, le=_MOST)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
RequestId = Annotated[str, Field(min_length=1, max_length=200)]
# Any string is let through to the store, which has an error of its own for a status that does not exist.
AnyRolloutStatus = Annotated[
    RolloutStatus | str, Field(json_schema_extra={"enum": [*get_args(RolloutStatus)]})
]
AnyAttemptStatus = Annotated[
    AttemptStatus | str, Field(json_schema_extra={"enum": [*get_args(AttemptStatus)]})
]
AnyReason = Annotated[FailureReason | str, Field(json_schema_extra={"enum": [*get_args(FailureReason)]})]


class Arguments(BaseModel):
    """Base of all arguments: what is not understood is refused."""

    model_config = ConfigDict(extra="forbid")

    def given(self, *without: str) -> dict[str, Any]:
        """Return the fields that were given, except those named."""
        return {name: getattr(self, name) for name in self.model_fields_set if name not in without}

    def all(self, *without: str) -> dict[str, Any]:
        """Return every field, except those named."""
        return {name: value for name, value in self.__dict__.items() if name not in without}


class NoArguments(Arguments):
    """Nothing."""


class StartRollout(Arguments):
    """Arguments of ``start_rollout``."""

    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] = Field(default_factory=dict)
    run_id: str | None = None
    worker_id: str | None = None
    idempotency_key: str | None = None


class Enqueue(Arguments):
    """Arguments of ``enqueue_rollouts``."""

    rollouts: list[EnqueueRequest]


class Dequeue(Arguments):
    """Arguments of ``dequeue_rollouts``; ``wait`` in seconds, of which the server grants a part at a time."""

    limit: Count = 1
    worker_id: str | None = None
    wait: Seconds = 0.0
    run_id: str | None = None
    request_id: RequestId | None = None


class WaitForRollouts(Arguments):
    """Arguments of ``wait_for_rollouts``; ``timeout`` in seconds, of which the server grants a part at a time.

    ``skip_unknown`` is for asking again: rollouts that were deleted meanwhile are not waited for.
    """

    rollout_ids: list[str]
    timeout: Seconds | None = None
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip_unknown: bool = False


class OfRollout(Arguments):
    """A rollout."""

    rollout_id: Name


class OfAttempt(OfRollout):
    """An attempt."""

    attempt_id: Name


class StartAttempt(OfRollout):
    """Arguments of ``start_attempt``; a second call with the same ``request_id`` begins nothing."""

    worker_id: str | None = None
    request_id: RequestId | None = None


class AddSpan(Arguments):
    """Arguments of ``add_span``."""

    span: Span


class AddSpans(Arguments):
    """Arguments of ``add_spans``."""

    spans: list[Span]


class EncodedSpans(Arguments):
    """Spans in the encoding of ``lightning_core.store.encoding``."""

    spans: list[EncodedSpan]


class QueryRollouts(Arguments):
    """Arguments of ``query_rollouts``."""

    rollout_ids: list[str] | None = None
    status: list[RolloutStatus] | None = None
    mode: RolloutMode | None = None
    run_id: str | None = None
    descending: bool = False
    limit: Count | None = None
    offset: Count = 0


class QueryAttempts(OfRollout):
    """Arguments of ``query_attempts``."""

    status: list[AttemptStatus] | None = None
    limit: Count | None = None
    offset: Count = 0


class QuerySpans(OfRollout):
    """Arguments of ``query_spans``; ``attempt_id`` may be ``latest``."""

    attempt_id: str | None = None
    name: str | None = None
    span_id: str | None = None
    trace_id: str | None = None
    limit: Count | None = None
    offset: Count = 0


class UpdateRollout(OfRollout):
    """Arguments of ``update_rollout``; what is not given stays as it is."""

    input: Any = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: AnyRolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] = Field(default_factory=dict)


class UpdateAttempt(OfAttempt):
    """Arguments of ``update_attempt``; what is not given stays as it is, and ``attempt_id`` may be ``latest``."""

    status: AnyAttemptStatus = "running"
    worker_id: str | None = None
    last_heartbeat_time: Time = 0.0
    metadata: dict[str, Any] = Field(default_factory=dict)
    reason: AnyReason | None = None


class RenewLeases(Arguments):
    """Arguments of ``renew_leases``; an attempt is a pair of a rollout id and an attempt id."""

    worker_id: Name
    attempts: list[tuple[str, str]]


class AddResources(Arguments):
    """Arguments of ``add_resources``; the id is drawn by the server unless it is given."""

    resources: NamedResources
    resources_id: Name | None = None


class UpdateResources(Arguments):
    """Arguments of ``update_resources``."""

    resources_id: Name
    resources: NamedResources


class OfResources(Arguments):
    """Resources."""

    resources_id: Name


class UpdateWorker(Arguments):
    """Arguments of ``update_worker``."""

    worker_id: Name
    heartbeat_stats: dict[str, Any] | None = None


class SaveRun(Arguments):
    """Arguments of ``save_run``."""

    run: Run


class QueryRuns(Arguments):
    """Arguments of ``query_runs``."""

    run_id: str | None = None


class OfRun(Arguments):
    """A run."""

    run_id: Name


class SaveRunState(OfRun):
    """Arguments of ``save_run_state``."""

    state: dict[str, Any]


class Vacuum(Arguments):
    """Arguments of ``vacuum``; ``before`` in seconds since the epoch."""

    before: Time


class Statistics(Arguments):
    """Arguments of ``statistics``."""

    run_id: str | None = None
