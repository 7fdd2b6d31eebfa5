"""Reading: what many callers ask for at once goes over the wire in one round trip."""
# ruff: noqa: S608 - the pieces of the statements are constants of this package

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from psycopg.pq.abc import PGresult

from .link import Backoff, Link
from .loading import NOW
from .settings import ConnectionLostError, ServerError, Settings
from .text import number
from .wire import Statement, Wire, rows
from .writer import Job, Queue, answer

__all__ = ["Reader"]

_GROUP_LIMIT = 32

_IS_DUE = f"SELECT EXISTS (SELECT 1 FROM attempts WHERE check_at <= {NOW})"


class Reader:
    """Runs queries, each on a state in which nothing is due.

    Args:
        settings: Where to connect to.
        queue: Where the jobs come from; their operations are statements.
        expire: Ends what is due.
    """

    def __init__(self, settings: Settings, queue: Queue, expire: Callable[[], Awaitable[Any]]) -> None:
        self._settings = settings
        self._queue = queue
        self._expire = expire
        self._link = Link(settings)

    async def run(self) -> None:
        """Work until the queue is closed."""
        try:
            while jobs := await self._queue.take(_GROUP_LIMIT, _GROUP_LIMIT):
                await self._do(jobs)
                answer(jobs)
        finally:
            await self._link.drop()

    async def _do(self, jobs: list[Job[PGresult]]) -> None:
        loop = asyncio.get_running_loop()
        began, backoff = loop.time(), Backoff()
        while True:
            try:
                await self._query(await self._link.wire(), jobs)
                return
            except ConnectionLostError as error:
                await self._link.drop()
                now = loop.time()
                for job in jobs:
                    if job.deadline <= now:
                        job.error = self._settings.unreachable(error, now - began)
                jobs = [job for job in jobs if job.error is None]
                if not jobs:
                    return
                await backoff.rest()
            except ServerError as error:
                if len(jobs) > 1:
                    for job in jobs:
                        await self._do([job])
                else:
                    jobs[0].error = self._settings.explain(error)
                return
            except Exception as error:
                await self._link.drop()
                for job in jobs:
                    job.error = error
                return

    async def _query(self, wire: Wire, jobs: list[Job[PGresult]]) -> None:
        clock = self._settings.clock
        check = Statement(_IS_DUE, (number(clock() if clock is not None else None),))
        statements = [job.operation for job in jobs]
        due, *results = await wire.run([check, *statements])
        if rows(due)[0][0] == b"t":
            await self._expire()
            results = await wire.run(statements)
        for job, result in zip(jobs, results, strict=True):
            job.result = result
