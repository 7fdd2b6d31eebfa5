"""Writing what is no rollout: resources, workers, runs and their states."""

from __future__ import annotations

from lightning_core.store.encoding import decode
from lightning_core.types import ResourcesUpdate, Worker

from . import queries
from .writer import Operation, Transaction

__all__ = ["save_run", "save_run_state", "see_worker", "update_resources", "update_worker"]


def update_resources(resources_id: str, body: str) -> Operation[ResourcesUpdate]:
    """Store the next version of resources."""

    def operation(tx: Transaction) -> ResourcesUpdate:
        row = tx.execute(
            "SELECT version, create_time FROM resources WHERE id = ? ORDER BY version DESC LIMIT 1",
            (resources_id,),
        ).fetchone()
        version, create_time = (row[0] + 1, row[1]) if row is not None else (1, tx.now)
        tx.execute(
            "INSERT INTO resources (id, version, create_time, update_time, body) VALUES (?, ?, ?, ?, ?)",
            (resources_id, version, create_time, tx.now, body),
        )
        if version == 1:
            tx.count("", "resources", 1)
        return ResourcesUpdate(
            resources_id=resources_id,
            resources=decode(body),
            version=version,
            create_time=create_time,
            update_time=tx.now,
        )

    return operation


def see_worker(tx: Transaction, worker_id: str, stats: str | None) -> None:
    """Record a sign of life of a worker; ``stats`` of ``None`` leaves its statistics alone."""
    tx.execute(
        "INSERT INTO workers (id, heartbeat_time, stats) VALUES (?1, ?2, coalesce(?3, '{}')) "
        "ON CONFLICT (id) DO UPDATE SET heartbeat_time = ?2, stats = coalesce(?3, stats)",
        (worker_id, tx.now, stats),
    )


def update_worker(worker_id: str, stats: str | None) -> Operation[Worker]:
    """Record a sign of life of a worker and return what is known of it."""

    def operation(tx: Transaction) -> Worker:
        see_worker(tx, worker_id, stats)
        return queries.query_workers(tx.connection, tx.now, worker_id)[0]

    return operation


def save_run(run_id: str, body: str) -> Operation[None]:
    """Store a run."""

    def operation(tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO runs (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = ?2",
            (run_id, body),
        )

    return operation


def save_run_state(run_id: str, body: str) -> Operation[None]:
    """Store the state of a run's algorithm."""

    def operation(tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO run_states (run_id, body) VALUES (?1, ?2) ON CONFLICT (run_id) DO UPDATE SET body = ?2",
            (run_id, body),
        )

    return operation
