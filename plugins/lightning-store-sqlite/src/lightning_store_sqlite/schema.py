"""The database file: opening it, its schema and migrations, and what its errors mean."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from lightning_core.errors import (
    StoreError,
    StoreSchemaError,
    StoreUnavailableError,
    UnserializableValueError,
)

from .checkpoint import BACKSTOP_PAGES

__all__ = ["SCHEMA_VERSION", "Synchronous", "connect", "prepare", "translate_error"]

Synchronous = Literal["full", "normal"]

# Marks the file as one of this store's ("LCOR"), so that another program's database is never touched.
_APPLICATION_ID = 0x4C434F52

# What the write-ahead log may keep on disk when it is started anew, in bytes.
_LOG_BYTES = 64 << 20

# Each entry brings a file from the version before it to the next: append, never edit what was released.
#
# `rollouts.no` is the order of creation, `queue_no` the place in the queue while queued, `end_no` the order in which
# rollouts became final, by which other processes learn of them. `attempts.check_at` is set while the attempt is live:
# it need not be looked at before that time. A renewed lease leaves it alone, so that a span rewrites no index entry.
# Version 2 gave attempts their reason and runs their state, and indexed what a vacuum looks for. Version 3 counts lost
# attempts.
_MIGRATIONS: list[str] = [
    """
    CREATE TABLE rollouts (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        queue_no INTEGER,
        end_no INTEGER,
        attempt_no INTEGER,
        start_time REAL NOT NULL,
        end_time REAL,
        mode TEXT,
        resources_id TEXT,
        run_id TEXT,
        idempotency_key TEXT,
        config TEXT NOT NULL,
        metadata TEXT NOT NULL,
        input TEXT NOT NULL
    );
    CREATE INDEX rollouts_status ON rollouts (status, no);
    CREATE INDEX rollouts_mode ON rollouts (mode, no) WHERE mode IS NOT NULL;
    CREATE INDEX rollouts_run ON rollouts (run_id, no) WHERE run_id IS NOT NULL;
    CREATE INDEX rollouts_queue ON rollouts (queue_no) WHERE queue_no IS NOT NULL;
    CREATE INDEX rollouts_run_queue ON rollouts (run_id, queue_no) WHERE queue_no IS NOT NULL AND run_id IS NOT NULL;
    CREATE INDEX rollouts_end ON rollouts (end_no) WHERE end_no IS NOT NULL;
    CREATE UNIQUE INDEX rollouts_key ON rollouts (idempotency_key) WHERE idempotency_key IS NOT NULL;

    CREATE TABLE attempts (
        no INTEGER PRIMARY KEY,
        rollout_no INTEGER NOT NULL REFERENCES rollouts (no),
        seq INTEGER NOT NULL,
        id TEXT NOT NULL,
        status TEXT NOT NULL,
        worker_id TEXT,
        start_time REAL NOT NULL,
        end_time REAL,
        heartbeat_time REAL,
        check_at REAL,
        last_span_seq INTEGER NOT NULL DEFAULT 0,
        metadata TEXT NOT NULL,
        UNIQUE (rollout_no, seq)
    );
    CREATE INDEX attempts_check ON attempts (check_at) WHERE check_at IS NOT NULL;
    CREATE INDEX attempts_worker ON attempts (worker_id) WHERE check_at IS NOT NULL AND worker_id IS NOT NULL;

    CREATE TABLE spans (
        attempt_no INTEGER NOT NULL REFERENCES attempts (no),
        seq INTEGER NOT NULL,
        span_id TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        UNIQUE (attempt_no, seq),
        UNIQUE (attempt_no, span_id)
    );

    CREATE TABLE resources (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        version INTEGER NOT NULL,
        create_time REAL NOT NULL,
        update_time REAL NOT NULL,
        body TEXT NOT NULL,
        UNIQUE (id, version)
    );
    CREATE TABLE workers (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        heartbeat_time REAL,
        stats TEXT NOT NULL
    );
    CREATE TABLE runs (no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);

    CREATE TABLE counts (scope TEXT NOT NULL, what TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (scope, what))
        WITHOUT ROWID;
    """,
    """
    ALTER TABLE attempts ADD COLUMN reason TEXT;
    UPDATE attempts SET reason = CASE status WHEN 'failed' THEN 'agent_error' ELSE status END
        WHERE status IN ('failed', 'timeout', 'unresponsive', 'cancelled');
    ALTER TABLE attempts ADD COLUMN request_id TEXT;
    CREATE INDEX attempts_request ON attempts (request_id) WHERE check_at IS NOT NULL AND request_id IS NOT NULL;

    DROP INDEX rollouts_run;
    CREATE INDEX rollouts_run ON rollouts (run_id, status, no) WHERE run_id IS NOT NULL;
    DROP INDEX rollouts_end;
    CREATE INDEX rollouts_end ON rollouts (end_no, end_time) WHERE end_no IS NOT NULL;
    CREATE INDEX rollouts_resources ON rollouts (resources_id) WHERE resources_id IS NOT NULL;

    CREATE TABLE run_states (run_id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
    CREATE TABLE garbage (attempt_no INTEGER PRIMARY KEY);
    """,
    """
    ALTER TABLE attempts ADD COLUMN lost_before INTEGER NOT NULL DEFAULT 0;
    """,
]

SCHEMA_VERSION = len(_MIGRATIONS)


def connect(
    path: Path, *, synchronous: Synchronous, busy_timeout: float, create: bool = False
) -> sqlite3.Connection:
    """Open a connection in autocommit mode; it may be used from any thread, by one at a time.

    Without ``create``, a file that is gone stays so: it must not be taken for an empty store.

    Raises:
        sqlite3.Error: If the file cannot be opened.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {BACKSTOP_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(path: Path, *, synchronous: Synchronous, busy_timeout: float) -> None:
    """Create the file, or bring an older one to the current schema.

    Raises:
        StoreSchemaError: If a newer version wrote it.
        StoreUnavailableError: If it cannot be opened or written, is corrupt, or belongs to another program.
    """
    if path.is_dir():
        raise StoreUnavailableError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise StoreUnavailableError(
            f"{path} cannot be created, since there is no directory {path.parent}: create it first"
        )
    try:
        connection = connect(path, synchronous=synchronous, busy_timeout=busy_timeout, create=True)
    except sqlite3.Error as error:
        raise translate_error(error, path) from error
    try:
        _check_version(connection, path)
        # Heeded in a new file only: lets a vacuum give space back.
        connection.execute("PRAGMA auto_vacuum = incremental")
        mode = connection.execute("PRAGMA journal_mode = wal").fetchone()[0]
        if mode != "wal":
            raise StoreUnavailableError(
                f"{path}: its file system does not allow SQLite's write-ahead log (mode {mode!r}); "
                "use a local disk"
            )
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have prepared the file meanwhile.
        version = _check_version(connection, path)
        for migration in _MIGRATIONS[version:]:
            for statement in migration.split(";"):
                connection.execute(statement)
        if version < SCHEMA_VERSION:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise translate_error(error, path) from error
    finally:
        connection.close()


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if application != _APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application or version or tables:
            raise StoreUnavailableError(f"{path} is another program's SQLite database: choose another file")
    if version > SCHEMA_VERSION:
        raise StoreSchemaError(
            f"{path} has schema {version}, and this lightning-store-sqlite knows schemas up to {SCHEMA_VERSION}: "
            "a newer version wrote it. Upgrade with: pip install --upgrade lightning-store-sqlite"
        )
    return version


def translate_error(error: Exception, path: Path) -> StoreError:
    """Say in this project's terms what an error of SQLite, or of passing it a value, means, and what to do."""
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return UnserializableValueError(
            f"a name or a number cannot be stored, since it is no valid text, or too large: {error}"
        )
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreUnavailableError(
            f"{path} is corrupt, or no SQLite database ({error}). Move it away, along with {path.name}-wal and "
            f"{path.name}-shm, and start anew; what can be saved of it, `sqlite3 {path.name} .recover` prints"
        )
    if primary == sqlite3.SQLITE_FULL:
        return StoreUnavailableError(
            f"{path} cannot grow, the disk is full: make room and try again ({error})"
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailableError(
            f"{path} is locked by another process for longer than busy_timeout: end that process, or raise the "
            f"setting ({error})"
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return StoreUnavailableError(
            f"{path} cannot be opened for writing: check the permissions of the file and its directory ({error})"
        )
    return StoreUnavailableError(f"{path} cannot be read or written: {error}")
