"""Rows of the tables, and the objects that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_core.store.encoding import EncodedSpan, decode, decode_config
from lightning_core.types import Attempt, ResourcesUpdate, RolloutV2

from .text import unquote

__all__ = [
    "ATTEMPT",
    "BRIEF",
    "WHOLE",
    "integer",
    "read_attempt",
    "read_brief",
    "read_resources",
    "read_span",
    "read_whole",
    "real",
    "string",
]

BRIEF = "r.no, r.id, r.status, r.end_time, r.config, r.run_id, r.attempt_seq"
"""What the rules need of a rollout. Its input and metadata, which may be large, are read only where they are needed."""

WHOLE = f"{BRIEF}, r.start_time, r.mode, r.resources_id, r.idempotency_key, r.metadata, r.input"

ATTEMPT = (
    "a.rollout_no, a.seq, a.id, a.status, a.worker_id, a.start_time, a.end_time, a.heartbeat_time, a.reason, "
    "a.lost_before, a.metadata"
)

Value = bytes | None


def string(value: Value) -> Any:
    """Read a string that was quoted."""
    return unquote(value.decode()) if value is not None else None


def integer(value: Value) -> int:
    """Read a whole number."""
    return int(value or 0)


def real(value: Value) -> Any:
    """Read a real number."""
    return float(value) if value is not None else None


def _json(value: Value) -> Any:
    return {} if value == b"{}" else decode(value.decode() if value is not None else "null")


def read_brief(row: Sequence[Value]) -> tuple[int, RolloutV2, int]:
    """Make a rollout of :data:`BRIEF`; returns its number and the sequence id of its latest attempt, too."""
    no, id_, status, end, config, run_id, seq = row
    rollout = RolloutV2.trusted(
        {
            "rollout_id": string(id_),
            "input": None,
            "start_time": 0.0,
            "end_time": real(end),
            "mode": None,
            "resources_id": None,
            "status": string(status),
            "config": decode_config(config.decode() if config is not None else "{}"),
            "metadata": {},
            "run_id": string(run_id),
            "idempotency_key": None,
        }
    )
    return integer(no), rollout, integer(seq)


def read_whole(row: Sequence[Value]) -> tuple[int, RolloutV2, int]:
    """Make a rollout of :data:`WHOLE`; returns its number and the sequence id of its latest attempt, too."""
    no, rollout, seq = read_brief(row[:7])
    start, mode, resources_id, key, metadata, input_ = row[7:13]
    whole = rollout.replace(
        start_time=real(start),
        mode=string(mode),
        resources_id=string(resources_id),
        idempotency_key=string(key),
        metadata=_json(metadata),
        input=_json(input_),
    )
    return no, whole, seq


def read_attempt(rollout_id: str, row: Sequence[Value]) -> Attempt:
    """Make an attempt of :data:`ATTEMPT`."""
    _, seq, id_, status, worker_id, start, end, heartbeat, reason, lost_before, metadata = row
    return Attempt.trusted(
        {
            "rollout_id": rollout_id,
            "attempt_id": string(id_),
            "sequence_id": integer(seq),
            "start_time": real(start),
            "end_time": real(end),
            "status": string(status),
            "worker_id": string(worker_id),
            "last_heartbeat_time": real(heartbeat),
            "reason": string(reason),
            "metadata": _json(metadata),
            "lost_before": integer(lost_before),
        }
    )


def read_span(rollout_id: str, row: Sequence[Value]) -> EncodedSpan:
    """Make a span of a row of attempt id, sequence id, span id, trace id, name and body."""
    attempt_id, seq, span_id, trace_id, name, body = row
    return EncodedSpan(
        rollout_id,
        string(attempt_id),
        integer(seq),
        string(span_id),
        string(trace_id),
        string(name),
        body.decode() if body is not None else "",
    )


def read_resources(row: Sequence[Value]) -> ResourcesUpdate:
    """Make an update of a row of id, version, times and body."""
    id_, version, create_time, update_time, body = row
    return ResourcesUpdate(
        resources_id=string(id_),
        version=integer(version),
        create_time=real(create_time),
        update_time=real(update_time),
        resources=_json(body),
    )
