"""What ``lightning-core runs export`` writes: a stored run as records, a page at a time.

The fields of the records are promised: they are only ever added to, and ``schema`` counts up if one changes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

import click
from pydantic_core import to_json

from lightning_core.emitter import find_final_reward
from lightning_core.store.base import LightningStore
from lightning_core.types import Attempt, RolloutV2, Span

__all__ = ["WHAT", "JsonLines", "Parquet", "What", "export_records", "open_parquet"]

What: TypeAlias = Literal["all", "rollouts", "attempts", "spans"]
WHAT: Final[tuple[What, ...]] = ("all", "rollouts", "attempts", "spans")

SCHEMA: Final = 1
_PAGE = 200

Record: TypeAlias = dict[str, Any]


async def export_records(store: LightningStore, run_id: str, what: What) -> AsyncIterator[list[Record]]:
    """Read a run's records, rollouts in the order in which they were created; yields one page of them at a time.

    Args:
        store: Where the run is.
        run_id: The run.
        what: ``rollouts`` with their attempts and reward, ``all`` with their spans too, or single ``attempts`` or
            ``spans``.
    """
    offset = 0
    while page := await store.query_rollouts(run_id=run_id, limit=_PAGE, offset=offset):
        offset += len(page)
        for rollout in page:
            if what == "spans":
                async for spans in _spans(store, rollout.rollout_id):
                    yield [_span(span, run_id) for span in spans]
                continue
            attempts = await store.query_attempts(rollout.rollout_id)
            if what == "attempts":
                yield [_attempt(attempt, run_id) for attempt in attempts]
                continue
            latest = await store.query_spans(rollout.rollout_id, "latest")
            record = _rollout(rollout, attempts, latest)
            if what == "all":
                record["spans"] = [
                    _without(_span(span, run_id), "schema", "type", "run_id", "rollout_id")
                    async for part in _spans(store, rollout.rollout_id)
                    for span in part
                ]
            yield [record]


async def _spans(store: LightningStore, rollout_id: str) -> AsyncIterator[list[Span]]:
    offset = 0
    while page := await store.query_spans(rollout_id, limit=_PAGE, offset=offset):
        offset += len(page)
        yield page


def _rollout(rollout: RolloutV2, attempts: list[Attempt], latest: list[Span]) -> Record:
    return {
        "schema": SCHEMA,
        "type": "rollout",
        "run_id": rollout.run_id,
        "rollout_id": rollout.rollout_id,
        "status": rollout.status,
        "mode": rollout.mode,
        "input": rollout.input,
        "reward": find_final_reward(latest),
        "resources_id": rollout.resources_id,
        "start_time": rollout.start_time,
        "end_time": rollout.end_time,
        "config": rollout.config.model_dump(mode="json"),
        "metadata": rollout.metadata,
        "idempotency_key": rollout.idempotency_key,
        "attempts": [
            _without(_attempt(attempt, None), "schema", "type", "run_id", "rollout_id")
            for attempt in attempts
        ],
    }


def _attempt(attempt: Attempt, run_id: str | None) -> Record:
    return {
        "schema": SCHEMA,
        "type": "attempt",
        "run_id": run_id,
        "rollout_id": attempt.rollout_id,
        "attempt_id": attempt.attempt_id,
        "sequence_id": attempt.sequence_id,
        "status": attempt.status,
        "reason": attempt.reason,
        "worker_id": attempt.worker_id,
        "start_time": attempt.start_time,
        "end_time": attempt.end_time,
        "last_heartbeat_time": attempt.last_heartbeat_time,
        "metadata": attempt.metadata,
    }


def _span(span: Span, run_id: str) -> Record:
    return {
        "schema": SCHEMA,
        "type": "span",
        "run_id": run_id,
        "rollout_id": span.rollout_id,
        "attempt_id": span.attempt_id,
        "sequence_id": span.sequence_id,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": span.name,
        "status": span.status.status_code,
        "status_description": span.status.description,
        "start_time": span.start_time,
        "end_time": span.end_time,
        "attributes": span.attributes,
        "events": [event.model_dump(mode="json") for event in span.events],
        "links": [link.model_dump(mode="json") for link in span.links],
        "resource": span.resource.attributes,
    }


def _without(record: Record, *names: str) -> Record:
    return {name: value for name, value in record.items() if name not in names}


def _text(value: Any) -> str:
    """JSON that every reader understands: what is no number becomes null."""
    try:
        return to_json(value, inf_nan_mode="null").decode()
    except ValueError:
        # Deep nesting and lone surrogates.
        return json.dumps(value, separators=(",", ":"))


class JsonLines:
    """Writes one JSON object a line.

    Args:
        file: Where to.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, records: list[Record]) -> None:
        """Write a page."""
        self._file.writelines(f"{_text(record)}\n" for record in records)


# What has no column of numbers or texts is JSON in a column of text.
_COLUMNS: Final[Mapping[str, str]] = {
    "schema": "int32",
    "sequence_id": "int64",
    "reward": "float64",
    "start_time": "float64",
    "end_time": "float64",
    "last_heartbeat_time": "float64",
}
_JSON: Final = frozenset(
    {"input", "config", "metadata", "attempts", "spans", "attributes", "events", "links", "resource"}
)
_FIELDS: Final[Mapping[What, tuple[str, ...]]] = {
    "rollouts": (
        *("schema", "type", "run_id", "rollout_id", "status", "mode", "input", "reward", "resources_id"),
        *("start_time", "end_time", "config", "metadata", "idempotency_key", "attempts"),
    ),
    "attempts": (
        *("schema", "type", "run_id", "rollout_id", "attempt_id", "sequence_id", "status", "reason"),
        *("worker_id", "start_time", "end_time", "last_heartbeat_time", "metadata"),
    ),
    "spans": (
        *("schema", "type", "run_id", "rollout_id", "attempt_id", "sequence_id", "trace_id", "span_id"),
        *("parent_id", "name", "status", "status_description", "start_time", "end_time"),
        *("attributes", "events", "links", "resource"),
    ),
}
_ROWS = 1000


class Parquet:
    """Writes rows of a Parquet file, a group at a time. Nested values are JSON in columns of text.

    Args:
        path: The file. It appears when it is whole.
        what: What the records are.
        pyarrow: The module ``pyarrow``.
        writer: The class ``pyarrow.parquet.ParquetWriter``.
    """

    def __init__(self, path: Path, what: What, pyarrow: Any, writer: Any) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._pyarrow = pyarrow
        fields = (*_FIELDS["rollouts"], "spans") if what == "all" else _FIELDS[what]
        self._schema = pyarrow.schema(
            [(name, getattr(pyarrow, _COLUMNS.get(name, "string"))()) for name in fields]
        )
        self._writer = writer(self._part, self._schema)
        self._rows: list[Record] = []

    def write(self, records: list[Record]) -> None:
        """Write a page."""
        self._rows += [
            {name: _text(value) if name in _JSON else value for name, value in record.items()}
            for record in records
        ]
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        self._flush()
        self._writer.close()
        self._part.replace(self._path)

    def abandon(self) -> None:
        """Remove what was written."""
        with suppress(Exception):
            self._writer.close()
        self._part.unlink(missing_ok=True)


def open_parquet(path: Path, what: What) -> Parquet:
    """Begin a Parquet file.

    Raises:
        click.ClickException: If pyarrow is not installed.
    """
    try:
        # By name: it comes without types.
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise click.ClickException(
            "Parquet files need pyarrow. To get it: pip install 'lightning-core[parquet]'"
        ) from error
    return Parquet(path, what, pyarrow, parquet.ParquetWriter)
