"""``LightningStoreClient``: a store that is somewhere else."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from opentelemetry.sdk.trace import ReadableSpan

from lightning_core.store.base import (
    UNSET,
    EnqueueRequest,
    Maybe,
    StoreStatistics,
)
from lightning_core.store.encoding import EncodedSpan, decode_span, encode, encode_span
from lightning_core.store.lifecycle import check_request
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

from .operations import KEY_PREFIX
from .reading import read_attempt, read_attempted, read_rollout
from .remote import RemoteStore

__all__ = ["LightningStoreClient"]

_LONGEST_WAIT = 20.0
_PAUSE_WHEN_OVER = 0.5


class LightningStoreClient(RemoteStore):
    """The store of a :class:`LightningStoreServer`, on this machine or another.

    It may be used from several threads and event loops, and pickled. Calls that are made at the same time travel
    together. A call whose answer is lost is repeated, and never carried out twice.

    Args:
        url: Where the server is, such as ``http://127.0.0.1:4747``.
        token: The server's token; ``None`` takes it from the variable LIGHTNING_CORE_STORE_TOKEN.
        nonce: Talk to the server of this nonce only; ``None`` to the one that answers first, and to no other then.
        retry_seconds: How long to try again while the server cannot be reached, in seconds.
        compress: Compress what is received. ``None``: unless the server is on this machine.

    Raises:
        ConfigurationError: If the URL is none.
    """

    # Putting work in

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
        """Create a rollout and its first attempt at once; see the contract."""
        encode(input, "input")
        encode(metadata, "metadata")
        return read_attempted(
            await self._call(
                "start_rollout",
                input=input,
                mode=mode,
                resources_id=resources_id,
                config=config or RolloutConfig(),
                metadata=metadata or {},
                run_id=run_id,
                worker_id=worker_id,
                idempotency_key=idempotency_key or _draw_key(),
            )
        )

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue; see the contract."""
        rollouts: list[dict[str, Any]] = []
        drawn = _draw_key()
        for index, request in enumerate(requests):
            encode(request.input, "input")
            encode(request.metadata, "metadata")
            values = vars(request)
            if values["idempotency_key"] is None:
                values = {**values, "idempotency_key": f"{drawn}.{index}"}
            rollouts.append(values)
        return [read_rollout(one) for one in await self._call("enqueue_rollouts", rollouts=rollouts)]

    # Taking work out

    async def dequeue_rollouts(
        self,
        limit: int = 1,
        worker_id: str | None = None,
        wait: float = 0.0,
        *,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> list[AttemptedRollout]:
        """Take up to ``limit`` queued rollouts; see the contract."""
        check_request(worker_id, request_id)
        if request_id is None and worker_id is not None:
            # So that the same attempts come again, should the server be restarted before its answer arrives.
            request_id = secrets.token_hex(6)
        give_up = time.monotonic() + wait
        left = max(wait, 0.0) if limit > 0 else 0.0
        while True:
            over = self._peer.over
            granted = min(left, _LONGEST_WAIT)
            _, taken = await self._call_alone(
                "dequeue_rollouts",
                wait=granted,
                withdraw=True,
                limit=max(limit, 0),
                worker_id=worker_id,
                run_id=run_id,
                request_id=request_id,
                wait_=granted,
            )
            left = give_up - time.monotonic()
            if taken or left <= 0 or limit <= 0 or (self._peer.over and not over):
                return [read_attempted(one) for one in taken]
            if over:
                # Nobody should wait for work now; who does nevertheless must not ask without end.
                await asyncio.sleep(min(left, _PAUSE_WHEN_OVER))
                return []

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, request_id: str | None = None
    ) -> AttemptedRollout:
        """Begin a new attempt; see the contract."""
        return read_attempted(
            await self._call(
                "start_attempt",
                rollout_id=rollout_id,
                worker_id=worker_id,
                request_id=request_id or secrets.token_hex(6),
            )
        )

    # Spans

    async def add_span(self, span: Span) -> Span:
        """Store one span and return it as stored; see the contract."""
        await self.add_spans([span])
        [stored] = await self.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id)
        return stored

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span:
        """Store a span of the OpenTelemetry SDK and return it as stored; see the contract."""
        return await self.add_span(
            Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        )

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, all or none; see the contract."""
        return await self.add_encoded_spans([encode_span(span) for span in spans])

    async def add_encoded_spans(self, spans: Sequence[EncodedSpan]) -> int:
        """Store spans that are encoded already; see the contract."""
        return await self._call("add_encoded_spans", spans=spans)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id."""
        return await self._call("get_next_span_sequence_id", rollout_id=rollout_id, attempt_id=attempt_id)

    # Reading

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
        """Return the rollouts that pass every given filter; see the contract."""
        found = await self._call(
            "query_rollouts",
            rollout_ids=None if rollout_ids is None else list(rollout_ids),
            status=None if status is None else list(status),
            mode=mode,
            run_id=run_id,
            descending=descending,
            limit=limit,
            offset=offset,
        )
        return [read_rollout(one) for one in found]

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        status: Sequence[AttemptStatus] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Attempt]:
        """Return a rollout's attempts in order; an unknown rollout has none."""
        found = await self._call(
            "query_attempts",
            rollout_id=rollout_id,
            status=None if status is None else list(status),
            limit=limit,
            offset=offset,
        )
        return [read_attempt(one) for one in found]

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
        """Return spans ordered by attempt, then ``sequence_id``; see the contract."""
        found = await self.query_encoded_spans(
            rollout_id, attempt_id, name=name, span_id=span_id, trace_id=trace_id, limit=limit, offset=offset
        )
        return [decode_span(span) for span in found]

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
        found = await self._call(
            "query_encoded_spans",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            name_=name,
            span_id=span_id,
            trace_id=trace_id,
            limit=limit,
            offset=offset,
        )
        return [EncodedSpan(*span) for span in found]

    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""
        found = await self._call("get_rollout_by_id", rollout_id=rollout_id)
        return read_rollout(found) if found is not None else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""
        found = await self._call("get_latest_attempt", rollout_id=rollout_id)
        return read_attempt(found) if found is not None else None

    # Reporting

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
        """Change fields of a rollout; see the contract."""
        for place, value in (("input", input), ("metadata", metadata)):
            if value is not UNSET:
                encode(value, place)
        changes = _given(
            input=input, mode=mode, resources_id=resources_id, status=status, config=config, metadata=metadata
        )
        return read_rollout(await self._call("update_rollout", rollout_id=rollout_id, **changes))

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
        """Report on an attempt; see the contract."""
        if metadata is not UNSET:
            encode(metadata, "metadata")
        changes = _given(
            status=status, worker_id=worker_id, last_heartbeat_time=last_heartbeat_time, metadata=metadata
        )
        if reason is not None:
            changes["reason"] = reason
        return read_attempt(
            await self._call("update_attempt", rollout_id=rollout_id, attempt_id=attempt_id, **changes)
        )

    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker; see the contract."""
        return await self._call("renew_leases", worker_id=worker_id, attempts=list(attempts))

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""
        resources_id = f"rs-{secrets.token_hex(8)}"
        return await self._store_resources("add_resources", resources_id, resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources as the next version of ``resources_id``, and make them the latest."""
        return await self._store_resources("update_resources", resources_id, resources)

    async def _store_resources(
        self, name: str, resources_id: str, resources: NamedResources
    ) -> ResourcesUpdate:
        # Validated here, so that bad ones are refused as a store in this process refuses them.
        update = ResourcesUpdate(resources_id=resources_id, resources=resources)
        values = update.model_dump(mode="json", include={"resources"})["resources"]
        stored = await self._call(name, resources_id=resources_id, resources=values)
        return ResourcesUpdate.model_validate(stored)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""
        found = await self._call("get_resources_by_id", resources_id=resources_id)
        return ResourcesUpdate.model_validate(found) if found is not None else None

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        found = await self._call("get_latest_resources")
        return ResourcesUpdate.model_validate(found) if found is not None else None

    # Waiting

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, quorum: float = 1.0
    ) -> list[RolloutV2]:
        """Wait until these rollouts are final, or ``timeout`` seconds have passed; see the contract."""
        give_up = None if timeout is None else time.monotonic() + timeout
        wanted = list(rollout_ids)
        again = False
        while True:
            left = None if give_up is None else max(give_up - time.monotonic(), 0.0)
            granted = _LONGEST_WAIT if left is None else min(left, _LONGEST_WAIT)
            complete, found = await self._call_alone(
                "wait_for_rollouts",
                wait=granted,
                rollout_ids=wanted,
                timeout=granted,
                quorum=quorum,
                skip_unknown=again,
            )
            if complete or (give_up is not None and time.monotonic() >= give_up):
                return [read_rollout(one) for one in found]
            again = True

    # Workers, runs, the store itself

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""
        encode(heartbeat_stats, "heartbeat_stats")
        return Worker.model_validate(
            await self._call("update_worker", worker_id=worker_id, heartbeat_stats=heartbeat_stats)
        )

    async def query_workers(self) -> list[Worker]:
        """Return the known workers; see the contract."""
        return [Worker.model_validate(one) for one in await self._call("query_workers")]

    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""
        await self._call("save_run", run=run)

    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""
        return [Run.model_validate(one) for one in await self._call("query_runs", run_id=run_id)]

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store the state of a run's algorithm; see the contract."""
        encode(state, "state")
        await self._call("save_run_state", run_id=run_id, state=state)

    async def load_run_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last of this run's algorithm, or ``None``."""
        return await self._call("load_run_state", run_id=run_id)

    async def vacuum(self, *, before: float) -> StoreStatistics:
        """Delete what is old; see the contract."""
        return StoreStatistics.model_validate(await self._call_alone("vacuum", wait=3600.0, before=before))

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""
        return StoreStatistics.model_validate(await self._call("statistics", run_id=run_id))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not UNSET}


def _draw_key() -> str:
    return KEY_PREFIX + secrets.token_hex(8)
