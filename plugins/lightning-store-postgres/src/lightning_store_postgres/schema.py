"""The tables: their schema and migrations."""

from __future__ import annotations

import psycopg
from psycopg import sql

from lightning_core.errors import StoreSchemaError, StoreUnavailableError

from .settings import ConnectionLostError, ServerError, Settings

__all__ = ["SCHEMA_VERSION", "prepare"]

_OLDEST_SERVER = 130_000

# Each entry brings a database from the version before it to the next: append, never edit what was released.
#
# Ids sort by their bytes, whatever the database's language. `rollouts.no` is the order of creation and `queue_no` the
# place in the queue while queued, both drawn from one sequence. `attempts.check_at` is set while the attempt is live:
# it need not be looked at before that time. A renewed lease leaves it alone, so that a span rewrites no index: the
# update stays on its page, which has room for that. `counts` holds changes to be added up; see `queries.statistics`.
# Version 2 counts lost attempts.
_MIGRATIONS: list[str] = [
    """
    CREATE SEQUENCE rollout_numbers;
    CREATE TABLE rollouts (
        no int8 PRIMARY KEY,
        id text COLLATE "C" NOT NULL UNIQUE,
        status text COLLATE "C" NOT NULL,
        queue_no int8,
        attempt_seq int8 NOT NULL DEFAULT 0,
        start_time float8 NOT NULL,
        end_time float8,
        mode text COLLATE "C",
        resources_id text COLLATE "C",
        run_id text COLLATE "C",
        idempotency_key text COLLATE "C",
        config text COLLATE "C" NOT NULL,
        metadata text COLLATE "C" NOT NULL,
        input text COLLATE "C" NOT NULL
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
    CREATE INDEX rollouts_status ON rollouts (status, no);
    CREATE INDEX rollouts_run ON rollouts (run_id, no) WHERE run_id IS NOT NULL;
    CREATE INDEX rollouts_queue ON rollouts (queue_no) WHERE queue_no IS NOT NULL;
    CREATE INDEX rollouts_run_queue ON rollouts (run_id, queue_no) WHERE queue_no IS NOT NULL AND run_id IS NOT NULL;
    CREATE INDEX rollouts_end ON rollouts (end_time) WHERE end_time IS NOT NULL;
    CREATE UNIQUE INDEX rollouts_key ON rollouts (idempotency_key) WHERE idempotency_key IS NOT NULL;

    CREATE TABLE attempts (
        rollout_no int8 NOT NULL,
        seq int8 NOT NULL,
        id text COLLATE "C" NOT NULL,
        status text COLLATE "C" NOT NULL,
        worker_id text COLLATE "C",
        start_time float8 NOT NULL,
        end_time float8,
        heartbeat_time float8,
        check_at float8,
        last_span_seq int8 NOT NULL,
        reason text COLLATE "C",
        metadata text COLLATE "C" NOT NULL,
        PRIMARY KEY (rollout_no, seq)
    ) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
    CREATE INDEX attempts_check ON attempts (check_at) WHERE check_at IS NOT NULL;
    CREATE INDEX attempts_worker ON attempts (worker_id, rollout_no) WHERE check_at IS NOT NULL;

    CREATE TABLE spans (
        rollout_no int8 NOT NULL,
        attempt_seq int8 NOT NULL,
        seq int8 NOT NULL,
        span_id text COLLATE "C" NOT NULL,
        trace_id text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        body text COLLATE "C" NOT NULL,
        PRIMARY KEY (rollout_no, attempt_seq, seq),
        UNIQUE (rollout_no, attempt_seq, span_id)
    );

    CREATE TABLE resources (
        no int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id text COLLATE "C" NOT NULL,
        version int8 NOT NULL,
        create_time float8 NOT NULL,
        update_time float8 NOT NULL,
        body text COLLATE "C" NOT NULL,
        UNIQUE (id, version)
    );
    CREATE TABLE workers (
        no int8 GENERATED ALWAYS AS IDENTITY,
        id text COLLATE "C" PRIMARY KEY,
        heartbeat_time float8 NOT NULL,
        stats text COLLATE "C" NOT NULL
    ) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
    CREATE TABLE runs (
        no int8 GENERATED ALWAYS AS IDENTITY,
        id text COLLATE "C" PRIMARY KEY,
        end_time float8,
        body text COLLATE "C" NOT NULL
    );
    CREATE TABLE run_states (run_id text COLLATE "C" PRIMARY KEY, body text COLLATE "C" NOT NULL);

    CREATE TABLE counts (scope text COLLATE "C" NOT NULL, what text COLLATE "C" NOT NULL, n int8 NOT NULL)
        WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
    CREATE INDEX counts_scope ON counts (scope);

    -- The last transaction of each connection that writes, by which it is known afterwards whether that was committed.
    CREATE TABLE writers (id text COLLATE "C" PRIMARY KEY, transaction int8 NOT NULL, time timestamptz NOT NULL)
        WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

    -- Cheaper than PostgreSQL's own compression, where the server has it.
    DO $lz4$ BEGIN
        EXECUTE 'ALTER TABLE spans ALTER COLUMN body SET COMPRESSION lz4';
    EXCEPTION WHEN syntax_error OR feature_not_supported OR invalid_parameter_value THEN NULL;
    END $lz4$;
    """,
    """
    ALTER TABLE attempts ADD COLUMN lost_before int8 NOT NULL DEFAULT 0;
    """,
]

