"""A connection on which many statements make one round trip.

This is libpq's pipeline mode by way of psycopg's wrapper of libpq: psycopg's cursors cost several times as much for
each statement, and a store under load sends few large ones all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult

from .settings import ConnectionLostError, ServerError, Settings
from .text import Parameter, texts

__all__ = ["Row", "Statement", "Wire", "rows"]

Row = tuple[bytes | None, ...]
"""A row as the server sends it: each value as text."""

_FATAL = pq.ExecStatus.FATAL_ERROR
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_SYNC = pq.ExecStatus.PIPELINE_SYNC

# How the session is set up, as far as the server allows.
_SESSION = {
    # An index leads to whatever is looked up here. Without these the planner, which knows nothing of tables that have
    # just been made, may settle on plans that read them whole.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    # A process that is stopped, or whose network is cut, in the middle of a transaction must not hold up the others.
    "idle_in_transaction_session_timeout": "20s",
    "lock_timeout": "15s",
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class Statement(NamedTuple):
    """A statement and its parameters."""

    sql: str
    parameters: tuple[Parameter, ...] = ()


def rows(result: PGresult) -> list[Row]:
    """Return the rows of a result."""
    value, columns = result.get_value, range(result.nfields)
    return [tuple([value(row, column) for column in columns]) for row in range(result.ntuples)]


class Wire:
    """An open connection, used by one task at a time, on one event loop.

    Args:
        connection: The connection, in autocommit mode.
        patience: How long the server may be silent before the connection counts as lost, in seconds.

    Attributes:
        backend: The server's process, and since when it runs.
    """

    def __init__(self, connection: psycopg.AsyncConnection, patience: float) -> None:
        self.connection = connection
        self._pg = connection.pgconn
        self.backend: tuple[Parameter, Parameter] = (Parameter(b"0"), Parameter(None))
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._names: dict[str, bytes] = {}
        self._drawn = 0

    @classmethod
    async def open(cls, settings: Settings) -> Wire:
        """Connect.

        Raises:
            ConnectionLostError: If that fails.
        """
        try:
            connection = await psycopg.AsyncConnection.connect(**settings.arguments, autocommit=True)
        except psycopg.Error as error:
            raise ConnectionLostError(settings.hide(str(error))) from None
        wire = cls(connection, settings.retry_seconds)
        try:
            first, *_ = await wire.run(
                [
                    Statement("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"),
                    Statement(
                        "SELECT set_config('search_path', $1, false), set_config('client_encoding', 'UTF8', false)",
                        (Parameter(f'"{settings.schema}"'.encode()),),
                    ),
                    # Acknowledged means on disk; a server that is set to promise more than that may do so.
                    Statement(
                        "SELECT set_config('synchronous_commit', 'on', false) "
                        "WHERE current_setting('synchronous_commit') = 'off'"
                    ),
                    Statement(
                        "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) u (name, value)",
                        (texts([*_SESSION]), texts([*_SESSION.values()])),
                    ),
                ]
            )
            pid, since = rows(first)[0]
            wire.backend = (Parameter(pid), Parameter(since))
        except ServerError as error:
            await wire.close()
            raise ConnectionLostError(str(error)) from None
        except BaseException:
            await wire.close()
            raise
        return wire

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def run(self, statements: Sequence[Statement]) -> list[PGresult]:
        """Run statements in one round trip and return their results.

        Outside a transaction, they are one.

        Raises:
            ServerError: If the server refuses one; those after it are not run.
            ConnectionLostError: If the connection is gone.
        """
        pg = self._pg
        fresh: list[str] = []
        expected: list[bool] = []
        try:
            for sql, parameters in statements:
                name = self._names.get(sql)
                if name is None:
                    self._drawn += 1
                    name = self._names[sql] = b"s%d" % self._drawn
                    fresh.append(sql)
                    pg.send_prepare(name, sql.encode())
                    expected.append(False)
                pg.send_query_prepared(
                    name, [p.value for p in parameters], [int(p.is_binary) for p in parameters], 0
                )
                expected.append(True)
            pg.pipeline_sync()
            async with asyncio.timeout(self._patience):
                results = await self._collect(expected)
        except TimeoutError:
            self._pg.finish()
            raise ConnectionLostError(f"the server has been silent for {self._patience:g} s") from None
        except psycopg.Error as error:
            raise ConnectionLostError(str(error)) from None
        except BaseException:
            # Cancelled in the middle: what is under way can no longer be told from what comes next.
            self._pg.finish()
            raise
        if isinstance(results, ServerError):
            for sql in fresh:
                del self._names[sql]
            raise results
        return results

    async def _collect(self, expected: list[bool]) -> list[PGresult] | ServerError:
        pg = self._pg
        results: list[PGresult] = []
        error: ServerError | None = None
        done = 0
        sending = pg.flush() != 0
        while True:
            while not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    # The end of one statement's results; a connection that is gone has no others.
                    if pg.status == pq.ConnStatus.BAD:
                        raise ConnectionLostError(_message(pg.error_message))
                    continue
                status = result.status
                if status == _SYNC:
                    return error or results
                if status == _FATAL:
                    error = error or _server_error(result)
                    if pg.status == pq.ConnStatus.BAD or _ends_connection(result):
                        raise ConnectionLostError(str(error))
                elif status != _ABORTED and expected[done]:
                    results.append(result)
                done += 1
            await self._ready(sending)
            if sending:
                sending = pg.flush() != 0
            pg.consume_input()

    async def _ready(self, sending: bool) -> None:
        """Wait until there is something to read, or room to write."""
        descriptor = self._pg.socket
        future: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(descriptor, _finish, future)
        if sending:
            self._loop.add_writer(descriptor, _finish, future)
        try:
            await future
        finally:
            self._loop.remove_reader(descriptor)
            if sending:
                self._loop.remove_writer(descriptor)

    async def notifications(self, seconds: float, hurry: asyncio.Event) -> list[tuple[str, str]]:
        """Wait for notifications and return them, each a channel and a payload; at most so long, or until ``hurry``.

        Raises:
            ConnectionLostError: If the connection is gone.
        """
        try:
            # What came along with results has been read from the socket already, which says nothing any more.
            if not (found := self._received()):
                await self._wait_for_input(seconds, hurry)
                self._pg.consume_input()
                found = self._received()
            if self._pg.status == pq.ConnStatus.BAD:
                raise ConnectionLostError(_message(self._pg.error_message))
        except (psycopg.Error, ValueError, OSError) as error:
            raise ConnectionLostError(str(error)) from None
        return found

    def _received(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        while (note := self._pg.notifies()) is not None:
            found.append((note.relname.decode(), note.extra.decode()))
        return found

    async def _wait_for_input(self, seconds: float, hurry: asyncio.Event) -> None:
        descriptor = self._pg.socket
        arrived = asyncio.Event()
        self._loop.add_reader(descriptor, arrived.set)
        waits = [asyncio.ensure_future(event.wait()) for event in (arrived, hurry)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_reader(descriptor)
            for wait in waits:
                wait.cancel()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _message(text: bytes) -> str:
    return text.decode(errors="replace").strip() or "the connection is closed"


def _ends_connection(result: PGresult) -> bool:
    severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
    # libpq's own errors, which have none, are of the connection, too.
    return severity != b"ERROR"


def _server_error(result: PGresult) -> ServerError:
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    return ServerError(state.decode() if state else "", message.decode(errors="replace"))
