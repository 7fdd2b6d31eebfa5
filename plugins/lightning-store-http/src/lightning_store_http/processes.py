"""The parent's side of one process: how it is started, what comes from it, and how it is ended."""

from __future__ import annotations

import codecs
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from lightning_core.execution.interrupts import interrupts_held_back
from lightning_core.execution.orphans import note_end, note_start
from lightning_core.execution.spawning import script_left_alone

from .child import Assignment, enter

__all__ = ["Child", "News", "StartMethod"]

logger = logging.getLogger(__name__)

StartMethod: TypeAlias = Literal["spawn", "fork", "forkserver"]
News: TypeAlias = tuple[str, Any]
"""What a child tells: ``("ready", None)``, ``("worker", id)``, ``("over", None)``, ``("done", outcome)``,
``("failed", error)``, ``("gone", text)``; and what its end tells: ``("exit", code)``."""

_STDERR_LINES = 30
_DRAIN_SECONDS = 2.0
_starting = threading.Lock()


class Child:
    """One process that runs a runner or the algorithm.

    Args:
        name: What it is called in messages.
        method: How it is started.
        assignment: What it does.
        on_news: Called with each piece of news, on a thread of this object's own.
    """

    def __init__(
        self,
        name: str,
        method: StartMethod,
        assignment: Assignment,
        on_news: Callable[[Child, News], None],
    ) -> None:
        self.name = name
        self.workers: set[str] = set()
        """The worker ids under which it has asked for work."""
        self._context: Any = multiprocessing.get_context(method)
        self._method = method
        self._assignment = assignment
        self._on_news = on_news
        self._lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._process: Any = None
        self._thread: threading.Thread | None = None
        self.connections: list[Connection] = []
        self.pid = 0
        """Its process id, once it has started."""

    @property
    def last_lines(self) -> str:
        """The last that it wrote to the standard error stream."""
        return "".join(self._lines).strip()

    def start(self, siblings: Sequence[Child]) -> None:
        """Start it.

        Args:
            siblings: The processes that live already, the ends of whose pipes a forked process must close.
        """
        pipe, its_pipe = self._context.Pipe()
        errors, its_errors = self._context.Pipe(duplex=False)
        self.connections = [pipe, errors]
        forks = self._method == "fork"
        inherited = [end for child in (*siblings, self) for end in child.connections] if forks else []
        self._process = self._context.Process(
            target=enter, args=(self._assignment, its_pipe, its_errors, inherited), name=self.name
        )
        try:
            with _starting:
                if self._method == "forkserver":
                    _prepare_forkserver()
                elif self._method == "spawn" and hasattr(signal, "pthread_sigmask"):
                    # It would be started along with the first process, and let SIGINT through to that.
                    resource_tracker.ensure_running()
                # Python warns of any fork of a process with threads, and this one was asked for by name.
                unwarned = warnings.catch_warnings(action="ignore", category=DeprecationWarning)
                script = contextlib.nullcontext() if forks else script_left_alone()
                with interrupts_held_back(), unwarned, script:
                    self._process.start()
        except BaseException:
            pipe.close()
            errors.close()
            raise
        finally:
            its_pipe.close()
            its_errors.close()
        self.pid = self._process.pid
        note_start(self.pid)
        self._thread = threading.Thread(
            target=self._follow, args=(pipe, errors), name=f"{self.name}-news", daemon=True
        )
        self._thread.start()

    def send(self, command: Literal["stop", "interrupt"]) -> None:
        """Tell it to stop: ``"stop"`` when it has finished what it has in hand, ``"interrupt"`` at once."""
        with suppress(OSError, ValueError):
            self.connections[0].send(command)

    def terminate(self) -> None:
        """End it with SIGTERM."""
        with suppress(ValueError):
            self._process.terminate()

    def kill(self) -> None:
        """End it with SIGKILL."""
        with suppress(ValueError):
            self._process.kill()

    def join(self, timeout: float) -> bool:
        """Wait for its end and for the last news, and return whether it has come."""
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def _follow(self, pipe: Connection, errors: Connection) -> None:
        """Pass on its news and its standard error stream until it has ended."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        open_ends: list[Connection] = [pipe, errors]
        sentinel: int = self._process.sentinel
        give_up: float | None = None
        while give_up is None or time.monotonic() < give_up:
            waited = [*open_ends, sentinel] if give_up is None else open_ends
            ready = multiprocessing.connection.wait(waited, None if give_up is None else 0)
            if pipe in ready:
                try:
                    self._on_news(self, pipe.recv())
                except (EOFError, OSError):
                    open_ends.remove(pipe)
            if errors in ready:
                chunk = b""
                with suppress(OSError):
                    chunk = os.read(errors.fileno(), 65536)
                if not chunk:
                    open_ends.remove(errors)
                self._show(decode(chunk))
            if give_up is not None and not ready:
                break
            if sentinel in ready:
                # What it said before its end may still be in the pipes, whose ends others may hold open.
                give_up = time.monotonic() + _DRAIN_SECONDS
        self._process.join()
        note_end(self.pid)
        code: int = self._process.exitcode
        self._on_news(self, ("exit", code))
        # On this thread, which alone reads from them.
        for end in self.connections:
            end.close()
        self._process.close()

    def _show(self, text: str) -> None:
        if not text:
            return
        lines = text.splitlines(keepends=True)
        if self._lines and not self._lines[-1].endswith("\n"):
            lines[0] = self._lines.pop() + lines[0]
        self._lines.extend(lines)
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _prepare_forkserver() -> None:
    """Start Python's fork server, which stays for other uses, with SIGINT as it is and this package loaded."""
    from multiprocessing import forkserver

    server: Any = forkserver
    with script_left_alone():
        # What it loads is decided when it starts; a program that has decided that keeps its way.
        if getattr(server._forkserver, "_preload_modules", None) == ["__main__"]:
            server.set_forkserver_preload([enter.__module__])
        server.ensure_running()
