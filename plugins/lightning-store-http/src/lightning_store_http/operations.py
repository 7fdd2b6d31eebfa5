"""The table of operations: from it come the routes, the batch endpoint and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from lightning_core.store.base import LightningStore, StoreStatistics
from lightning_core.types import (
    Attempt,
    AttemptedRollout,
    ResourcesUpdate,
    RolloutV2,
    Run,
    Span,
    Worker,
)

from . import arguments as a
from .bodies import check_encoded_spans

__all__ = ["KEY_PREFIX", "OPERATIONS", "Operation"]

KEY_PREFIX: Final = "lightning-http:"
"""Begins the idempotency keys that clients draw where the caller gave none. They are not shown to anybody."""

_FREE: Final = frozenset({"input", "metadata", "heartbeat_stats", "state"})


@dataclass(frozen=True)
class Operation:
    """One operation of a store as a server offers it.

    Attributes:
        name: What the batch endpoint and OpenAPI call it.
        method: HTTP method, or ``None`` for what only the batch endpoint offers.
        path: Where, with the names of arguments in braces.
        summary: One line for the OpenAPI document.
        arguments: Their model. Those that the path does not name come from the query of a GET, else from the body.
        result: Type of the result.
        call: Calls the store.
        writes: It changes something, so it must not be done twice.
        waits: The argument that says how long it may wait, in seconds.
        missing: Message of the 404 that a result of ``None`` is, outside of the batch endpoint.
        body: The argument that is the whole body, where there is just one.
        items: The argument that the limit of items in a batch counts.
    """

    name: str
    method: str | None
    path: str
    summary: str
    arguments: type[a.Arguments]
    result: Any
    call: Callable[[LightningStore, Any], Awaitable[Any]]
    writes: bool = False
    waits: str | None = None
    missing: str | None = None
    body: str | None = None
    items: str | None = None

    def free_values(self, arguments: a.Arguments) -> Iterator[tuple[str, Any]]:
        """Return the arguments that may be any JSON value, each with its name for messages."""
        if isinstance(arguments, a.Enqueue):
            for request in arguments.rollouts:
                yield "input", request.input
                yield "metadata", request.metadata
            return
        for name in _FREE & arguments.model_fields_set:
            yield name, getattr(arguments, name)

    async def run(self, store: LightningStore, arguments: a.Arguments) -> Any:
        """Call the store, and hide the keys that clients have drawn themselves."""
        result = await self.call(store, arguments)
        found: list[Any] = cast("list[Any]", result) if isinstance(result, list) else [result]
        if found and isinstance(found[0], RolloutV2):
            for rollout in found:
                _hide_key(rollout)
        return cast("Any", result)


def _hide_key(rollout: RolloutV2) -> None:
    key = rollout.idempotency_key
    if key is not None and key.startswith(KEY_PREFIX):
        rollout.idempotency_key = None


async def _add_resources(store: LightningStore, given: a.AddResources) -> ResourcesUpdate:
    if given.resources_id is None:
        return await store.add_resources(given.resources)
    known = await store.get_resources_by_id(given.resources_id)
    return known or await store.update_resources(given.resources_id, given.resources)


async def _dequeue(store: LightningStore, given: a.Dequeue) -> list[AttemptedRollout]:
    return await store.dequeue_rollouts(
        given.limit, given.worker_id, given.wait, run_id=given.run_id, request_id=given.request_id
    )


async def _wait_for_rollouts(store: LightningStore, given: a.WaitForRollouts) -> list[RolloutV2]:
    wanted = given.rollout_ids
    if given.skip_unknown:
        known = {rollout.rollout_id for rollout in await store.query_rollouts(rollout_ids=wanted)}
        wanted = [name for name in wanted if name in known]
    return await store.wait_for_rollouts(rollout_ids=wanted, timeout=given.timeout, quorum=given.quorum)


async def _add_encoded_spans(store: LightningStore, given: a.EncodedSpans) -> int:
    check_encoded_spans(given.spans)
    return await store.add_encoded_spans(given.spans)


_TABLE: Final = (
    # Putting work in
    Operation(
        "enqueue_rollouts", "POST", "/enqueue", "Put rollouts at the end of the queue, all or none.",
        a.Enqueue, list[RolloutV2], lambda store, given: store.enqueue_rollouts(given.rollouts),
        writes=True, items="rollouts",
    ),
    Operation(
        "start_rollout", "POST", "/start", "Create a rollout and its first attempt at once.",
        a.StartRollout, AttemptedRollout, lambda store, given: store.start_rollout(**given.all()),
        writes=True,
    ),
    # Taking work out
    Operation(
        "dequeue_rollouts", "POST", "/dequeue", "Take queued rollouts, oldest first, and begin an attempt of each.",
        a.Dequeue, list[AttemptedRollout], _dequeue, writes=True, waits="wait",
    ),
    Operation(
        "start_attempt", "POST", "/rollouts/{rollout_id}/attempts", "Begin a new attempt of a rollout.",
        a.StartAttempt, AttemptedRollout,
        lambda store, given: store.start_attempt(
            given.rollout_id, given.worker_id, request_id=given.request_id
        ),
        writes=True,
    ),
    # Spans
    Operation(
        "add_span", "PUT", "/span", "Store one span and return it as stored.",
        a.AddSpan, Span, lambda store, given: store.add_span(given.span), writes=True,
    ),
    Operation(
        "add_spans", "POST", "/spans", "Store spans, all or none, and return how many were new.",
        a.AddSpans, int, lambda store, given: store.add_spans(given.spans), writes=True, items="spans",
    ),
    Operation(
        "add_encoded_spans", None, "", "Store encoded spans, all or none, and return how many were new.",
        a.EncodedSpans, int, _add_encoded_spans, writes=True, items="spans",
    ),
    Operation(
        "get_next_span_sequence_id", "POST", "/rollouts/{rollout_id}/attempts/{attempt_id}/sequence-ids",
        "Reserve an attempt's next sequence id.", a.OfAttempt, int,
        lambda store, given: store.get_next_span_sequence_id(given.rollout_id, given.attempt_id), writes=True,
    ),
    # Reading
    Operation(
        "query_rollouts", "GET", "/rollouts", "The rollouts that pass every given filter.",
        a.QueryRollouts, list[RolloutV2], lambda store, given: store.query_rollouts(**given.all()),
    ),
    Operation(
        "get_rollout_by_id", "GET", "/rollouts/{rollout_id}", "One rollout.",
        a.OfRollout, RolloutV2, lambda store, given: store.get_rollout_by_id(given.rollout_id),
        missing="no such rollout",
    ),
    Operation(
        "query_attempts", "GET", "/rollouts/{rollout_id}/attempts", "A rollout's attempts in order.",
        a.QueryAttempts, list[Attempt],
        lambda store, given: store.query_attempts(given.rollout_id, **given.all("rollout_id")),
    ),
    Operation(
        "get_latest_attempt", "GET", "/rollouts/{rollout_id}/latest-attempt", "A rollout's latest attempt.",
        a.OfRollout, Attempt, lambda store, given: store.get_latest_attempt(given.rollout_id),
        missing="no such rollout, or it has no attempt yet",
    ),
    Operation(
        "query_spans", "GET", "/rollouts/{rollout_id}/spans", "Spans, ordered by attempt and sequence id.",
        a.QuerySpans, list[Span],
        lambda store, given: store.query_spans(given.rollout_id, **given.all("rollout_id")),
    ),
    Operation(
        "query_encoded_spans", None, "", "Encoded spans, ordered by attempt and sequence id.",
        a.QuerySpans, list[Any],
        lambda store, given: store.query_encoded_spans(given.rollout_id, **given.all("rollout_id")),
    ),
    # Reporting
    Operation(
        "update_rollout", "PATCH", "/rollouts/{rollout_id}", "Change fields of a rollout.",
        a.UpdateRollout, RolloutV2,
        lambda store, given: store.update_rollout(given.rollout_id, **given.given("rollout_id")), writes=True,
    ),
    Operation(
        "update_attempt", "PATCH", "/rollouts/{rollout_id}/attempts/{attempt_id}", "Report on an attempt.",
        a.UpdateAttempt, Attempt,
        lambda store, given: store.update_attempt(
            given.rollout_id, given.attempt_id, **given.given("rollout_id", "attempt_id")
        ),
        writes=True,
    ),
    Operation(
        "renew_leases", "POST", "/leases", "Renew leases; returns the ids of attempts that are not live any more.",
        a.RenewLeases, list[str],
        lambda store, given: store.renew_leases(given.worker_id, given.attempts),
        writes=True, items="attempts",
    ),
    # Resources
    Operation(
        "add_resources", "POST", "/resources", "Store resources under a new id and make them the latest.",
        a.AddResources, ResourcesUpdate, _add_resources, writes=True,
    ),
    Operation(
        "update_resources", "PUT", "/resources/{resources_id}", "Store the next version of resources.",
        a.UpdateResources, ResourcesUpdate,
        lambda store, given: store.update_resources(given.resources_id, given.resources), writes=True,
    ),
    Operation(
        "get_resources_by_id", "GET", "/resources/{resources_id}", "The newest version of resources.",
        a.OfResources, ResourcesUpdate, lambda store, given: store.get_resources_by_id(given.resources_id),
        missing="no such resources",
    ),
    Operation(
        "get_latest_resources", "GET", "/latest-resources", "The resources that were stored last.",
        a.NoArguments, ResourcesUpdate, lambda store, given: store.get_latest_resources(),
        missing="there are no resources yet",
    ),
    # Waiting
    Operation(
        "wait_for_rollouts", "POST", "/wait", "Wait until rollouts are final, and return those that are.",
        a.WaitForRollouts, list[RolloutV2], _wait_for_rollouts, waits="timeout", items="rollout_ids",
    ),
    # Workers, runs, the store itself
    Operation(
        "update_worker", "PUT", "/workers/{worker_id}", "Record a sign of life of a worker.",
        a.UpdateWorker, Worker,
        lambda store, given: store.update_worker(given.worker_id, heartbeat_stats=given.heartbeat_stats),
        writes=True,
    ),
    Operation(
        "query_workers", "GET", "/workers", "The known workers.",
        a.NoArguments, list[Worker], lambda store, given: store.query_workers(),
    ),
    Operation(
        "save_run", "PUT", "/runs", "Store a run, replacing what was stored of the same id.",
        a.SaveRun, None, lambda store, given: store.save_run(given.run), writes=True, body="run",
    ),
    Operation(
        "query_runs", "GET", "/runs", "The runs, oldest first, or the one of an id.",
        a.QueryRuns, list[Run], lambda store, given: store.query_runs(given.run_id),
    ),
    Operation(
        "save_run_state", "PUT", "/runs/{run_id}/state", "Store the state of a run's algorithm.",
        a.SaveRunState, None, lambda store, given: store.save_run_state(given.run_id, given.state), writes=True,
    ),
    Operation(
        "load_run_state", "GET", "/runs/{run_id}/state", "The state of a run's algorithm that was stored last.",
        a.OfRun, dict[str, Any], lambda store, given: store.load_run_state(given.run_id),
        missing="no state of this run",
    ),
    Operation(
        "vacuum", "POST", "/vacuum", "Delete what ended before a time, and return how much that was.",
        a.Vacuum, StoreStatistics, lambda store, given: store.vacuum(before=given.before), writes=True,
    ),
    Operation(
        "statistics", "GET", "/statistics", "Count what is in the store.",
        a.Statistics, StoreStatistics, lambda store, given: store.statistics(run_id=given.run_id),
    ),
)  # fmt: skip

OPERATIONS: Final = {operation.name: operation for operation in _TABLE}
"""All operations by name."""
