"""``PostgresLightningStore``: the store contract over a PostgreSQL database."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from lightning_core.errors import ConfigurationError, LightningError, UnknownRolloutError
from lightning_core.store import lifecycle, waiting
from lightning_core.store.base import (
    UNSET,
    EnqueueRequest,
    LightningStore,
    Maybe,
    StoreCapabilities,
    StoreStatistics,
)
from lightning_core.store.encoding import (
    EncodedSpan,
    decode,
    decode_span,
    encode,
    encode_config,
    encode_span,
)
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

from . import operations, queries
from .engine import Engine, discard
from .rows import read_attempt, read_resources, read_span, read_whole, string
from .settings import DEFAULT_SCHEMA, Settings
from .spans import AddSpans
from .text import Parameter, json_text, number, word
from .url import parse_url
from .vacuum import vacuum
from .wire import Statement
from .work import NewRollout, new_id

__all__ = ["PostgresLightningStore"]

_SCHEMA = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,47}")

# Guards the change of engines after a fork; replaced in the child, where another thread may have held it.
_fork_lock = threading.Lock()


def _renew_lock() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class PostgresLightningStore(LightningStore):
    """Keeps everything in a PostgreSQL database, which many processes and machines may share.

    What a call has acknowledged is on the server's disk. The store has an event loop on a thread of its own, and a
    fixed number of connections, which come back when they are lost: a call goes on trying for ``retry_seconds``. What
    became of a commit that got no answer is looked up, so nothing is done twice. Inputs and metadata are JSON values.

    Args:
        url: Where the database is, such as ``postgresql://user@host:5432/database``; parameters of libpq may follow.
            ``None`` for what libpq's environment variables say. Passwords are better kept in a password file.
        schema: The schema that holds the tables, which are made when they are missing. Several stores may share a
            database, each in a schema of its own.
        retry_seconds: How long a call goes on trying when the server is away, in seconds.
        poll_interval: How often to look for changes that no notification told of while somebody waits, in seconds.
        writers: How many transactions may run at once.
        readers: How many connections are read from.
        clock: Tells the time, in seconds since the epoch. ``None`` for the server's clock, which is the same for all
            who share the database, however wrong their own clocks are.

    Raises:
        ConfigurationError: If the URL or the schema's name cannot be read.
        StoreSchemaError: If a newer version made the tables.
        StoreUnavailableError: If the database cannot be reached or used.
    """

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(durable=True, processes=True)

    def __init__(
        self,
        url: str | None = None,
        *,
        schema: str = DEFAULT_SCHEMA,
        retry_seconds: float = 30.0,
        poll_interval: float = 2.0,
        writers: int = 2,
        readers: int = 2,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if url is not None and url.startswith(("postgresql:", "postgres:")):
            parsed = parse_url(url)
            url = parsed.pop("url")
            schema = parsed.pop("schema", schema)
            if parsed:
                raise ConfigurationError(f"give {', '.join(parsed)} as keywords, not in the URL")
        if _SCHEMA.fullmatch(schema) is None:
            raise ConfigurationError(
                f"schema must be made of up to 48 letters, digits and underscores, not {schema!r}"
            )
        self._settings = Settings(
            url,
            schema=schema,
            retry_seconds=retry_seconds,
            poll_interval=poll_interval,
            writers=writers,
            readers=readers,
            clock=clock,
        )
        self._open(fresh=True)

    def _open(self, *, fresh: bool) -> None:
        self._current = Engine(self._settings, fresh=fresh)
        self._finalizer = weakref.finalize(self, discard, self._current)

    @property
    def _engine(self) -> Engine:
        if self._current.pid != os.getpid():
            # Neither threads nor connections survive a fork: the child connects anew.
            with _fork_lock:
                if self._current.pid != os.getpid():
                    self._finalizer()
                    self._open(fresh=False)
        return self._current

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._settings
        keywords = {
            name: getattr(settings, name)
            for name in ("schema", "retry_seconds", "poll_interval", "writers", "readers", "clock")
        }
        return _reopen, (settings.url, keywords)

    @property
    def location(self) -> str:
        """The URL of the database, without the password, which must come from elsewhere to open it again."""
        return self._settings.location

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
        return await self._engine.write(operations.Start(_prepare(request), worker_id))

    async def enqueue_rollouts(self, requests: Sequence[EnqueueRequest]) -> list[RolloutV2]:
        """Put several rollouts at the end of the queue; see the contract."""
        return await self._engine.write(operations.Enqueue([_prepare(request) for request in requests]))

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
        lifecycle.check_request(worker_id, request_id)
        prefix = lifecycle.request_prefix(request_id)
        engine = self._engine
        operation = operations.Dequeue(max(limit, 0), worker_id, run_id, prefix)
        return await waiting.wait_for_work(
            lambda: self._take(engine, operation),
            wait if limit > 0 else 0.0,
            engine.room,
            engine.enter,
            run_id=run_id,
            request=(worker_id, prefix) if worker_id is not None and prefix is not None else None,
        )

    async def _take(self, engine: Engine, operation: operations.Dequeue) -> list[AttemptedRollout]:
        """Dequeue. What is taken for a caller that is cancelled meanwhile goes back to the queue."""

        def give_back(taken: list[AttemptedRollout]) -> None:
            if taken:
                engine.do_later(_requeue(engine, taken))

        taking = engine.begin_write(operation, give_back)
        try:
            return await taking
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled() and taking.exception() is None:
                give_back(taking.result())
            raise

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, request_id: str | None = None
    ) -> AttemptedRollout:
        """Begin a new attempt; see the contract."""
        prefix = lifecycle.request_prefix(request_id)
        return await self._engine.write(operations.Begin(rollout_id, worker_id, prefix))

    # Spans

    async def add_spans(self, spans: Sequence[Span]) -> int:
        """Store spans, all or none; see the contract."""
        return await self.add_encoded_spans([encode_span(span) for span in spans])

    async def add_encoded_spans(self, spans: Sequence[EncodedSpan]) -> int:
        """Store spans that are encoded already, without decoding them; see the contract."""
        new, _ = await self._engine.write(AddSpans(spans))
        return new

    async def add_span(self, span: Span) -> Span:
        """Store one span and return it as stored; see the contract."""
        new, sequence_id = await self._engine.write(AddSpans([encode_span(span)]))
        if new:
            return span.detached(sequence_id=sequence_id)
        return (await self.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id))[0]

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id."""
        return await self._engine.write(operations.ReserveSequenceId(rollout_id, attempt_id))

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
        found = await self._engine.read(
            queries.rollouts(
                rollout_ids=rollout_ids,
                status=status,
                mode=mode,
                run_id=run_id,
                descending=descending,
                limit=limit,
                offset=offset,
            )
        )
        return [read_whole(row)[1] for row in found]

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        status: Sequence[AttemptStatus] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Attempt]:
        """Return a rollout's attempts in order; an unknown rollout has none."""
        found = await self._engine.read(
            queries.attempts(rollout_id, status=status, limit=limit, offset=offset)
        )
        return [read_attempt(rollout_id, row) for row in found]

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
        encoded = await self.query_encoded_spans(
            rollout_id, attempt_id, name=name, span_id=span_id, trace_id=trace_id, limit=limit, offset=offset
        )
        return [decode_span(span) for span in encoded]

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
        found = await self._engine.read(
            queries.spans(
                rollout_id,
                attempt_id,
                name=name,
                span_id=span_id,
                trace_id=trace_id,
                limit=limit,
                offset=offset,
            )
        )
        return [read_span(rollout_id, row) for row in found]

    async def get_rollout_by_id(self, rollout_id: str) -> RolloutV2 | None:
        """Return the rollout, or ``None``."""
        found = await self._engine.read(queries.rollout(rollout_id))
        return read_whole(found[0])[1] if found else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the rollout's latest attempt, or ``None``."""
        found = await self._engine.read(queries.latest_attempt(rollout_id))
        return read_attempt(rollout_id, found[0]) if found else None

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
        fields: dict[str, Any] = {}
        if input is not UNSET:
            fields["input"] = decode(encode(input, "input"))
        if mode is not UNSET:
            fields["mode"] = mode
        if resources_id is not UNSET:
            fields["resources_id"] = resources_id
        if config is not UNSET:
            fields["config"] = config.detached()
        return await self._engine.write(
            operations.UpdateRollout(rollout_id, fields, status, _copied(metadata))
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
            operations.UpdateAttempt(
                rollout_id, attempt_id, status, worker_id, last_heartbeat_time, _copied(metadata), reason
            )
        )

    async def renew_leases(self, worker_id: str, attempts: Sequence[tuple[str, str]]) -> list[str]:
        """Heartbeat of a worker; see the contract."""
        return await self._engine.write(operations.RenewLeases(worker_id, list(attempts)))

    # Resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id and make them the latest."""
        return await self.update_resources(new_id("rs"), resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Store resources as the next version of ``resources_id``, and make them the latest."""
        # Validated, so that mappings become resources and bad ones are refused here.
        update = ResourcesUpdate(resources_id=resources_id, resources=resources)
        body = encode(update.model_dump(mode="json")["resources"], "resources")
        return await self._engine.write(operations.UpdateResources(resources_id, body))

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version of these resources, or ``None``."""
        found = await self._engine.read(queries.resources(resources_id))
        return read_resources(found[0]) if found else None

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        found = await self._engine.read(queries.latest_resources())
        return read_resources(found[0]) if found else None

    # Waiting

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, quorum: float = 1.0
    ) -> list[RolloutV2]:
        """Wait until enough of these rollouts are final, or ``timeout`` seconds have passed; see the contract."""
        wanted = list(dict.fromkeys(rollout_ids))
        allowed = lifecycle.allowed_pending(len(wanted), quorum)
        give_up = None if timeout is None else time.monotonic() + timeout
        found = {rollout.rollout_id: rollout for rollout in await self._these(wanted)}
        for rollout_id in wanted:
            if rollout_id not in found:
                raise UnknownRolloutError(f"no rollout {rollout_id!r} in this store")
        pending = [rollout_id for rollout_id in wanted if not found[rollout_id].is_final]
        if len(pending) > allowed and (timeout is None or timeout > 0):
            del found
            engine = self._engine
            await waiting.wait_for_ends(
                self._find_unfinished, pending, engine.room, engine.enter, allowed=allowed, give_up=give_up
            )
            found = {rollout.rollout_id: rollout for rollout in await self._these(wanted)}
        return [found[name] for name in wanted if name in found and found[name].is_final]

    async def _these(self, rollout_ids: Sequence[str]) -> list[RolloutV2]:
        found = await self._engine.read(queries.these_rollouts(rollout_ids))
        return [read_whole(row)[1] for row in found]

    async def _find_unfinished(self, rollout_ids: list[str]) -> set[str]:
        found = await self._engine.read(queries.unfinished(rollout_ids))
        return {string(row[0]) for row in found}

    # Workers, runs, the store itself

    async def update_worker(self, worker_id: str, *, heartbeat_stats: dict[str, Any] | None = None) -> Worker:
        """Record a sign of life of a worker, registering it if it is new."""
        stats = encode(heartbeat_stats, "heartbeat_stats") if heartbeat_stats is not None else None
        await self._engine.write(operations.SeeWorker(worker_id, stats))
        [row] = await self._engine.read(queries.workers(self._clock(), worker_id))
        return queries.read_worker(row)

    async def query_workers(self) -> list[Worker]:
        """Return the known workers; see the contract."""
        found = await self._engine.read(queries.workers(self._clock()))
        return [queries.read_worker(row) for row in found]

    def _clock(self) -> float | None:
        clock = self._settings.clock
        return clock() if clock is not None else None

    async def save_run(self, run: Run) -> None:
        """Store a run, replacing what was stored of the same id."""
        body = encode(run.model_dump(mode="json"), "run")
        await self._execute(
            "INSERT INTO runs (id, end_time, body) VALUES ($1::text, $2::float8, $3::text) "
            "ON CONFLICT (id) DO UPDATE SET end_time = excluded.end_time, body = excluded.body",
            word(run.run_id),
            number(run.end_time),
            Parameter(json_text(body)),
        )

    async def query_runs(self, run_id: str | None = None) -> list[Run]:
        """Return the runs, oldest first, or the one of this id."""
        found = await self._engine.read(queries.runs(run_id))
        return [Run.model_validate(decode((row[0] or b"").decode())) for row in found]

    async def save_run_state(self, run_id: str, state: dict[str, Any]) -> None:
        """Store the state of a run's algorithm, replacing what was stored; see the contract."""
        await self._execute(
            "INSERT INTO run_states (run_id, body) VALUES ($1::text, $2::text) "
            "ON CONFLICT (run_id) DO UPDATE SET body = excluded.body",
            word(run_id),
            Parameter(json_text(encode(state, "state"))),
        )

    async def load_run_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last of this run's algorithm, or ``None``."""
        found = await self._engine.read(queries.run_state(run_id))
        return decode((found[0][0] or b"").decode()) if found else None

    async def _execute(self, sql: str, *parameters: Parameter) -> None:
        await self._engine.write(operations.Execute(Statement(sql, parameters)))

    async def vacuum(self, *, before: float) -> StoreStatistics:
        """Delete what is old; see the contract."""
        return await vacuum(self._engine, before)

    async def statistics(self, *, run_id: str | None = None) -> StoreStatistics:
        """Count what is in the store; with ``run_id``, rollouts of that run only."""
        found = await self._engine.read(queries.statistics(run_id))
        return queries.read_statistics(found, run_id)

    async def close(self) -> None:
        """Finish the writes under way and close all connections."""
        await asyncio.to_thread(self._engine.close)


async def _requeue(engine: Engine, taken: Sequence[AttemptedRollout]) -> None:
    for rollout in taken:
        try:
            await engine.write(operations.UpdateRollout(rollout.rollout_id, {}, "requeuing", None))
        except LightningError:
            # Its lease will end.
            continue


def _reopen(url: str | None, keywords: dict[str, Any]) -> PostgresLightningStore:
    return PostgresLightningStore(url, **keywords)


def _prepare(request: EnqueueRequest) -> NewRollout:
    return NewRollout(
        mode=request.mode,
        resources_id=request.resources_id,
        run_id=request.run_id,
        idempotency_key=request.idempotency_key,
        config=encode_config(request.config),
        metadata=encode(request.metadata, "metadata"),
        input=encode(request.input, "input"),
    )


def _copied(metadata: Maybe[dict[str, Any]]) -> dict[str, Any] | None:
    """Copy metadata, refusing what the store cannot keep."""
    return None if metadata is UNSET else decode(encode(metadata, "metadata"))
