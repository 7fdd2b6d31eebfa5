"""The store contract: the one place where algorithms and runners meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, get_args

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.errors import ConfigurationError
from lightning_core.store._arguments import (
    UNSET,
    EnqueueRequest,
    Maybe,
    StoreCapabilities,
    StoreStatistics,
    Unset,
)
from lightning_core.store.encoding import EncodedSpan, decode_span, encode_span
from lightning_core.store.otlp import OtlpEndpoint
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    FailureReason,
    NamedResources,
    ResourcesUpdate,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    RolloutV2,
    Run,
    Span,
    TaskInput,
    Worker,
)
from lightning_core.types._model import build_models
from lightning_core.types.tracing import SpanBatch

__all__ = [
    "UNSET",
    "EnqueueRequest",
    "LightningStore",
    "Maybe",
    "StoreCapabilities",
    "StoreStatistics",
    "Unset",
]

_MODES = {None, *get_args(RolloutMode)}


class LightningStore(ABC):
    """Keeps rollouts, their attempts and spans, resources, workers and runs.

    What every store promises, and ``lightning_core.testing.StoreConformance`` checks:

    * Final states absorb: a rollout that ``succeeded``, ``failed`` or was ``cancelled`` keeps that status, whoever
      reports late.
    * A dequeued attempt holds a lease, renewed by its spans and heartbeats. When the lease or the attempt's time
      limit runs out, the rollout is retried or fails, as its ``RolloutConfig`` says.
    * Writes are idempotent: a span is keyed by (rollout, attempt, span id), an enqueue by its idempotency key.
    * Spans of an attempt are ordered by ``sequence_id``, strictly increasing, drawn when a span is first written.
    * Nothing returned aliases stored state, nor does the store keep what it was given.
    * Waiting is event-driven. A store object may be used from several threads and event loops at once.

    The rules themselves are pure functions in ``lightning_core.store.lifecycle``; a store only persists. Times are
    seconds since the epoch, durations seconds.
    """

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Build the data models first: whatever uses them from several threads has a store."""
        build_models()
        return super().__new__(cls)

    @property
    def location(self) -> str:
        """Where the data are, as a specification that opens them again, or ``"memory"``."""
        return "memory"

    @property
    def otlp_endpoint(self) -> OtlpEndpoint | None:
        """Where other programs report spans to this store over OTLP, or ``None`` if it is not served like that."""
        return None

    # Putting work in

    @abstractmethod
    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        worker_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout and its first attempt at once, without passing the queue.

        A second call with the same ``idempotency_key`` returns the first one's rollout, with its latest attempt. The
        keys are those of :meth:`enqueue_rollout`; if the rollout was enqueued and has no attempt yet, one begins.
        """

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> RolloutV2:
        """Put one rollout at the end of the queue.

        Args:
            input: The task; a store without ``python_values`` takes JSON values only.
            mode: Why it runs.
            resources_id: The resources to use; ``None`` for the latest at the time it runs.
            config: Limits and retries.
            metadata: Anything worth keeping with the rollout.
            run_id: The run that it belongs to.
            idempotency_key: A second call with the same key returns the first one's rollout.

        Raises:
            ConfigurationError: If ``mode`` or ``config`` is none.
            UnserializableValueError: If the store cannot keep ``input`` or ``metadata``.
        """
        if mode not in _MODES:
            raise ConfigurationError(f"mode must be 'train', 'val', 'test' or None, not {mode!r}")
        if config is not None and not isinstance(config, RolloutConfig):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
            raise ConfigurationError(f"config must be a RolloutConfig, not a {type(config).__name__}")
        request = EnqueueRequest.trusted(
            {
                "input": input,
                "mode": mode,
                "resources_id": resources_id,
                "config": config or RolloutConfig(),
                "metadata": metadata or {},
                "run_id": run_id,
                "idempotency_key": idempotency_key,
            }
        )
        return (await self.enqueue_rollouts([request]))[0]

    @abstractmethod
    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue, all or none, and return them in the same order."""

    # Taking work out

    async def dequeue_rollout(
        self, worker_id: str | None = None, *, run_id: str | None = None
    ) -> AttemptedRollout | None:
        """Take the oldest queued rollout and begin an attempt; ``None`` if the queue is empty."""
        rollouts = await self.dequeue_rollouts(1, worker_id, run_id=run_id)
        return rollouts[0] if rollouts else None

    @abstractmethod
    async def dequeue_rollouts(
        self,
        limit: int = 1,
        worker_id: str | None = None,
        wait: float = 0.0,
        *,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> list[AttemptedRollout]:
        """Take up to ``limit`` queued rollouts, oldest first, and begin an attempt of each.

        A call that is cancelled loses no work: what it had taken goes back to the queue.

        Args:
            limit: The most to take.
            worker_id: Who will run them.
            wait: How long to wait, in seconds, while the queue is empty. Returns as soon as there is work.
            run_id: Take only rollouts of this run.
            request_id: Makes it safe to ask again when the answer was lost: while attempts that an earlier call with
                the same ``worker_id`` and ``request_id`` began are live, those are returned and nothing else is taken.
                Their ids begin with ``at-<request_id>-``. Needs a ``worker_id``.

        Raises:
            ConfigurationError: If there is a ``request_id`` and no ``worker_id``.
        """

    @abstractmethod
    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, request_id: str | None = None
    ) -> AttemptedRollout:
        """Begin a new attempt of a rollout that has not ended; a live one is superseded.

        Args:
            rollout_id: The rollout.
            worker_id: Who will run it.
            request_id: Makes it safe to ask again when the answer was lost: if a call with the same ``request_id`` has
                begun an attempt of this rollout, the last such attempt is returned, whatever has become of it, and
                nothing else is begun. Its id begins with ``at-<request_id>-``.

        Raises:
            UnknownRolloutError: If there is no such rollout.
            FinalRolloutError: If it has ended.
        """

    # Spans

    async def add_span(self, span: Span) -> Span:
        """Store one span and return it as stored; see :meth:`add_spans`."""
        await self.add_spans([span])
        stored = await self.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id)
        return stored[0]

    @abstractmethod
    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, which may be of several attempts; all or none.

        A span whose (rollout, attempt, span id) is stored already changes nothing. A ``sequence_id`` of 0 is drawn
        here, in the order given. A span is a sign of life of its attempt. Spans of superseded or ended attempts
        are kept under these.

        Returns:
            How many spans were new.

        Raises:
            UnknownRolloutError, UnknownAttemptError: If a span belongs to nothing in the store.
            SpanConflictError: If another span of the attempt has the given ``sequence_id``.
        """

    async def add_encoded_spans(self, spans: Sequence[EncodedSpan]) -> int:
        """Store spans that are encoded already, as they come over a network; see :meth:`add_spans`.

        A store that keeps the encoding of ``lightning_core.store.encoding`` need not decode them.
        """
        return await self.add_spans(SpanBatch(map(decode_span, spans)))

    async def query_encoded_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        name: str | None = None,
        span_id: str | None = None,
        trace_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[EncodedSpan]:
        """Return what :meth:`query_spans` returns, encoded."""
        spans = await self.query_spans(
            rollout_id, attempt_id, name=name, span_id=span_id, trace_id=trace_id, limit=limit, offset=offset
        )
        return [encode_span(span) for span in spans]

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span:
        """Store a span of the OpenTelemetry SDK and return it as stored; see :meth:`add_spans`."""
        return await self.add_span(
            Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        )

    @abstractmethod
    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id, for a caller that must know it before the span is written."""

    # Reading

    @abstractmethod
    async def query_rollouts(
        self,
        *,
        rollout_ids: Sequence[str] | None = None,
        status: Sequence[RolloutStatus] | None = None,
        mode: RolloutMode | None = None,
        run_id: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[RolloutV2]:
        """Return the rollouts that pass every given filter, in the order in which they were created.

        Args:
            rollout_ids: Only these.
            status: Only those in one of these statuses.
            mode: Only those of this mode.
            run_id: Only those of this run.
            descending: Newest first.
            limit: The most to return.
            offset: How many to skip.
        """

    @abstractmethod
    async def query_attempts(
        self,
        rollout_id: str,
        *,
        status: Sequence[AttemptStatus] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Attempt]:
        """Return a rollout's attempts in order; an unknown rollout has none."""

    @abstractmethod
    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        name: str | None = None,
        span_id: str | None = None,
        trace_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Span]:
        """Return spans ordered by attempt, then ``sequence_id``.

        Args:
            rollout_id: Whose; an unknown rollout has none.
            attempt_id: Of one attempt; ``"latest"`` means the latest, even when it has no span yet; ``None`` all.
            name: Only spans of this name.
            span_id: Only the span of this id.
            trace_id: Only spans of this trace.
            limit: The most to return.
            offset: How many to skip.
        """

    @abstractmethod
    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""

    @abstractmethod
    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""

    # Reporting

    @abstractmethod
    async def update_rollout(
        self,
        rollout_id: str,
        input: Maybe[TaskInput] = UNSET,
        mode: Maybe[RolloutMode | None] = UNSET,
        resources_id: Maybe[str | None] = UNSET,
        status: Maybe[RolloutStatus] = UNSET,
        config: Maybe[RolloutConfig] = UNSET,
        metadata: Maybe[dict[str, Any]] = UNSET,
    ) -> RolloutV2:
        """Change fields of a rollout; ``metadata`` is merged into what is there.

        A final ``status`` ends the live attempt too, and ``queuing`` or ``requeuing`` takes it back to the end of the
        queue. A ``status`` for a rollout that is final already changes nothing.

        Raises:
            UnknownRolloutError: If there is no such rollout.
            FinalRolloutError: If it has ended and another field than ``status`` or ``metadata`` is given.
            InvalidTransitionError: If ``status`` is none, or ``preparing`` or ``running`` without a live attempt.
        """

    @abstractmethod
    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: Maybe[AttemptStatus] = UNSET,
        worker_id: Maybe[str | None] = UNSET,
        last_heartbeat_time: Maybe[float] = UNSET,
        metadata: Maybe[dict[str, Any]] = UNSET,
        *,
        reason: FailureReason | None = None,
    ) -> Attempt:
        """Report on an attempt; ``metadata`` is merged into what is there.

        A status that ends the attempt ends, retries or fails its rollout. What is reported of a superseded attempt
        is kept there and not counted.

        Args:
            rollout_id: The rollout.
            attempt_id: Its attempt, or ``"latest"``: the one that is the latest when the report takes effect.
            status: The attempt's new status.
            worker_id: Who runs it.
            last_heartbeat_time: When it was last alive; what lies in the future counts as now.
            metadata: Anything worth keeping with the attempt.
            reason: Why it did not succeed, along with a ``status`` that ends it. Without one, ``failed`` means
                ``agent_error``, and the other statuses mean the reason of their own name.

        Raises:
            UnknownRolloutError, UnknownAttemptError: If there is no such rollout or attempt.
            InvalidTransitionError: If there is no such status.
            ConfigurationError: If there is no such reason.
        """

    @abstractmethod
    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker: renew the leases of its attempts, each a (rollout id, attempt id).

        Returns:
            The ids of those attempts that are not live any more, whose work the worker should drop.
        """

    # Resources

    @abstractmethod
    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""

    @abstractmethod
    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under ``resources_id``, as its next version, and make them the latest."""

    @abstractmethod
    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""

    @abstractmethod
    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""

    # Waiting

    @abstractmethod
    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, quorum: float = 1.0
    ) -> list[RolloutV2]:
        """Wait until these rollouts are final, or ``timeout`` seconds have passed.

        One that is deleted meanwhile is not waited for, and left out of the result.

        Args:
            rollout_ids: Which.
            timeout: The longest wait, in seconds; 0 returns at once, ``None`` waits as long as it takes.
            quorum: The share of them that is enough, above 0 and at most 1: with 0.9, the slowest tenth is not
                waited for.

        Returns:
            Those that are final, each once, in the order of ``rollout_ids``.

        Raises:
            UnknownRolloutError: If one of them is not in the store.
            ConfigurationError: If ``quorum`` is out of range.
        """

    # Workers, runs, the store itself

    @abstractmethod
    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""

    @abstractmethod
    async def query_workers(self) -> list[Worker]:
        """Return the known workers: ``busy`` with a live attempt, ``idle``, or ``unknown`` after 60 s of silence."""

    @abstractmethod
    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""

    @abstractmethod
    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""

    @abstractmethod
    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store the state of a run's algorithm, replacing what was stored; ``state`` is made of JSON values.

        Raises:
            UnserializableValueError: If the store cannot keep it.
        """

    @abstractmethod
    async def load_run_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last of this run's algorithm, or ``None``."""

    @abstractmethod
    async def vacuum(self, *, before: float) -> StoreStatistics:
        """Delete what is old. Nothing else ever deletes anything.

        Deletes rollouts that became final before ``before`` (seconds since the epoch) with their attempts and spans,
        runs that ended before it with their states, workers not seen since, and resources not updated since that
        neither a remaining rollout names nor are the latest. Writers are not held up for long.

        Returns:
            How much was deleted.
        """

    @abstractmethod
    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""

    async def close(self) -> None:  # noqa: B027 - closing is optional
        """Release what the store holds. Calls after this raise ``StoreClosedError``."""
