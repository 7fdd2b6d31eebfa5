"""What runs in a process that the strategy has started: one runner, or the algorithm."""

from __future__ import annotations

import asyncio
import copy
import faulthandler
import gc
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal, cast

from lightning_core.execution.event import StopEvent
from lightning_core.execution.garbage import rare_collections
from lightning_core.execution.interrupts import leave_interrupts_to_parent
from lightning_core.execution.orphans import is_alive
from lightning_core.execution.pickling import Packed, pickle_value
from lightning_core.execution.spawning import LogSettings

from .watched import WatchedClient

__all__ = ["Assignment", "enter"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
"""How often a process looks whether the one that has started it still runs; the pipe between them tells at once, but
another process may hold its end open."""
_GONE = 75
"""The exit code of a process that leaves because nobody is there to work for (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Assignment:
    """What a process is told when it starts.

    Attributes:
        side: What it runs.
        number: The runner's number.
        work: The bundle, packed; or itself, for a process that inherits it.
        store: The client, not connected yet.
        parent: Process id and start mark of the process that starts it.
        leave_seconds: How long it may take to end once its parent is gone.
        port: The port of the parent's server, whose connections a forked process lets go; ``None`` where there is none.
        environment: The parent's environment variables.
        log: The parent's logging.
    """

    side: Literal["runner", "algorithm"]
    number: int
    work: Any
    store: WatchedClient
    parent: tuple[int, str | None]
    leave_seconds: float
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    log: LogSettings = field(default_factory=LogSettings)


def enter(
    assignment: Assignment, pipe: Connection, errors: Connection, inherited: Sequence[Connection]
) -> None:
    """Run what is assigned; the first function of the process.

    Args:
        assignment: What to do.
        pipe: Commands come in, news go out; its end is the end of the parent.
        errors: Where the standard error stream goes.
        inherited: The ends of other pipes, which a forked process has and should not.
    """
    leave_interrupts_to_parent()
    for connection in inherited:
        connection.close()
    if assignment.port is not None and not isinstance(assignment.work, Packed):
        _let_go_of_connections(assignment.port)
    os.dup2(errors.fileno(), 2)
    errors.close()
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - for as long as the process lives
    with suppress(RuntimeError):
        faulthandler.enable(2, all_threads=False)
    os.environ.update(assignment.environment)
    assignment.log.apply()
    sys.exit(_Child(assignment, pipe).run())


class _Child:
    """The work of this process, and the thread that listens to the parent."""

    def __init__(self, assignment: Assignment, pipe: Connection) -> None:
        self._assignment = assignment
        self._pipe = pipe
        self._stop = StopEvent()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False

    def run(self) -> int:
        """Do the work, tell the parent what it came to, and return the exit code."""
        threading.Thread(target=self._listen, name="lightning-parent", daemon=True).start()
        try:
            work = self._assignment.work
            # A forked process has the bundle itself, of which a copy is what another process gets.
            bundle = work.unpack() if isinstance(work, Packed) else copy.copy(work)
            # What is loaded by now stays for good.
            gc.freeze()
            with rare_collections():
                asyncio.run(self._work(bundle))
        except asyncio.CancelledError as error:
            if self._assignment.store.gone is not None:
                return self._lost_server()
            if not self._interrupted:
                return self._failed(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if self._assignment.store.gone is not None:
                return self._lost_server()
            return self._failed(error)
        else:
            outcome = getattr(bundle, "outcome", None)
            self._tell("done", pickle_value(outcome()) if outcome is not None else None)
            return 0
        self._tell("done", None)
        return 0

    async def _work(self, bundle: Any) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
            if self._interrupted:
                raise asyncio.CancelledError
        store = self._assignment.store
        store.watch(self._stop, lambda worker_id: self._tell("worker", worker_id), self._interrupt)
        try:
            self._tell("ready", None)
            if self._assignment.side == "runner":
                await bundle(store, self._assignment.number, self._stop)
            else:
                await bundle(store, self._stop)
        finally:
            if store.run_over:
                self._tell("over", None)
            await store.close()

    def _lost_server(self) -> int:
        gone = self._assignment.store.gone
        logger.error("the server does not answer any more (%s); leaving", gone)
        self._tell("gone", str(gone))
        return _GONE

    def _failed(self, error: BaseException) -> int:
        text = str(error)
        summary = f"{type(error).__name__}: {text}" if text else type(error).__name__
        told = "".join(traceback.format_exception(error))
        self._tell("failed", (pickle_value(error), summary, told))
        return 1

    def _tell(self, what: str, value: Any) -> None:
        with suppress(OSError), self._sending:
            self._pipe.send((what, value))

    def _listen(self) -> None:
        """Follow the parent's commands, and notice when it is gone."""
        while True:
            try:
                if not self._pipe.poll(_LOOK_SECONDS):
                    if is_alive(*self._assignment.parent):
                        continue
                    break
                command = self._pipe.recv()
            except (EOFError, OSError):
                break
            if command == "stop":
                self._stop.set()
            elif command == "interrupt":
                self._interrupt()
            elif command == "bye":
                return
        with suppress(Exception):
            # The parent's end of the standard error stream may be gone as well.
            logger.warning(
                "process %d, which has started this runner, is gone; leaving", self._assignment.parent[0]
            )
        self._stop.set()
        self._interrupt()
        threading.Event().wait(self._assignment.leave_seconds)
        # Neither a server that does not answer nor an agent that is stuck keeps it any longer.
        os._exit(_GONE)

    def _interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)


def _let_go_of_connections(port: int) -> None:
    """Make this process forget the sockets of the parent's server, or clients would not see that it has closed them.

    They are overlaid rather than closed: what holds their numbers in this process may close them later, when they
    would be another file's.
    """
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
        for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():  # noqa: PTH112, PTH208 - no files
            number = int(name)
            try:
                with socket.socket(fileno=os.dup(number)) as found:
                    address = found.getsockname()
            except OSError:
                continue
            if isinstance(address, tuple) and cast("tuple[Any, ...]", address)[1] == port:
                os.dup2(nothing.fileno(), number)
