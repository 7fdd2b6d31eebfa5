"""Which process has a run: at most one at a time, and one that is gone keeps nobody out."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lightning_core.errors import ResumeError
from lightning_core.execution.orphans import start_mark
from lightning_core.runner.identity import pid_namespace
from lightning_core.store.base import LightningStore
from lightning_core.types import Run, RunOwner

__all__ = ["FRESH_SECONDS", "RunHold", "is_gone", "is_held", "this_host"]

logger = logging.getLogger(__name__)

FRESH_SECONDS = 60.0
"""So long after it was heard of last, an owner counts as there."""

_BEAT_SECONDS = 10.0
# Longer than it takes to write a run: when two processes claim one at once, the first sees the other's claim.
_CLAIM_SECONDS = 0.25

# Holds of this process, by their tokens.
_held: set[str] = set()


def this_host() -> str:
    """This machine, and on Linux the namespace in which a process id means something."""
    namespace = pid_namespace()
    return socket.gethostname() if namespace is None else f"{socket.gethostname()}/{namespace}"


def is_gone(pid: int) -> bool:
    """Whether there is certainly no process of this id on this machine."""
    if Path("/proc/self/stat").exists():
        return start_mark(pid) is None
    if sys.platform == "win32":
        # There, os.kill is no question.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def is_held(run: Run, now: float | None = None) -> bool:
    """Whether a process is at work on the run."""
    owner = run.owner
    if run.status != "running" or owner is None:
        return False
    if (time.time() if now is None else now) - owner.heartbeat_time > FRESH_SECONDS:
        return False
    if owner.host != this_host():
        return True
    return owner.token in _held if owner.pid == os.getpid() else not is_gone(owner.pid)


class RunHold:
    """This process's hold on a run, renewed every few seconds while the run lasts.

    Args:
        store: The run's store.
        run: The run.
        on_loss: Is told why, when another process has taken the run over.
    """

    def __init__(self, store: LightningStore, run: Run, on_loss: Callable[[str], None]) -> None:
        self._store = store
        self._token = uuid.uuid4().hex
        self._run = run
        self._on_loss = on_loss
        self._beating: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def claim(self) -> None:
        """Store the run as this process's.

        Raises:
            ResumeError: If another process has claimed it at the same time.
        """
        await self._write()
        if self._run.resumed:
            await asyncio.sleep(_CLAIM_SECONDS)
            loss = await self._loss()
            if loss is not None:
                raise ResumeError(loss)
        _held.add(self._token)
        self._beating = asyncio.create_task(self._beat())

    async def release(self) -> None:
        """End the renewal, on the loop that :meth:`claim` was called on. May be called more than once."""
        self._over.set()
        if self._beating is not None:
            # A sign of life that is under way must not arrive after what is stored next.
            await self._beating
        _held.discard(self._token)

    async def _write(self) -> None:
        owner = RunOwner(host=this_host(), pid=os.getpid(), token=self._token, heartbeat_time=time.time())
        await self._store.save_run(self._run.replace(owner=owner))

    async def _loss(self) -> str | None:
        stored = await self._store.query_runs(self._run.run_id)
        owner = stored[0].owner if stored else None
        if owner is None or owner.token == self._token:
            return None
        return f"run {self._run.run_id} was taken over by process {owner.pid} on {owner.host}"

    async def _beat(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_SECONDS):
                    await self._over.wait()
            if self._over.is_set():
                return
            try:
                loss = await self._loss()
                if loss is not None:
                    logger.error("%s", loss)
                    self._on_loss(loss)
                    return
                await self._write()
            except Exception:
                logger.exception("run %s: the sign of life did not reach the store", self._run.run_id)
