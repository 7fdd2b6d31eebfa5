"""``SqliteLightningStore``: the store contract over one SQLite file."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning_core.errors import ConfigurationError, StoreUnavailableError
from lightning_core.store.base import (
    UNSET,
    EnqueueRequest,
    LightningStore,
    Maybe,
    StoreCapabilities,
    StoreStatistics,
)
from lightning_core.store.encoding import EncodedSpan, decode, encode, encode_config, encode_span
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

from . import queries, records, reporting, rollouts, vacuum
from . import spans as writing
from .ends import wait_for_ends
from .engine import Engine, Settings, discard, temporary_path
from .schema import Synchronous
from .taking import Taking
from .url import format_url, parse_url

__all__ = ["SqliteLightningStore"]

# Guards the change of engines after a fork; replaced in the child, where another thread may have held it.
_fork_lock = threading.Lock()


def _renew_lock() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class SqliteLightningStore(LightningStore):
    """Keeps everything in one SQLite file, which several processes may open at once.

    What a call has acknowledged survives ``kill -9`` at any moment and, with ``synchronous="full"``, a loss of power.
    Writes run on a thread of their own, which commits all that has queued up in one go; reads do not wait for writes.
    The file must be on a local disk. Inputs and metadata are JSON values.

    Args:
        path: The database file, whose directory must exist, or a URL such as ``sqlite:///runs.db``. ``None`` for a
            temporary file, which is removed when the store is closed.
        synchronous: ``"full"``, or ``"normal"``: faster, but a loss of power may take back the last moments.
        busy_timeout: How long to wait for another process's write to end, in seconds.
        poll_interval: How often to look for changes by other processes while somebody waits, in seconds. Within the
            process, waiting ends at once.
        must_exist: Refuse to make a new file.
        clock: Tells the time, in seconds since the epoch. All processes that share a file should agree on it.

    Raises:
        StoreSchemaError: If a newer version wrote the file.
        StoreUnavailableError: If the file cannot be opened or written, is corrupt, or is not this store's.
    """

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(durable=True, processes=True)

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        synchronous: Synchronous = "full",
        busy_timeout: float = 30.0,
        poll_interval: float = 0.02,
        must_exist: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(path, str) and path.startswith("sqlite:"):
            settings = parse_url(path)
            if settings.keys() - {"path"}:
                raise ConfigurationError(f"{path!r}: give settings as keywords, not in the URL")
            path = settings.get("path")
        if synchronous not in ("full", "normal"):
            raise ConfigurationError(f"synchronous must be 'full' or 'normal', not {synchronous!r}")
        if must_exist and path is not None and not Path(path).exists():
            raise StoreUnavailableError(f"there is no store file {str(path)!r}; check the path")
        self._settings = Settings(
            temporary_path() if path is None else Path(path).absolute(),
            temporary=path is None,
            synchronous=synchronous,
            busy_timeout=busy_timeout,
            poll_interval=poll_interval,
            clock=clock,
        )
        self._open()

    def _open(self) -> None:
        self._current = Engine(self._settings)
        self._finalizer = weakref.finalize(self, discard, self._current)

    @property
    def _engine(self) -> Engine:
        if self._current.pid != os.getpid():
            # Neither threads nor connections survive a fork: the child opens the file anew.
            with _fork_lock:
                if self._current.pid != os.getpid():
                    self._finalizer()
                    self._settings.temporary = False
                    self._open()
        return self._current

    @property
    def location(self) -> str:
        """The URL that opens the same file again, from any working directory."""
        return format_url(self._settings.path)

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
        request = EnqueueRequest(
            input=input,
            mode=mode,
            resources_id=resources_id,
            config=config or RolloutConfig(),
            metadata=metadata or {},
            run_id=run_id,
            idempotency_key=idempotency_key,
        )
        return await self._engine.write(rollouts.start_rollout(rollouts.new_rollout(request), worker_id))

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue; see the contract."""
        new = [rollouts.new_rollout(request) for request in requests]
        stored = await self._engine.write(rollouts.enqueue(new))
        return [
            known or item.as_queued(rollout_id, start_time)
            for item, (rollout_id, start_time, known) in zip(new, stored, strict=True)
        ]

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
        """Take up to ``limit`` queued rollouts, oldest first; see the contract."""
        check_request(worker_id, request_id)
        if limit <= 0:
            return []
        return await Taking(self._engine, limit, worker_id, run_id, request_id).take(wait)

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, request_id: str | None = None
    ) -> AttemptedRollout:
        """Begin a new attempt; see the contract."""
        return await self._engine.write(rollouts.begin_attempt(rollout_id, worker_id, request_id))

    # Spans

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, all or none; see the contract."""
        return await self.add_encoded_spans([encode_span(span) for span in spans])

    async def add_encoded_spans(self, spans: Sequence[EncodedSpan]) -> int:
        """Store spans that are encoded already, without decoding them; see the contract."""
        return await self._engine.write(writing.add_spans(writing.group(spans)))

    async def add_span(self, span: Span) -> Span:
        """Store one span and return it as stored; see the contract."""
        sequence_id, stored = await self._engine.write(writing.add_one(encode_span(span)))
        return stored or span.detached(sequence_id=sequence_id)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id."""
        return await self._engine.write(reporting.reserve_sequence_id(rollout_id, attempt_id))

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
        """Return the rollouts that pass every given filter, in the order in which they were created."""
        return await self._engine.read(
            partial(
                queries.query_rollouts,
                rollout_ids=rollout_ids,
                status=status,
                mode=mode,
                run_id=run_id,
                descending=descending,
                limit=limit,
                offset=offset,
            )
        )

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        status: Sequence[AttemptStatus] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Attempt]:
        """Return a rollout's attempts in order; an unknown rollout has none."""
        return await self._engine.read(
            lambda connection: queries.query_attempts(
                connection, rollout_id, status=status, limit=limit, offset=offset
            )
        )

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
        return await self._engine.read(
            lambda connection: queries.query_spans(
                connection,
                rollout_id,
                attempt_id,
                name=name,
                span_id=span_id,
                trace_id=trace_id,
                limit=limit,
                offset=offset,
            )
        )

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
        """Return what :meth:`query_spans` returns, as it is stored."""
        return await self._engine.read(
            partial(
                queries.query_encoded_spans,
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                name=name,
                span_id=span_id,
                trace_id=trace_id,
                limit=limit,
                offset=offset,
            )
        )

    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""
        found = await self._engine.read(lambda connection: queries.get_rollout(connection, rollout_id))
        return found.rollout if found is not None else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""
        return await self._engine.read(lambda connection: queries.latest_attempt(connection, rollout_id))

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
        columns: dict[str, str | None] = {}
        if input is not UNSET:
            columns["input"] = encode(input, "input")
        if mode is not UNSET:
            columns["mode"] = mode
        if resources_id is not UNSET:
            columns["resources_id"] = resources_id
        if config is not UNSET:
            columns["config"] = encode_config(config)
        return await self._engine.write(
            rollouts.update_rollout(rollout_id, columns, status, _copied(metadata))
        )

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
        return await self._engine.write(
            reporting.update_attempt(
                rollout_id, attempt_id, status, worker_id, last_heartbeat_time, _copied(metadata), reason
            )
        )

    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker; see the contract."""
        return await self._engine.write(reporting.renew_leases(worker_id, list(attempts)))

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""
        return await self.update_resources(rollouts.new_id("rs"), resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources as the next version of ``resources_id``, and make them the latest."""
        # Validated, so that mappings become resources and bad ones are refused here.
        update = ResourcesUpdate(resources_id=resources_id, resources=resources)
        body = encode(update.model_dump(mode="json")["resources"], "resources")
        return await self._engine.write(records.update_resources(resources_id, body))

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""
        return await self._engine.read(lambda connection: queries.get_resources(connection, resources_id))

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        return await self._engine.read(lambda connection: queries.get_resources(connection, None))

    # Waiting

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, quorum: float = 1.0
    ) -> list[RolloutV2]:
        """Wait until enough of these rollouts are final, or ``timeout`` seconds have passed; see the contract."""
        return await wait_for_ends(self._engine, rollout_ids, timeout, quorum)

    # Workers, runs, the store itself

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""
        stats = encode(heartbeat_stats, "heartbeat_stats") if heartbeat_stats is not None else None
        return await self._engine.write(records.update_worker(worker_id, stats))

    async def query_workers(self) -> list[Worker]:
        """Return the known workers; see the contract."""
        now = self._settings.clock()
        return await self._engine.read(lambda connection: queries.query_workers(connection, now))

    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""
        body = encode(run.model_dump(mode="json"), "run")
        await self._engine.write(records.save_run(run.run_id, body))

    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""
        return await self._engine.read(lambda connection: queries.query_runs(connection, run_id))

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store the state of a run's algorithm, replacing what was stored; see the contract."""
        body = encode(state, "state")
        await self._engine.write(records.save_run_state(run_id, body))

    async def load_run_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last of this run's algorithm, or ``None``."""
        return await self._engine.read(lambda connection: queries.load_run_state(connection, run_id))

    async def vacuum(self, *, before: float) -> StoreStatistics:
        """Delete what is old; see the contract."""
        return await vacuum.vacuum(self._engine, before)

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""
        return await self._engine.read(lambda connection: queries.statistics(connection, run_id))

    async def close(self) -> None:
        """Finish the writes under way, close the file, and remove it if it is a temporary one."""
        await asyncio.to_thread(self._engine.close)


def _copied(metadata: Maybe[dict[str, Any]]) -> dict[str, Any] | None:
    """Copy metadata, refusing what the store cannot keep."""
    return None if metadata is UNSET else decode(encode(metadata, "metadata"))