SCHEMA_VERSION = len(_MIGRATIONS)


async def prepare(settings: Settings) -> None:
    """Create the tables, or bring older ones to the current schema.

    Raises:
        StoreSchemaError: If a newer version wrote them.
        StoreUnavailableError: If the server is too old, or this user may not create tables there.
        ConnectionLostError: If the server cannot be reached.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(**settings.arguments, autocommit=True)
    except psycopg.Error as error:
        raise _refused(settings, error) from None
    try:
        if connection.info.server_version < _OLDEST_SERVER:
            raise StoreUnavailableError(
                f"{settings.location} is PostgreSQL {connection.info.server_version // 10_000}, and "
                "lightning-store-postgres needs 13 or newer: upgrade the server"
            )
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreUnavailableError(
                f"{settings.location} keeps text as {encoding}, which cannot hold every text: create a database with "
                "ENCODING 'UTF8'"
            )
        if await _version(connection, settings) < SCHEMA_VERSION:
            await _migrate(connection, settings)
    except psycopg.Error as error:
        if error.sqlstate is None or connection.closed:
            raise ConnectionLostError(settings.hide(str(error))) from None
        raise settings.explain(ServerError(error.sqlstate, str(error))) from None
    finally:
        await connection.close()


def _refused(settings: Settings, error: psycopg.Error) -> Exception:
    """What to raise for a connection that was not made: waiting helps against some causes only."""
    message = settings.hide(str(error))
    hopeless = {
        "authentication failed": "check user and password",
        "no password supplied": "give a password, in the URL, in PGPASSWORD or in a password file",
        "does not exist": "create it first",
        "no pg_hba.conf entry": "allow this user and address in the server's pg_hba.conf",
        "could not translate host name": "check the host's name",
    }
    for sign, advice in hopeless.items():
        # A server's directory of sockets is missing while the server is down, and comes with it.
        if sign in message and "No such file" not in message:
            return StoreUnavailableError(
                f"{settings.location} cannot be opened: {advice} ({' '.join(message.split())})"
            )
    return ConnectionLostError(message)


async def _version(connection: psycopg.AsyncConnection, settings: Settings) -> int:
    """Return the version of the tables, 0 if there are none."""
    table = f'"{settings.schema}".lightning_schema'
    cursor = await connection.execute("SELECT to_regclass(%s)::text", [table])
    row = await cursor.fetchone()
    if row is None or row[0] is None:
        return 0
    cursor = await connection.execute(
        sql.SQL("SELECT max(version) FROM {}.lightning_schema").format(sql.Identifier(settings.schema))
    )
    row = await cursor.fetchone()
    version = int(row[0]) if row is not None and row[0] is not None else 0
    if version > SCHEMA_VERSION:
        raise StoreSchemaError(
            f"{settings.location} has schema {version}, and this lightning-store-postgres knows schemas up to "
            f"{SCHEMA_VERSION}: a newer version wrote it. Upgrade with: pip install --upgrade lightning-store-postgres"
        )
    return version


async def _migrate(connection: psycopg.AsyncConnection, settings: Settings) -> None:
    schema = sql.Identifier(settings.schema)
    async with connection.transaction():
        # Several processes may be here at once: one migrates, and the others find it done.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            [f"lightning-store-postgres {settings.schema}"],
        )
        cursor = await connection.execute("SELECT to_regnamespace(%s)::text", [f'"{settings.schema}"'])
        row = await cursor.fetchone()
        if row is None or row[0] is None:
            await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        version = await _version(connection, settings)
        await connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(schema))
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS lightning_schema (version int PRIMARY KEY, time timestamptz NOT NULL)"
        )
        for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
            await connection.execute(migration.encode())
            await connection.execute("INSERT INTO lightning_schema VALUES (%s, clock_timestamp())", [number])
